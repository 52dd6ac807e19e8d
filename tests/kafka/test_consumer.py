"""The consumer against a cluster and a real spine."""

import itertools
from collections.abc import Sequence

import httpx
import msgspec
import pytest
from confluent_kafka import TopicPartition

from audit_stream.client import Event
from audit_stream.errors import Misconfigured
from audit_stream.sources.kafka.letters import MESSAGE, OFFSET, Letter, headers_of, place_of, value_of
from audit_stream.sources.kafka.records import Record
from tests.client.front import front_of
from tests.faults.processes import free_port
from tests.harness import ServerProcess, running_server
from tests.kafka.cluster import OFFSET_COMMIT, PRODUCE, MockCluster
from tests.kafka.consumers import audit_event, consuming, events_of, first_events, numbers_of

# Codes of the protocol: NOT_ENOUGH_REPLICAS is tried again by the client, MESSAGE_TOO_LARGE is not.
NOT_ENOUGH_REPLICAS, MESSAGE_TOO_LARGE, REBALANCE_IN_PROGRESS = 19, 10, 27


def dead_letters(cluster: MockCluster, topic: str) -> list[Record]:
    return [Record.of(message) for message in cluster.records(f"{topic}.dlq")]


def said(record: Record, name: str) -> str:
    return dict(record.headers)[name].decode()  # type: ignore[union-attr]


def put_numbers(cluster: MockCluster, topic: str, numbers: Sequence[int], partition: int = 0) -> None:
    cluster.put(topic, *(audit_event(number, topic) for number in numbers), partition=partition)


