"""Clients of librdkafka: what we set, what the file of KAFKA_CONFIG adds, and a log in place of stderr."""

import logging
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException

from audit_stream.errors import Misconfigured
from audit_stream.sources.kafka.settings import KafkaSettings

_librdkafka = logging.getLogger("audit_stream.librdkafka")
# One file of properties serves consumers and producers, and each is told of those that are the other's.
_librdkafka.addFilter(lambda record: not record.getMessage().startswith("CONFWARN"))


def consumer_of(settings: KafkaSettings, properties: dict[str, Any]) -> Consumer:
    """Raises Misconfigured for what librdkafka does not know."""
    given = {"bootstrap.servers": settings.brokers, "group.id": settings.group, **properties}
    consumer: Consumer = made(Consumer, given, settings)
    return consumer


def made(kind: Any, given: dict[str, Any], settings: KafkaSettings) -> Any:
    try:
        # What the file says wins, except over what it may not say.
        return kind({**given, **settings.client}, logger=_librdkafka)
    except (KafkaException, ValueError) as error:
        raise Misconfigured(f"Kafka: {_words(error)}; see KAFKA_BROKERS and KAFKA_CONFIG") from error


def _words(error: Exception) -> str:
    found = error.args[0] if error.args else error
    return str(found.str()) if isinstance(found, KafkaError) else str(found)
