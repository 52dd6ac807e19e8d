"""One record of a topic, made into the event that the spine takes: the same bytes each time it is read.

A record is a PublishRequest, when it has `kind` or `payload`, or else an audit event, which becomes the payload of an
event, as it stands. Fields of an audit event that are not known here (a later `schema_version`) stay in it.
"""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from audit_stream.event import MAX_KEY_LENGTH

ORIGIN = "audit-stream.origin"
"""A header of records that were put back: where the record first was, so that it is still the same one.

Whoever writes to the topic can write it. So it is believed for a place of the same topic alone, and makes a key only
together with the value: no record can take the key of another topic's record, or of one with other content.
"""

Header = tuple[str, bytes | None]


class Unusable(Exception):
    """The record will never be an event: it is none, or its topic may not bring it."""


class Record(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: list[Header]

    @classmethod
    def of(cls, message: Message) -> "Record":
        kind, at_ms = message.timestamp()
        headers: Any = message.headers() or []
        return cls(
            _known(message.topic()),
            _known(message.partition()),
            _known(message.offset()),
            None if kind == TIMESTAMP_NOT_AVAILABLE else at_ms,
            message.key(),
            message.value(),
            headers,
        )

    @property
    def place(self) -> str:
        return f"{self.topic} [{self.partition}] at offset {self.offset}"

    @property
    def size_bytes(self) -> int:
        return len(self.value or b"") + 512

    def origin(self, cluster: str) -> str:
        """Where the record first was: what tells it from every other one, also of a topic that was made again."""
        return self._put_back(cluster) or self._here(cluster)

    def own_key(self, cluster: str) -> str:
        """The idempotency key of a record that names none."""
        origin = self._put_back(cluster)
        return f"{origin}:{sha256(self.value or b'').hexdigest()}" if origin else self._here(cluster)

    def _here(self, cluster: str) -> str:
        return f"{self.scope(cluster)}{self.partition}:{self.offset}:{self.timestamp_ms}"

    def _put_back(self, cluster: str) -> str | None:
        for name, value in reversed(self.headers):
            if name == ORIGIN and value:
                origin = value.decode(errors="replace")
                return origin if origin.startswith(self.scope(cluster)) else None
        return None

    def scope(self, cluster: str) -> str:
        """What all keys of a topic begin with; no topic's name holds a colon."""
        return f"kafka:{cluster}:{self.topic}:"


class Made(NamedTuple):
    event: bytes
    """The PublishRequest as JSON."""
    ours: bool
    """The kind is the one that is configured here, not one that the record names."""


class _Peek(msgspec.Struct):
    kind: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _PublishRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    kind: str
    source: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    timestamp: str | None = None
    idempotency_key: str | None = None


class AuditEvent(msgspec.Struct):
    """The schema that producers of audit events agree on; only `operation` has to be there."""

    operation: str
    audit_id: str | None = None
    correlation_id: str | None = None
    timestamp: str | None = None
    command: str | None = None
    args: msgspec.Raw = msgspec.Raw(b"null")
    actor: str | None = None
    status: str | None = None
    duration_ms: int | float | None = None
    result_signature: str | int | None = None
    client_app: str | None = None
    trust_score: int | float | None = None
    purview_compatible: bool | None = None
    metadata: dict[str, msgspec.Raw] | None = None
    caller_ip_address: str | None = None
    federated_source: str | None = None
    query_intent: str | None = None
    bypass_llm: bool | None = None
    schema_version: str | int | float | None = None
    tenant_id: str | None = None


_peek = msgspec.json.Decoder(_Peek)
_request = msgspec.json.Decoder(_PublishRequest)
_audit_event = msgspec.json.Decoder(AuditEvent)
_json = msgspec.json.Encoder()


def as_event(record: Record, kind: str, cluster: str, sources: frozenset[str] | None = None) -> Made:
    """Make the event. `sources`: those that the topic may bring; None: any. Raises Unusable, with the reason."""
    if record.value is None:
        raise Unusable("the record has no value (a tombstone)")
    try:
        peeked = _peek.decode(record.value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unusable(f"not a JSON object: {error}") from error
    try:
        if peeked.kind is not msgspec.UNSET or peeked.payload is not msgspec.UNSET:
            return Made(_of_request(record, cluster, sources), ours=False)
        return Made(_of_audit_event(record, kind, cluster, sources), ours=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = "PublishRequest" if peeked.kind is not msgspec.UNSET else "audit event"
        raise Unusable(f"no {what}: {error}") from error


def _of_request(record: Record, cluster: str, sources: frozenset[str] | None) -> bytes:
    request = _request.decode(record.value or b"")
    _check_source(request.source, record.topic, sources)
    request.timestamp = request.timestamp or _written_at(record)
    request.idempotency_key = _key(record, cluster, "key", request.idempotency_key)
    return _json.encode(request)


def _of_audit_event(record: Record, kind: str, cluster: str, sources: frozenset[str] | None) -> bytes:
    value = record.value or b""
    event = _audit_event.decode(value)
    source = event.client_app or record.topic
    _check_source(source, record.topic, sources)
    timestamp = event.timestamp or _written_at(record)
    fields = {"kind": kind, "source": source, "idempotency_key": _key(record, cluster, "audit_id", event.audit_id)}
    if timestamp is not None:
        fields["timestamp"] = _with_offset(timestamp)
    # Spliced, not encoded again: what the record says is what the chain holds.
    return b'%b,"payload":%b}' % (_json.encode(fields)[:-1], value)


def _written_at(record: Record) -> str | None:
    if record.timestamp_ms is None:
        return None
    return datetime.fromtimestamp(record.timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _with_offset(timestamp: str) -> str:
    """A time that does not say where is taken for UTC, as `datetime.utcnow().isoformat()` means it."""
    if timestamp[-1:] in "Zz" or "+" in timestamp[10:] or "-" in timestamp[10:]:
        return timestamp
    return f"{timestamp}+00:00"


def _check_source(source: str, topic: str, sources: frozenset[str] | None) -> None:
    if sources is not None and source not in sources:
        raise Unusable(
            f"the topic {topic} may not bring events of the source {source!r}: KAFKA_SOURCES allows it"
            f" {', '.join(sorted(sources))}"
        )


def _key(record: Record, cluster: str, name: str, named: str | None) -> str:
    # Bound to the topic, so that nobody who may write to one topic takes the key of another one's record.
    text = f"{record.scope(cluster)}{name}:{named}" if named else record.own_key(cluster)
    return text if len(text) <= MAX_KEY_LENGTH else f"sha256:{sha256(text.encode()).hexdigest()}"


def _known(value: Any) -> Any:
    assert value is not None  # of a message that is no error
    return value
