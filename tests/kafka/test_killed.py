"""The consumer's process: killed at any moment, stopped in good order.

`make consumer-kills` is the long run: 20 SIGKILLs during 10,000 records. AUDIT_STREAM_TEST_CONSUMER_KILLS and
AUDIT_STREAM_TEST_CONSUMER_SEED set another.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from audit_stream.sources.kafka.letters import place_of
from audit_stream.sources.kafka.records import Record
from tests.harness import ServerProcess, clean_environ, running_server
from tests.kafka.cluster import MockCluster
from tests.kafka.consumers import ConsumerProcess, audit_event, environ_of, events_of, first_events, numbers_of

KILLS = int(os.environ.get("AUDIT_STREAM_TEST_CONSUMER_KILLS", "1"))
SEED = os.environ.get("AUDIT_STREAM_TEST_CONSUMER_SEED", "1")
RECORDS_A_KILL = 500
PARTITIONS = 4
LARGEST = 8 * 1024


@pytest.fixture(scope="module")
def spine(redis_url: str) -> Iterator[ServerProcess]:
    # A mock cluster keeps 5 MB of a partition, so what is too large has to be small.
    settings = {"AUDIT_STREAM_CHAIN": f"killed.{os.getpid()}", "AUDIT_STREAM_MAX_EVENT_BYTES": str(LARGEST)}
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, **settings) as server:
        yield server


def garbage(rng: random.Random, topic: str) -> bytes | None:
    return rng.choice(
        (
            b"not json",
            b'{"audit_id": "cut sho',
            msgspec.json.encode({"wrong": "schema"}),
            audit_event(-1, topic, args="x" * LARGEST),
            None,
            msgspec.json.encode({"kind": "unknown_kind", "source": topic}),
        )
    )


@pytest.mark.timeout(60 + 15 * KILLS)
def test_a_consumer_that_is_killed_again_and_again_leaves_each_record_in_one_place_exactly_once(
    cluster: MockCluster, spine: ServerProcess
) -> None:
    rng = random.Random(f"{SEED} {KILLS}")
    topic = cluster.topic(PARTITIONS)
    # What each partition holds, by offset: the number of an event, or None where it is garbage.
    put: list[list[int | None]] = [[] for _ in range(PARTITIONS)]
    count = 0

    def put_garbage(partition: int, value: bytes | None) -> None:
        put[partition].append(None)
        cluster.put(topic, value, partition=partition, wait=False)

    put_garbage(0, audit_event(-1, topic, args="x" * 2_000_000))
    consumer = ConsumerProcess(cluster, topic, spine.url)
    for _ in range(KILLS):
        consumer.wait_for("given")
        for at in range(RECORDS_A_KILL):
            partition = rng.randrange(PARTITIONS)
            if rng.random() < 0.01:
                put_garbage(partition, garbage(rng, topic))
            else:
                put[partition].append(count)
                cluster.put(topic, audit_event(count, topic), partition=partition, wait=False)
                count += 1
            if at == RECORDS_A_KILL // 2:
                cluster.put(topic)
                # At any moment from here on: it may be reading, appending, writing dead letters or committing.
                first_events(spine.url, max(1, count - rng.randrange(RECORDS_A_KILL // 3)), topic)
                assert consumer.end(signal.SIGKILL) == -signal.SIGKILL
                consumer = ConsumerProcess(cluster, topic, spine.url)
        cluster.put(topic)
    while [cluster.committed(topic, f"group of {topic}", p).offset for p in range(PARTITIONS)] != list(map(len, put)):
        pass
    assert consumer.end() == 0
    found = numbers_of(events_of(spine.url, topic))
    assert sorted(found) == list(range(count))
    for numbers in put:
        here = {number for number in numbers if number is not None}
        assert [number for number in found if number in here] == sorted(here)
    places = [place_of(Record.of(message)) for message in cluster.records(f"{topic}.dlq")]
    bad = [(p, offset) for p in range(PARTITIONS) for offset, number in enumerate(put[p]) if number is None]
    assert sorted(place[2:] for place in places if place) == bad
    assert spine.verify()["valid"]
    print(f"{KILLS} kills, {count} events, {len(bad)} dead letters, seed {SEED}: each in one place, once")


def test_sigterm_ends_it_and_what_was_settled_is_committed(cluster: MockCluster, spine: ServerProcess) -> None:
    topic = cluster.topic()
    consumer = ConsumerProcess(cluster, topic, f"{spine.url}/events", LOG_LEVEL="debug")
    cluster.put(topic, *(audit_event(number, topic) for number in range(100)))
    first_events(spine.url, 100, topic)
    assert consumer.end() == 0
    assert "stopped" in consumer.rest
    assert cluster.committed(topic, f"group of {topic}").offset == 100


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [
        ("KAFKA_BROKERS", "a b", "KAFKA_BROKERS: 'a b' is no broker"),
        ("KAFKA_CONFIG", "/nowhere", "KAFKA_CONFIG: /nowhere cannot be read"),
    ],
)
def test_a_wrong_setting_ends_it_with_the_name_of_the_variable(
    cluster: MockCluster, variable: str, text: str, complaint: str
) -> None:
    environ = clean_environ() | environ_of(cluster, "t", "http://127.0.0.1:1") | {variable: text}
    command = [sys.executable, "-m", "audit_stream", "kafka"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
