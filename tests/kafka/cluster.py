"""A Kafka cluster without a broker: librdkafka's mock, in this process; other processes reach it by host and port.

confluent-kafka has it as a property of a client, but not its controls, hence ctypes (rdkafka_mock.h).
"""

import ctypes
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import confluent_kafka.cimpl
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

# RD_KAFKA_PRODUCER; API keys of the protocol.
_PRODUCER, PRODUCE, OFFSET_COMMIT = 0, 0, 8

_rd = ctypes.CDLL(confluent_kafka.cimpl.__file__)
_rd.rd_kafka_new.restype = _rd.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
_rd.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p

_names = itertools.count(1)


class MockCluster:
    def __init__(self) -> None:
        error = ctypes.create_string_buffer(512)
        self._client = ctypes.c_void_p(_rd.rd_kafka_new(_PRODUCER, None, error, ctypes.c_size_t(512)))
        assert self._client, error.value
        self._cluster = ctypes.c_void_p(_rd.rd_kafka_mock_cluster_new(self._client, 1))
        # As many members as come at once; the first join waits for no more of them.
        _rd.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, ctypes.c_int32(0))
        self.brokers = _rd.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self.producer = Producer({"bootstrap.servers": self.brokers, "message.max.bytes": 64 * 1024 * 1024})

    def close(self) -> None:
        self.producer.flush(10)
        _rd.rd_kafka_mock_cluster_destroy(self._cluster)
        _rd.rd_kafka_destroy(self._client)

    def topic(self, partitions: int = 1) -> str:
        """A new topic, and its DLQ."""
        name = f"audit.{next(_names)}"
        self.make_topic(name, partitions)
        self.make_topic(f"{name}.dlq")
        return name

    def make_topic(self, name: str, partitions: int = 1) -> None:
        assert _rd.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1) == 0

    def fail(self, api: int, *errors: int) -> None:
        """Let the next requests of this kind be answered so."""
        codes = (ctypes.c_int * len(errors))(*errors)
        _rd.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(api), ctypes.c_size_t(len(errors)), codes
        )

    def down(self) -> None:
        _rd.rd_kafka_mock_broker_set_down(self._cluster, ctypes.c_int32(1))

    def up(self) -> None:
        _rd.rd_kafka_mock_broker_set_up(self._cluster, ctypes.c_int32(1))

    def put(
        self, topic: str, *values: bytes | None, partition: int | None = None, wait: bool = True, **more: Any
    ) -> None:
        """Write records; `wait` until the cluster has all that were written."""
        if partition is not None:
            more["partition"] = partition
        for value in values:
            self.producer.produce(topic, value, **more)
        if wait:
            assert self.producer.flush(30) == 0

    def records(self, topic: str, partitions: Sequence[int] = (0,)) -> list[Message]:
        """All that the topic holds."""
        found: list[Message] = []
        with self.consumer("tests", **{"enable.partition.eof": True}) as consumer:
            consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
            left = set(partitions)
            while left:
                message = consumer.poll(30)
                assert message is not None
                if error := message.error():
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
                    left.discard(message.partition() or 0)
                else:
                    found.append(message)
        return found

    def committed(self, topic: str, group: str, partition: int = 0) -> TopicPartition:
        with self.consumer(group) as consumer:
            (found,) = consumer.committed([TopicPartition(topic, partition)], timeout=30)
        return found

    def consumer(self, group: str, **properties: Any) -> Consumer:
        given: dict[str, Any] = {"bootstrap.servers": self.brokers, "group.id": group, "enable.auto.commit": False}
        given["auto.offset.reset"] = "earliest"
        return Consumer({**given, "fetch.message.max.bytes": 64 * 1024 * 1024, **properties})


@contextmanager
def a_cluster() -> Iterator[MockCluster]:
    cluster = MockCluster()
    try:
        yield cluster
    finally:
        cluster.close()