def test_records_reach_the_chain_in_the_order_of_their_partition(cluster: MockCluster, spine: ServerProcess) -> None:
    topic = cluster.topic(partitions=3)
    for partition in range(3):
        put_numbers(cluster, topic, range(partition * 1000, partition * 1000 + 700), partition)
    request = {"kind": "request_denied", "source": topic, "payload": {"metadata": {"n": 1}}}
    with consuming(cluster, topic, spine.url) as consumer:
        first_events(spine.url, 2100, topic)
        consumer.log.wait_for("given")
        cluster.put(topic, msgspec.json.encode(request), partition=0)
        events = first_events(spine.url, 2101, topic)
    assert {(event.kind, event.timestamp) for event in events[:-1]} == {("other", "2026-02-16T23:45:12.345Z")}
    assert (events[-1].kind, events[-1].payload) == ("request_denied", request["payload"])
    for partition in range(3):
        mine = [number for number in numbers_of(events[:-1]) if number // 1000 == partition]
        assert mine == list(range(partition * 1000, partition * 1000 + 700))
    assert cluster.committed(topic, f"group of {topic}").offset == 701
    assert dead_letters(cluster, topic) == []
    assert spine.verify()["valid"]


def test_what_is_no_event_goes_to_the_dlq_whole_and_holds_up_no_other(
    cluster: MockCluster, spine: ServerProcess
) -> None:
    topic = cluster.topic()
    large = audit_event(5, topic, args="x" * 2_000_000)
    unknown = msgspec.json.encode({"kind": "nope", "source": topic})
    cluster.put(topic, audit_event(0, topic), key=b"k", headers=[("trace", b"1")])
    cluster.put(topic, b"not json", None, b'{"foo": 1}', unknown, key=b"k", headers=[("trace", b"1"), ("none", None)])
    cluster.put(
        topic, audit_event(1, topic), large, audit_event(0, topic, actor="somebody else"), audit_event(2, topic)
    )
    with consuming(cluster, topic, spine.url):
        assert numbers_of(first_events(spine.url, 3, topic)) == [0, 1, 2]
    letters = dead_letters(cluster, topic)
    assert [letter.value for letter in letters][:5] == [b"not json", None, b'{"foo": 1}', unknown, large]
    assert [said(letter, OFFSET) for letter in letters] == ["1", "2", "3", "4", "6", "7"]
    assert {letter.key for letter in letters[:4]} == {b"k"}
    assert all(letter.headers[:2] == [("trace", b"1"), ("none", None)] for letter in letters[:4])
    reasons = [said(letter, MESSAGE) for letter in letters]
    words = ("not a JSON object", "tombstone", "missing required field `operation`", "'nope' is not a kind")
    for reason, word in zip(reasons, (*words, "over the limit of 262144 bytes", "other content"), strict=True):
        assert word in reason
    found = cluster.committed(topic, f"group of {topic}")
    assert (found.offset, found.metadata or "") == (9, "")


def test_the_published_envelope_is_written_on_request(cluster: MockCluster, spine: ServerProcess) -> None:
    topic = cluster.topic()
    cluster.put(topic, b'{"foo": 1}', audit_event(0, topic))
    with consuming(cluster, topic, spine.url, KAFKA_DLQ_FORMAT="json"):
        first_events(spine.url, 1, topic)
    (letter,) = [msgspec.json.decode(record.value or b"") for record in dead_letters(cluster, topic)]
    assert (letter["original_topic"], letter["original_event"]) == (topic, {"foo": 1})


def test_while_the_spine_is_away_nothing_is_dropped_and_nothing_is_a_dead_letter(
    cluster: MockCluster, redis_url: str
) -> None:
    topic, port = cluster.topic(), free_port()
    put_numbers(cluster, topic, range(50))
    with consuming(cluster, topic, f"http://127.0.0.1:{port}", METRICS_LISTEN="127.0.0.1:0") as consumer:
        consumer.log.wait_for("the spine takes nothing now")
        (where,) = [line.split()[-1] for line in consumer.log.lines if "/metrics" in line]
        while "audit_stream_kafka_paused 1.0" not in httpx.get(where).text:
            pass
        assert cluster.committed(topic, f"group of {topic}").offset < 0
        settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": topic, "PORT": str(port)}
        with running_server(**settings) as server:
            assert numbers_of(first_events(server.url, 50, topic)) == list(range(50))
            consumer.log.wait_for("the spine is back")
            put_numbers(cluster, topic, range(50, 60))
            assert numbers_of(first_events(server.url, 60, topic)) == list(range(60))
            shown = httpx.get(where).text
            consumer.stop()
    assert "audit_stream_kafka_paused 0.0" in shown
    assert "audit_stream_kafka_events_total 60.0" in shown
    assert dead_letters(cluster, topic) == []


@pytest.mark.parametrize("behaviours", [("cut after",), ("cut before", "portal")])
def test_an_answer_that_is_lost_stores_nothing_twice(
    cluster: MockCluster, spine: ServerProcess, behaviours: tuple[str, ...]
) -> None:
    topic = cluster.topic()
    put_numbers(cluster, topic, range(20))
    with front_of(spine.url, *behaviours) as front, consuming(cluster, topic, front.url):  # type: ignore[arg-type]
        first_events(spine.url, 20, topic)
        put_numbers(cluster, topic, [20])
        first_events(spine.url, 21, topic)
    assert numbers_of(events_of(spine.url, topic)) == list(range(21))
    assert dead_letters(cluster, topic) == []


def test_a_kind_that_the_spine_does_not_know_ends_it_before_anything_is_a_dead_letter(
    cluster: MockCluster, spine: ServerProcess
) -> None:
    topic = cluster.topic()
    put_numbers(cluster, topic, range(3))
    with consuming(cluster, topic, spine.url, KAFKA_EVENT_KIND="query_executed") as consumer:
        with pytest.raises(Misconfigured, match="KAFKA_EVENT_KIND: the spine does not take events of kind 'query_ex"):
            consumer.join()
        consumer.error = None
    assert dead_letters(cluster, topic) == []
    assert cluster.committed(topic, f"group of {topic}").offset < 0


def test_a_second_consumer_takes_its_share_and_gives_it_back_without_a_loss_or_a_duplicate(
    cluster: MockCluster, spine: ServerProcess
) -> None:
    topic = cluster.topic(partitions=4)
    numbers = itertools.count()

    def put() -> None:
        for partition in range(4):
            put_numbers(cluster, topic, list(itertools.islice(numbers, 300)), partition)
            cluster.put(topic, b"garbage", partition=partition)

    with consuming(cluster, topic, spine.url) as first:
        put()
        first.log.wait_for("given")
        with consuming(cluster, topic, spine.url) as second:
            put()
            second.log.wait_for(f"given {topic}")
            first.log.wait_for("gave back")
            put()
        put()
        events = first_events(spine.url, 4800, topic)
    assert sorted(numbers_of(events)) == list(range(4800)) == sorted(numbers_of(events_of(spine.url, topic)))
    places = [place_of(letter) for letter in dead_letters(cluster, topic)]
    assert len(places) == len(set(places)) == 16


def a_letter(topic: str, offset: int) -> Letter:
    return Letter(Record(topic, 0, offset, None, None, b"garbage", []), "why", "decoding")


def test_dead_letters_that_were_written_but_not_committed_are_not_written_again(
    cluster: MockCluster, spine: ServerProcess
) -> None:
    topic = cluster.topic()
    group = f"group of {topic}"
    cluster.put(topic, audit_event(0, topic), b"garbage", b"garbage", b"garbage", audit_event(1, topic))
    # Before the note: another's dead letter, and one of this partition that is long committed.
    for letter, owner in (
        (a_letter(topic, 2), "somebody else"),
        (a_letter(topic, 1), group),
        (a_letter(topic, 3), group),
    ):
        headers = headers_of(letter, group=owner, cluster="", dlq_format="connect")
        cluster.put(f"{topic}.dlq", value_of(letter, "connect"), headers=headers, partition=0)
    with cluster.consumer(group) as consumer:
        noted = TopicPartition(topic, 0, 1, metadata="dead letters: partition 0, from 0")
        consumer.commit(offsets=[noted], asynchronous=False)
    with consuming(cluster, topic, spine.url) as running:
        events: list[Event] = first_events(spine.url, 1, topic)
        assert numbers_of(events) == [1]  # the first was settled before
        running.log.wait_for("2 dead letters were written before")
    letters = [place_of(letter) for letter in dead_letters(cluster, topic)]
    assert letters == [("somebody else", topic, 0, 2), (group, topic, 0, 1), (group, topic, 0, 3), (group, topic, 0, 2)]


def test_a_note_stays_until_the_partition_is_past_all_that_it_tells_of(
    cluster: MockCluster, spine: ServerProcess
) -> None:
    topic = cluster.topic()
    group, note = f"group of {topic}", "dead letters: partition 0, from 0"
    cluster.put(topic, audit_event(0, topic), b"garbage", audit_event(1, topic))
    headers = headers_of(a_letter(topic, 3), group=group, cluster="", dlq_format="connect")
    cluster.put(f"{topic}.dlq", b"garbage", headers=headers, partition=0)
    with cluster.consumer(group) as consumer:
        consumer.commit(offsets=[TopicPartition(topic, 0, 0, metadata=note)], asynchronous=False)
    with consuming(cluster, topic, spine.url):
        first_events(spine.url, 2, topic)
    found = cluster.committed(topic, group)
    assert (found.offset, found.metadata) == (3, note)
    cluster.put(topic, b"garbage", audit_event(2, topic))
    with consuming(cluster, topic, spine.url):
        assert numbers_of(first_events(spine.url, 3, topic)) == [0, 1, 2]
    found = cluster.committed(topic, group)
    assert (found.offset, found.metadata or "") == (5, "")
    assert [said(letter, OFFSET) for letter in dead_letters(cluster, topic)] == ["3", "1"]


def test_a_dlq_that_takes_nothing_is_waited_for(cluster: MockCluster, spine: ServerProcess) -> None:
    topic = cluster.topic()
    cluster.put(topic, audit_event(0, topic), b"garbage", b"garbage", audit_event(1, topic))
    cluster.fail(PRODUCE, MESSAGE_TOO_LARGE, NOT_ENOUGH_REPLICAS)
    with consuming(cluster, topic, spine.url) as consumer:
        consumer.log.wait_for("dead letters wait")
        consumer.log.wait_for("goes to the DLQ", times=2)
        assert numbers_of(first_events(spine.url, 2, topic)) == [0, 1]
    assert [said(letter, OFFSET) for letter in dead_letters(cluster, topic)] == ["1", "2"]


def test_a_cluster_that_was_away_is_found_again(cluster: MockCluster, spine: ServerProcess) -> None:
    topic = cluster.topic()
    put_numbers(cluster, topic, [0])
    with consuming(cluster, topic, spine.url) as consumer:
        first_events(spine.url, 1, topic)
        cluster.down()
        consumer.log.wait_for("kafka: ")
        cluster.up()
        put_numbers(cluster, topic, [1])
        assert numbers_of(first_events(spine.url, 2, topic)) == [0, 1]


def test_a_commit_that_fails_is_made_good_by_the_next(cluster: MockCluster, spine: ServerProcess) -> None:
    topic = cluster.topic()
    cluster.fail(OFFSET_COMMIT, *[REBALANCE_IN_PROGRESS] * 2)
    put_numbers(cluster, topic, range(5))
    with consuming(cluster, topic, spine.url) as consumer:
        consumer.log.wait_for("offsets were not committed yet")
        put_numbers(cluster, topic, [5])
        first_events(spine.url, 6, topic)
    assert cluster.committed(topic, f"group of {topic}").offset == 6


def test_a_member_that_assigns_like_kafka_python_shares_the_group_until_it_leaves(
    cluster: MockCluster, spine: ServerProcess
) -> None:
    topic = cluster.topic(partitions=2)
    # librdkafka's own strategies are those of kafka-python, under the same names.
    former = cluster.consumer(f"group of {topic}", **{"session.timeout.ms": 2_000, "heartbeat.interval.ms": 200})
    former.subscribe([topic])
    while not former.assignment():
        former.poll(0.1)
    with consuming(cluster, topic, spine.url, KAFKA_ASSIGNMENT="range,roundrobin") as ours:
        while not any(f"given {topic}" in line for line in ours.log.lines):
            former.poll(0.1)
        former.close()
        for partition in range(2):
            put_numbers(cluster, topic, [partition], partition)
        assert sorted(numbers_of(first_events(spine.url, 2, topic))) == [0, 1]
