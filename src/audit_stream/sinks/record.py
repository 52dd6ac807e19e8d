"""The audit event in an event of the chain: the fields that compliance formats are made of.

The payload of an audit event names them itself. Any other payload is projected as well, with these in place of what
it does not say:

    audit_id         the event_id, as text
    timestamp        the event's
    operation        the kind
    actor            `db_user`, as the Postgres relay has it; else none
    status           by the kind: `…_denied`, `…_failed`, `…_tampered` failed, `…_required_approval` is pending,
                     what is left is a success
    client_app       the source
    tenant_id        TENANT_ID of the projection
    purview_compatible   true
    metadata         its `metadata` and all other fields of the payload, in one object; where two have the same
                     name, `metadata` stays an object in the object

Nothing is dropped: what a field cannot hold (`"duration_ms":"long"`) stands in the metadata under its name.
"""

import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from audit_stream.chain import Event
from audit_stream.errors import Refused
from audit_stream.timestamps import instant

_decode = msgspec.json.Decoder(dict[str, Any]).decode

_TEXTS = (
    "audit_id",
    "correlation_id",
    "operation",
    "command",
    "actor",
    "status",
    "result_signature",
    "client_app",
    "caller_ip_address",
    "federated_source",
    "query_intent",
    "schema_version",
    "tenant_id",
)
_NUMBERS = ("duration_ms", "trust_score")
_FLAGS = ("purview_compatible", "bypass_llm")

_RESULTS = {
    "Success": ("success", "succeeded", "successful", "ok", "completed", "complete", "done", "allowed", "approved"),
    "Failure": ("failure", "failed", "fail", "error", "denied", "rejected", "blocked", "timeout", "cancelled"),
    "Pending": ("pending", "started", "in_progress", "running", "queued", "waiting"),
}
_RESULT_OF = {status: result for result, statuses in _RESULTS.items() for status in statuses}


class Record(NamedTuple):
    """One event as the sinks take it."""

    event: Event
    time: datetime
    """UTC."""
    audit_id: str
    correlation_id: str | None
    operation: str
    command: str | None
    args: Any
    actor: str | None
    status: str
    result: str
    """Success, Failure or Pending; the status itself when it is none that is known."""
    duration_ms: float | None
    result_signature: str | None
    client_app: str
    trust_score: float | None
    purview_compatible: bool
    metadata: dict[str, Any]
    caller_ip_address: str | None
    federated_source: str | None
    query_intent: str | None
    bypass_llm: bool | None
    schema_version: str | None
    tenant_id: str | None

    @property
    def time_text(self) -> str:
        """RFC 3339 with microseconds, as in `2026-05-15T03:14:15.123000Z`."""
        return f"{self.time.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def record_of(event: Event, tenant_id: str | None = None) -> Record:
    """Read the payload. Takes every event that a chain can hold."""
    payload = _payload(event)
    kind, source = event.kind.decode(), event.source.decode()
    texts = {name: _text(payload.pop(name, None)) for name in _TEXTS}
    numbers = {name: _taken(payload, name, int, float) for name in _NUMBERS}
    flags = {name: _taken(payload, name, bool) for name in _FLAGS}
    args = payload.pop("args", None)
    said = payload.get("timestamp")
    time = _instant(said)
    if time is not None:
        del payload["timestamp"]
    own = payload.get("metadata")
    if isinstance(own, dict) and not own.keys() & payload.keys():
        del payload["metadata"]
        payload |= own
    status = texts["status"] or _status_of(kind)
    return Record(
        event,
        time=time or time_of(event),
        audit_id=texts["audit_id"] or str(event.event_id),
        correlation_id=texts["correlation_id"],
        operation=texts["operation"] or kind,
        command=texts["command"],
        args=args,
        actor=texts["actor"] or _text(payload.get("db_user")),
        status=status,
        result=_RESULT_OF.get(status.lower(), status),
        duration_ms=numbers["duration_ms"],
        result_signature=texts["result_signature"],
        client_app=texts["client_app"] or source,
        trust_score=numbers["trust_score"],
        purview_compatible=flags["purview_compatible"] is not False,
        metadata=payload,
        caller_ip_address=texts["caller_ip_address"],
        federated_source=texts["federated_source"],
        query_intent=texts["query_intent"],
        bypass_llm=flags["bypass_llm"],
        schema_version=texts["schema_version"],
        tenant_id=texts["tenant_id"] or tenant_id,
    )


def _payload(event: Event) -> dict[str, Any]:
    try:
        return _decode(event.payload)
    except msgspec.DecodeError:
        # A lone surrogate, which only Python's own reader takes.
        found: dict[str, Any] = json.loads(event.payload)
        return found


def time_of(event: Event) -> datetime:
    """The event's own timestamp; the beginning of time for one that UTC has no year for."""
    return _instant(event.timestamp.decode()) or datetime.min.replace(tzinfo=UTC)


def day_in(time: datetime) -> str:
    """`20260515`."""
    return f"{time.year:04d}{time.month:02d}{time.day:02d}"


def _text(value: Any) -> str | None:
    """A text as it is; anything else as JSON, so that an actor of 42 is not nobody."""
    if value is None or isinstance(value, str):
        return value or None
    return json.dumps(value, separators=(",", ":"))


def _taken(payload: dict[str, Any], name: str, *types: type) -> Any:
    value = payload.get(name)
    if value is None or type(value) in types:
        payload.pop(name, None)
        return value
    return None


def _instant(text: Any) -> datetime | None:
    """A time without an offset is UTC: `datetime.utcnow().isoformat()` is what many producers send."""
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    try:
        return instant(text, field="timestamp")  # it knows leap seconds
    except Refused:
        return None


def _status_of(kind: str) -> str:
    if kind.endswith(("_denied", "_failed", "_tampered")):
        return "failure"
    return "pending" if kind.endswith("_required_approval") else "success"
