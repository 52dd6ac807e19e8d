"""The consumer's environment. The names are those of the daemon it replaces."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import msgspec

from audit_stream.client.arguments import DEFAULT_URL, authorization_of
from audit_stream.daemon import Listen, Variable, level, listen, spine_url
from audit_stream.errors import Misconfigured
from audit_stream.kinds import with_extra

DlqFormat = Literal["connect", "json"]

PUBLISHED = {
    "KAFKA_BROKERS": "localhost:19092",
    "KAFKA_ASSIGNMENT": "range,roundrobin",
    "DATABASE_URL": "postgresql://localhost:5432/forge",
    "LOG_DIR": "/logs",
    "TENANT_ID": "spel-local-forge",
}
"""What `audit-consumer` takes where a variable is not set: the defaults of the daemon that had this name before."""

# What the promise rests on is not for a file to change.
_OURS = {
    "bootstrap.servers": "KAFKA_BROKERS says that",
    "metadata.broker.list": "KAFKA_BROKERS says that",
    "group.id": "KAFKA_GROUP_ID says that",
    "partition.assignment.strategy": "KAFKA_ASSIGNMENT says that",
    "enable.auto.commit": "an offset is committed when the chain has the record",
    "enable.auto.offset.store": "an offset is committed when the chain has the record",
    "enable.partition.eof": "it is of no use here",
    "enable.idempotence": "dead letters are written once",
    "acks": "dead letters are written once",
    "request.required.acks": "dead letters are written once",
}


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    brokers: str
    topics: tuple[str, ...]
    group: str
    assignment: str
    """The strategies that are offered to the group, the preferred one first."""
    sources: dict[str, frozenset[str]]
    """What sources a topic may bring; "*": every topic that is not named. A topic that is in neither may bring any."""
    client: dict[str, str]
    """Properties of librdkafka beyond ours: security, timeouts."""
    event_kind: str
    dlq_format: DlqFormat
    audit_stream_url: str
    headers: dict[str, str]
    """Authorization, where there is a token."""
    log_level: str
    metrics: Listen | None
    metrics_asked_for: bool
    """Whether the address of the metrics was configured: then it must be free."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, *, dlq_format: str | None = None) -> "KafkaSettings":
        """Raises Misconfigured naming the variable and what it takes."""
        environ = os.environ if environ is None else environ
        given = {name: environ.get(name, "").strip() for name in VARIABLES}
        found = {name: text or VARIABLES[name].default for name, text in given.items()}
        return cls(
            brokers=_brokers(found["KAFKA_BROKERS"]),
            topics=_topics(found["KAFKA_TOPICS"]),
            group=found["KAFKA_GROUP_ID"],
            assignment=_assignment(found["KAFKA_ASSIGNMENT"]),
            sources=_sources(found["KAFKA_SOURCES"]),
            client=_client(found["KAFKA_CONFIG"]),
            event_kind=_kind(found["KAFKA_EVENT_KIND"]),
            dlq_format=_dlq_format(dlq_format or found["KAFKA_DLQ_FORMAT"]),
            audit_stream_url=spine_url(found["AUDIT_STREAM_URL"]),
            headers=authorization_of(found["AUDIT_STREAM_TOKEN"]),
            log_level=level(found["LOG_LEVEL"]),
            metrics=listen(found["METRICS_LISTEN"]),
            metrics_asked_for=bool(given["METRICS_LISTEN"]),
        )

    def sources_of(self, topic: str) -> frozenset[str] | None:
        """The sources that the topic may bring; None: any."""
        return self.sources.get(topic, self.sources.get("*"))


