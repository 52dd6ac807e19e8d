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
"""A header of records that were put back: where the record first was, so that it is still the same one."""

Header = tuple[str, bytes | None]


class Unusable(Exception):
    """The record is neither a PublishRequest nor an audit event, and never will be."""


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
        """What tells it from every other record: also from that of a topic which was deleted and made again."""
        for name, value in reversed(self.headers):
            if name == ORIGIN and value:
                return value.decode(errors="replace")
        return f"kafka:{cluster}:{self.topic}:{self.partition}:{self.offset}:{self.timestamp_ms}"


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


def as_event(record: Record, kind: str, cluster: str) -> Made:
    """Raises Unusable, with the reason."""
    if record.value is None:
        raise Unusable("the record has no value (a tombstone)")
    try:
        peeked = _peek.decode(record.value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unusable(f"not a JSON object: {error}") from error
    try:
        if peeked.kind is not msgspec.UNSET or peeked.payload is not msgspec.UNSET:
            return Made(_of_request(record, cluster), ours=False)
        return Made(_of_audit_event(record, kind, cluster), ours=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = "PublishRequest" if peeked.kind is not msgspec.UNSET else "audit event"
        raise Unusable(f"no {what}: {error}") from error


def _of_request(record: Record, cluster: str) -> bytes:
    request = _request.decode(record.value or b"")
    request.timestamp = request.timestamp or _written_at(record)
    request.idempotency_key = request.idempotency_key or _key(record.origin(cluster))
    return _json.encode(request)


def _of_audit_event(record: Record, kind: str, cluster: str) -> bytes:
    value = record.value or b""
    event = _audit_event.decode(value)
    timestamp = event.timestamp or _written_at(record)
    fields = {
        "kind": kind,
        "source": event.client_app or record.topic,
        "idempotency_key": _key(event.audit_id or record.origin(cluster)),
    }
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


def _key(text: str) -> str:
    return text if len(text) <= MAX_KEY_LENGTH else f"sha256:{sha256(text.encode()).hexdigest()}"


def _known(value: Any) -> Any:
    assert value is not None  # of a message that is no error
    return value
