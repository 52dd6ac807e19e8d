"""Dead letters are written once, whatever is killed on the way.

    1. the offset of the first one is committed, with a note that says from where on they may be in the DLQ
    2. they are written, and the brokers have them
    3. the offset behind them is committed, without a note

Whoever is given a partition with a note reads the DLQ from there, and passes by what it finds. It keeps the note beside
its offsets until it is past all of that, for it may be killed as well. All dead letters of a partition go to one
partition of the DLQ, in order.
"""

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from audit_stream.client.http import Backoff
from audit_stream.sources.delivery import LONGEST_PAUSE_S
from audit_stream.sources.kafka.broker import TIMEOUT_S, Assignment, Broker
from audit_stream.sources.kafka.clients import consumer_of, made
from audit_stream.sources.kafka.complaints import Complaints
from audit_stream.sources.kafka.letters import Letter, headers_of, place_of, value_of
from audit_stream.sources.kafka.metrics import Metrics
from audit_stream.sources.kafka.records import Record
from audit_stream.sources.kafka.settings import DLQ, KafkaSettings
from audit_stream.sources.stopping import Stopping

WRITE_S = 30.0

log = logging.getLogger("audit_stream.kafka")

PRODUCER = {
    "acks": "all",
    "enable.idempotence": True,
    "message.timeout.ms": int(WRITE_S * 1000),
    # How large a record may be is for the brokers to say.
    "message.max.bytes": 1_000_000_000,
    "client.id": "audit-consumer",
}


class Place(NamedTuple):
    """Where in a DLQ the dead letters of a partition begin."""

    topic: str
    partition: int
    start: int

    def __str__(self) -> str:
        return f"dead letters: partition {self.partition}, from {self.start}"

    @classmethod
    def parse(cls, topic: str, note: str) -> "Place | None":
        match = re.fullmatch(r"dead letters: partition (\d+), from (\d+)", note)
        return cls(topic, int(match[1]), int(match[2])) if match else None


class DeadLetters:
    def __init__(
        self, settings: KafkaSettings, broker: Broker, stopping: Stopping, metrics: Metrics, complaints: Complaints
    ) -> None:
        self._settings, self._broker, self._stopping, self._metrics = settings, broker, stopping, metrics
        self._complaints = complaints
        self._producer: Producer | None = None
        self._writing = asyncio.Lock()

    async def look(self, assignment: Assignment) -> None:
        """Find out what an earlier owner of the partition has written, and could not commit. Raises KafkaException."""
        note = await self._broker.noted(assignment)
        place = Place.parse(assignment.topic + DLQ, note)
        assignment.buried = frozenset(await self._found(assignment, place) if place else ())
        assignment.note = note if assignment.buried else ""
        if assignment.buried:
            log.info(
                "%s [%d]: %d dead letters were written before",
                assignment.topic,
                assignment.partition,
                len(assignment.buried),
            )

    async def bury(self, assignment: Assignment, letters: Sequence[Letter], cluster: str) -> None:
        """Write the dead letters of a partition, in order; everything before the first one is settled.

        Returns when the brokers have them, or the partition is somebody else's. Raises Stopped.
        """
        backoff = Backoff(None, longest_s=LONGEST_PAUSE_S)
        place: Place | None = None
        left = list(letters)
        while not assignment.revoked:
            try:
                tried = place is not None
                place = await self._begin(assignment, letters[0].record.offset)
                if assignment.revoked:
                    return  # the next owner has the note, and the records
                if tried:
                    # What became of those that were not answered, the DLQ itself tells.
                    found = await self._found(assignment, place)
                    left = [letter for letter in left if letter.record.offset not in found]
                async with self._writing:
                    await asyncio.to_thread(self._write, place, left, cluster)
            except KafkaException as error:
                where = f"{assignment.topic}{DLQ}"
                self._complaints.warn(f"dead letters wait, {where} cannot take them: {error.args[0].str()}")
                self._metrics.failures.labels("dead letters").inc()
                self._producer = None  # one that failed may take nothing any more
                await self._stopping.pause(backoff.pause_s() or LONGEST_PAUSE_S)
            else:
                self._metrics.dead_letters.inc(len(letters))
                for letter in letters:
                    log.error("%s goes to the DLQ: %s", letter.record.place, letter.reason)
                return

    async def _begin(self, assignment: Assignment, offset: int) -> Place:
        """Return where the dead letters begin, with a note of it committed beside an offset before them.

        The commit is made before each attempt to write, also where the note is known: the broker refuses it from a
        consumer that has lost the partition and does not know it yet, so that two owners do not write the same.
        """
        known = Place.parse(assignment.topic + DLQ, assignment.note)
        if known is None:
            async with self._writing:
                place = await asyncio.to_thread(self._end_of, assignment.topic + DLQ, assignment.partition)
        else:
            place = known
        assignment.note = str(place)
        try:
            await self._broker.note(assignment, offset)
        except KafkaException:
            if known is None:
                assignment.note = ""
            raise
        return place

    async def _found(self, assignment: Assignment, place: Place) -> set[int]:
        """The offsets of those records of the partition that are in the DLQ, from that place on."""
        records = await asyncio.to_thread(self._read, place)
        wanted = (self._settings.group, assignment.topic, assignment.partition)
        return {found[3] for record in records if (found := place_of(record)) and found[:3] == wanted}

    # --- in threads

    def _end_of(self, topic: str, partition: int) -> Place:
        found = self._producing().list_topics(topic, timeout=TIMEOUT_S).topics[topic]  # made, where brokers do that
        if found.error:
            raise KafkaException(found.error)
        at = partition % len(found.partitions)
        with closing(self._reader()) as reader:
            _, end = reader.get_watermark_offsets(TopicPartition(topic, at), timeout=TIMEOUT_S)
        return Place(topic, at, end)

    def _read(self, place: Place) -> list[Record]:
        records: list[Record] = []
        with closing(self._reader()) as reader:
            reader.assign([TopicPartition(*place)])
            while True:
                message = reader.poll(TIMEOUT_S)
                if message is None:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{place.topic} cannot be read"))
                if error := message.error():
                    if error.code() == KafkaError._PARTITION_EOF:
                        return records
                    raise KafkaException(error)
                records.append(Record.of(message))

    def _write(self, place: Place, letters: Sequence[Letter], cluster: str) -> None:
        """Raises KafkaException when any was not written, or may not have been."""
        producer = self._producing()
        failures: list[KafkaError] = []

        def answered(error: KafkaError | None, _: object) -> None:
            if error:
                failures.append(error)

        for letter in letters:
            producer.produce(
                place.topic,
                value_of(letter, self._settings.dlq_format),
                letter.record.key,
                place.partition,
                headers=headers_of(  # type: ignore[arg-type]  # a list of pairs it is
                    letter, group=self._settings.group, cluster=cluster, dlq_format=self._settings.dlq_format
                ),
                on_delivery=answered,
            )
        if producer.flush(WRITE_S + TIMEOUT_S):
            failures.append(KafkaError(KafkaError._TIMED_OUT))
        if failures:
            raise KafkaException(failures[0])

    def _producing(self) -> Producer:
        if self._producer is None:
            given = {"bootstrap.servers": self._settings.brokers, **PRODUCER}
            self._producer = made(Producer, given, self._settings, self._complaints)
        return self._producer

    def _reader(self) -> Consumer:
        properties = {"enable.auto.commit": False, "enable.partition.eof": True, "auto.offset.reset": "earliest"}
        return consumer_of(self._settings, properties, self._complaints)
