"""Dead letters are written once, whatever fails between the note, the writing and the commit."""

import asyncio
from collections.abc import Sequence

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from audit_stream.sources.kafka.broker import Assignment, Broker
from audit_stream.sources.kafka.complaints import Complaints
from audit_stream.sources.kafka.dead_letters import DeadLetters, Place
from audit_stream.sources.kafka.letters import OFFSET, Letter
from audit_stream.sources.kafka.metrics import Metrics
from audit_stream.sources.kafka.records import Record
from audit_stream.sources.kafka.settings import KafkaSettings
from tests.harness import ServerProcess
from tests.kafka.cluster import MockCluster
from tests.kafka.consumers import audit_event, consuming, environ_of, events_of, first_events, numbers_of

Write = DeadLetters._write


def offsets_in_dlq(cluster: MockCluster, topic: str) -> list[str]:
    records = [Record.of(message) for message in cluster.records(f"{topic}.dlq")]
    return [dict(record.headers)[OFFSET].decode() for record in records]  # type: ignore[union-attr]


class Died(Exception):
    """Stands for the end of the process."""


def test_who_takes_over_between_the_writing_and_the_commit_writes_no_dead_letter_twice(
    cluster: MockCluster, spine: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = cluster.topic()
    cluster.put(topic, audit_event(0, topic), b"garbage", b"garbage", audit_event(1, topic))
    noted: list[TopicPartition] = []

    def written_and_then_the_end(self: DeadLetters, place: Place, letters: Sequence[Letter], cluster_id: str) -> None:
        noted.append(cluster.committed(topic, f"group of {topic}"))
        Write(self, place, letters, cluster_id)
        raise Died

    monkeypatch.setattr(DeadLetters, "_write", written_and_then_the_end)
    with consuming(cluster, topic, spine.url) as first:
        with pytest.raises(Died):
            first.join()
        first.error = None
    monkeypatch.undo()
    # At the moment of writing, the next owner could have known where to look.
    assert [(place.offset, place.metadata) for place in noted] == [(1, "dead letters: partition 0, from 0")]
    with consuming(cluster, topic, spine.url):
        while cluster.committed(topic, f"group of {topic}").offset != 4:
            pass
    assert numbers_of(events_of(spine.url, topic)) == [0, 1]
    assert offsets_in_dlq(cluster, topic) == ["1", "2"]


def test_after_a_write_that_failed_only_what_is_missing_is_written(
    cluster: MockCluster, spine: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = cluster.topic()
    cluster.put(topic, b"garbage", b"garbage", audit_event(0, topic))

    def the_first_only(self: DeadLetters, place: Place, letters: Sequence[Letter], cluster_id: str) -> None:
        monkeypatch.undo()
        Write(self, place, letters[:1], cluster_id)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    monkeypatch.setattr(DeadLetters, "_write", the_first_only)
    with consuming(cluster, topic, spine.url):
        first_events(spine.url, 1, topic)
        while cluster.committed(topic, f"group of {topic}").offset != 3:
            pass
    assert offsets_in_dlq(cluster, topic) == ["0", "1"]


async def _nothing(_: Sequence[Assignment]) -> None: ...


def test_the_positions_of_partitions_that_were_revoked_are_not_committed(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = cluster.topic(partitions=2)
    settings = KafkaSettings.from_env(environ_of(cluster, topic, "http://127.0.0.1:1"))
    kept, revoked = Assignment(topic, 0), Assignment(topic, 1)
    for assignment in (kept, revoked):
        assignment.settle(7)
    revoked.revoked = True
    committed: list[TopicPartition] = []
    monkeypatch.setattr(Broker, "_commit", lambda _, offsets: committed.extend(offsets))

    async def commit() -> None:
        broker = Broker(settings, Metrics(), Complaints(), _nothing)
        broker.commit([kept, revoked])
        await broker.close()

    asyncio.run(commit())
    assert [(place.partition, place.offset) for place in committed] == [(0, 7)]