VARIABLES = {
    "KAFKA_BROKERS": Variable("localhost:9092", "where Kafka is: host:port, separated by commas"),
    "KAFKA_TOPICS": Variable("forge.audit.query.executed", "what to consume, separated by commas; ^ begins a pattern"),
    "KAFKA_GROUP_ID": Variable("audit-consumer", "the group: its consumers share the partitions, its offsets are kept"),
    "KAFKA_ASSIGNMENT": Variable(
        "cooperative-sticky", "how the group shares partitions: cooperative-sticky, or range,roundrobin"
    ),
    "KAFKA_SOURCES": Variable(
        "", "what sources a topic may bring: topic=source, again for each; * for all other topics"
    ),
    "KAFKA_EVENT_KIND": Variable("other", "kind of the event that is made of an audit event"),
    "KAFKA_DLQ_FORMAT": Variable("connect", "how a dead letter is written: connect or json; also --dlq-format"),
    "KAFKA_CONFIG": Variable("", "a file of librdkafka's properties, name=value a line: security, timeouts"),
    "AUDIT_STREAM_URL": Variable(DEFAULT_URL, "the spine, with or without /events"),
    "AUDIT_STREAM_TOKEN": Variable("", "sent to the spine as Authorization: Bearer"),
    "LOG_LEVEL": Variable("INFO", "least severe message to log: DEBUG, INFO, WARNING or ERROR"),
    "METRICS_LISTEN": Variable("127.0.0.1:8095", "where GET /metrics is answered: host:port, or off"),
}


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in (part.strip() for part in text.split(",")) if part))


def _brokers(text: str) -> str:
    brokers = _listed(text)
    for broker in brokers:
        if not re.fullmatch(r"(\w+://)?(\[[0-9a-fA-F:.]+\]|[^\s:/]+)(:\d{1,5})?", broker):
            raise Misconfigured(f"KAFKA_BROKERS: {broker!r} is no broker; write it like localhost:9092")
    return ",".join(brokers)


def _topics(text: str) -> tuple[str, ...]:
    topics = _listed(text)
    if not topics:
        raise Misconfigured(f"KAFKA_TOPICS: {text!r} names no topic; separate several by commas")
    for topic in topics:
        if topic.startswith("^"):
            try:
                re.compile(topic)
            except re.error as error:
                raise Misconfigured(f"KAFKA_TOPICS: {topic!r} is no pattern: {error}") from error
        elif not re.fullmatch(r"[A-Za-z0-9._-]{1,245}", topic):
            # 249 at most in Kafka, and `.dlq` has to fit.
            raise Misconfigured(
                f"KAFKA_TOPICS: {topic!r} is no topic;"
                " use letters, digits and . _ - (245 at most), or a pattern that begins with ^"
            )
        elif topic.endswith(DLQ):
            raise Misconfigured(f"KAFKA_TOPICS: {topic!r} holds dead letters; put them back by `replay-dlq`")
    return topics


DLQ = ".dlq"
_STRATEGIES = ("range", "roundrobin")


def _assignment(text: str) -> str:
    names = _listed(text)
    if names != ("cooperative-sticky",) and (not names or set(names) - set(_STRATEGIES)):
        # librdkafka refuses to mix them: one protocol moves single partitions, the other one all of them at once.
        raise Misconfigured(
            f"KAFKA_ASSIGNMENT: {text!r} is neither cooperative-sticky nor made of range and roundrobin; all members of"
            " a group have to share one strategy"
        )
    return ",".join(names)


def _sources(text: str) -> dict[str, frozenset[str]]:
    allowed: dict[str, set[str]] = {}
    for part in _listed(text):
        topic, equals, source = (piece.strip() for piece in part.partition("="))
        if not equals or not source or not re.fullmatch(r"\*|[A-Za-z0-9._-]+", topic):
            raise Misconfigured(
                f"KAFKA_SOURCES: {part!r} is not written like payments=billing; separate several by commas, and name a"
                " topic again for each of its sources"
            )
        allowed.setdefault(topic, set()).add(source)
    return {topic: frozenset(sources) for topic, sources in allowed.items()}


def _client(path: str) -> dict[str, str]:
    if not path:
        return {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"KAFKA_CONFIG: {path} cannot be read: {error}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name:
            raise Misconfigured(f"KAFKA_CONFIG: {path}, line {number}: write it like security.protocol=SASL_SSL")
        if name in _OURS:
            raise Misconfigured(f"KAFKA_CONFIG: {path}, line {number}: {name} is not for you to set: {_OURS[name]}")
        found[name] = value
    return found


def _kind(text: str) -> str:
    try:
        with_extra([text])
    except Misconfigured as error:
        raise Misconfigured(str(error).replace("AUDIT_STREAM_KINDS", "KAFKA_EVENT_KIND")) from error
    return text


def _dlq_format(text: str) -> DlqFormat:
    for name in get_args(DlqFormat):
        if text == name:
            found: DlqFormat = name
            return found
    raise Misconfigured(f"KAFKA_DLQ_FORMAT: {text!r} is not one of {', '.join(get_args(DlqFormat))}")
