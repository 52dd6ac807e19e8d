"""Clients of librdkafka: what we set, what the file of KAFKA_CONFIG adds, and a log in place of stderr."""

from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException

from audit_stream.errors import Misconfigured
from audit_stream.sources.kafka.complaints import Complaints
from audit_stream.sources.kafka.settings import KafkaSettings


def consumer_of(settings: KafkaSettings, properties: dict[str, Any], complaints: Complaints) -> Consumer:
    """Raises Misconfigured for what librdkafka does not know."""
    given = {"bootstrap.servers": settings.brokers, "group.id": settings.group, **properties}
    consumer: Consumer = made(Consumer, given, settings, complaints)
    return consumer


def made(kind: Any, given: dict[str, Any], settings: KafkaSettings, complaints: Complaints) -> Any:
    try:
        # What the file says wins, except over what it may not say.
        return kind({**given, **settings.client}, logger=complaints)
    except (KafkaException, ValueError) as error:
        raise Misconfigured(f"Kafka: {_words(error)}; see KAFKA_BROKERS and KAFKA_CONFIG") from error


def _words(error: Exception) -> str:
    found = error.args[0] if error.args else error
    return str(found.str()) if isinstance(found, KafkaError) else str(found)
