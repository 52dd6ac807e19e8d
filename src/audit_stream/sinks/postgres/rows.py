"""An event as a row of audit_events.events."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from audit_stream.chain import preimage
from audit_stream.sinks.record import Record

COLUMNS = (
    "event_id",
    "audit_id",
    "correlation_id",
    "timestamp",
    "operation",
    "command",
    "args",
    "actor",
    "status",
    "duration_ms",
    "result_signature",
    "client_app",
    "trust_score",
    "purview_compatible",
    "metadata",
    "caller_ip_address",
    "federated_source",
    "query_intent",
    "bypass_llm",
    "schema_version",
    "tenant_id",
    "result_type",
    "kind",
    "source",
    "prev_hash",
    "hash",
    "canonical",
)
# It is a key, and a btree takes 2,700 bytes.
FEDERATED_SOURCE_LENGTH = 500

_encode = msgspec.json.Encoder().encode


def row_of(record: Record) -> tuple[Any, ...]:
    event = record.event
    return (
        event.event_id,
        text(record.audit_id),
        text(record.correlation_id),
        record.time_text,
        text(record.operation),
        text(record.command),
        None if record.args is None else jsonb(record.args),
        text(record.actor),
        text(record.status),
        record.duration_ms,
        text(record.result_signature),
        text(record.client_app),
        record.trust_score,
        record.purview_compatible,
        jsonb(record.metadata),
        text(record.caller_ip_address),
        federated_source(record),
        text(record.query_intent),
        record.bypass_llm,
        text(record.schema_version),
        text(record.tenant_id),
        text(record.result),
        event.kind.decode(),
        text(event.source.decode()),
        event.prev_hash.decode(),
        event.hash.decode(),
        preimage(*event[:6]),
    )


class Seen(NamedTuple):
    """What a batch says of one federated source."""

    federated_source: str
    events: int
    first_event_id: int
    last_event_id: int
    first_seen: str
    last_seen: str


def federated_sources(records: Iterable[Record]) -> list[Seen]:
    seen: dict[str, Seen] = {}
    for record in records:
        if name := federated_source(record):
            at, event_id = record.time_text, record.event.event_id
            known = seen.get(name) or Seen(name, 0, event_id, event_id, at, at)
            seen[name] = Seen(
                name,
                known.events + 1,
                known.first_event_id,
                event_id,
                min(known.first_seen, at),
                max(known.last_seen, at),
            )
    return list(seen.values())


def federated_source(record: Record) -> str | None:
    return text((record.federated_source or "")[:FEDERATED_SOURCE_LENGTH]) or None


# --- what Postgres does not take: NUL in texts, and lone surrogates. The canonical bytes have them still.


def text(value: str | None) -> str | None:
    if value is None or (value.isascii() and "\0" not in value):
        return value
    return value.replace("\0", "�").encode("utf-8", "replace").decode()


def jsonb(value: Any) -> str:
    try:
        encoded = _encode(value)
    except UnicodeEncodeError:
        encoded = b"\\u0000"
    return json.dumps(_cleaned(value)) if b"\\u0000" in encoded else encoded.decode()


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {text(name): _cleaned(inner) for name, inner in value.items()}
    return [_cleaned(inner) for inner in value] if isinstance(value, list) else value
