"""Putting dead letters back where they came from, once what was wrong is mended.

Offsets in the DLQ, of a group of its own, say how far it got. A record that is put back carries where it first was, so
putting it back twice stores it once; and one that is refused again is a new dead letter, behind the end of this run.
"""

import logging
from collections.abc import Iterator
from contextlib import closing

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from audit_stream.errors import Misconfigured, Unreachable
from audit_stream.sources.kafka.broker import TIMEOUT_S
from audit_stream.sources.kafka.clients import consumer_of, made
from audit_stream.sources.kafka.complaints import Complaints
from audit_stream.sources.kafka.dead_letters import PRODUCER, WRITE_S
from audit_stream.sources.kafka.letters import Original, original
from audit_stream.sources.kafka.records import Record
from audit_stream.sources.kafka.settings import DLQ, KafkaSettings

AT_ONCE = 500

log = logging.getLogger("audit_stream.kafka")


def dead_letters(settings: KafkaSettings, *, all_of_them: bool) -> Iterator[tuple[Record, Original]]:
    """Yield the dead letters that were not put back yet, or every one, in the order in which they were written.

    Raises Unreachable, and Misconfigured for a topic that is only a pattern.
    """
    for topic in settings.topics:
        if topic.startswith("^"):
            raise Misconfigured(f"KAFKA_TOPICS: {topic!r} is a pattern; name the topic whose dead letters are meant")
        with closing(_reader(settings)) as reader:
            try:
                for message in _read(reader, topic + DLQ, all_of_them):
                    record = Record.of(message)
                    try:
                        yield record, original(record)
                    except ValueError as error:
                        log.error("left where it is: %s", error)
            except KafkaException as error:
                raise Unreachable(f"{topic}{DLQ} cannot be read: {error.args[0]}") from error


def put_back(settings: KafkaSettings, letters: Iterator[tuple[Record, Original]]) -> int:
    """Write each to its topic; how many. Raises Unreachable: what was put back until then is not put back again."""
    producer: Producer = made(Producer, {"bootstrap.servers": settings.brokers, **PRODUCER}, settings, Complaints())
    count = 0
    part: list[tuple[Record, Original]] = []
    with closing(_reader(settings)) as reader:
        for letter in letters:
            part.append(letter)
            if len(part) == AT_ONCE:
                count += _put(producer, reader, part)
                part.clear()
        return count + _put(producer, reader, part)


def _put(producer: Producer, reader: Consumer, part: list[tuple[Record, Original]]) -> int:
    failures: list[KafkaError] = []
    ends: dict[tuple[str, int], int] = {}
    try:
        for record, letter in part:
            producer.produce(
                letter.topic,
                letter.value,
                letter.key,
                headers=letter.headers,  # type: ignore[arg-type]  # a list of pairs it is
                timestamp=letter.timestamp_ms or 0,
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )
            ends[record.topic, record.partition] = record.offset + 1
        if producer.flush(WRITE_S + TIMEOUT_S):
            failures.append(KafkaError(KafkaError._TIMED_OUT))
        if failures:
            raise KafkaException(failures[0])
        if ends:
            reader.commit(
                offsets=[TopicPartition(*place, offset) for place, offset in ends.items()], asynchronous=False
            )
    except KafkaException as error:
        raise Unreachable(
            f"dead letters cannot be put back: {error.args[0]}; run it again, no record is stored twice", in_doubt=True
        ) from error
    return len(part)


def _read(reader: Consumer, topic: str, all_of_them: bool) -> Iterator[Message]:
    """From where the last run ended up to where the DLQ ends now."""
    found = reader.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
    if found.error:
        raise KafkaException(found.error)
    places = [TopicPartition(topic, partition) for partition in found.partitions]
    starts = places if all_of_them else reader.committed(places, timeout=TIMEOUT_S)
    left: dict[int, int] = {}
    for place in starts:
        low, end = reader.get_watermark_offsets(place, timeout=TIMEOUT_S)
        place.offset = max(low, place.offset)
        if place.offset < end:
            left[place.partition] = end
    reader.assign([place for place in starts if place.partition in left])
    while left:
        message = reader.poll(TIMEOUT_S)
        if message is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        if error := message.error():
            if error.code() == KafkaError._PARTITION_EOF:  # its end was cut off meanwhile
                left.pop(message.partition() or 0, None)
                continue
            raise KafkaException(error)
        record = Record.of(message)
        end = left.get(record.partition, 0)
        if record.offset + 1 >= end:
            left.pop(record.partition, None)
        if record.offset < end:
            yield message


def _reader(settings: KafkaSettings) -> Consumer:
    # A group without members: in one that has some, only these may commit.
    alone = msgspec.structs.replace(settings, group=f"{settings.group}.replay-dlq")
    properties = {"enable.auto.commit": False, "enable.partition.eof": True, "auto.offset.reset": "earliest"}
    return consumer_of(alone, properties, Complaints())
