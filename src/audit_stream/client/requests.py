"""What a producer hands in, made into the bytes that are sent, sent again and spooled: always the same ones."""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import msgspec

from audit_stream.client.payloads import canonical_payload
from audit_stream.decoding import decode
from audit_stream.errors import Refused, TooLarge
from audit_stream.event import PublishRequest
from audit_stream.timestamps import check_timestamp

# The server's limits for one batch, which it writes whole or not at all.
BATCH_EVENTS = 2_000
BATCH_BYTES = 4 * 1024 * 1024

Split = Literal["never", "when larger"]


class Outgoing(NamedTuple):
    key: str
    """Its idempotency key, the same however often it is sent."""
    text: bytes
    """The PublishRequest as JSON, on one line."""


def outgoing(request: PublishRequest | Mapping[str, Any], *, stamp: bool) -> Outgoing:
    """Make the text of one event. Raises Refused for what every server would refuse, so it is never spooled.

    `stamp`: give it this machine's time now where it has none, so that it keeps it however late it is appended.
    """
    fields = msgspec.structs.asdict(request) if isinstance(request, PublishRequest) else dict(request)
    timestamp = fields.get("timestamp")
    if timestamp is None and stamp:
        timestamp = datetime.now(UTC).isoformat(timespec="milliseconds")
    key = fields.get("idempotency_key") or str(uuid4())
    fields |= {
        "payload": msgspec.Raw(canonical_payload(fields.get("payload"))),
        "timestamp": timestamp.isoformat() if isinstance(timestamp, datetime) else timestamp,
        "idempotency_key": key,
    }
    text = _json({name: value for name, value in fields.items() if value is not None})
    decoded = decode(text)
    if decoded.timestamp is not None:
        check_timestamp(decoded.timestamp, field="timestamp")
    return Outgoing(key, text)


def _json(fields: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(fields)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise Refused(f"the event cannot be written as JSON: {error}") from error


def chunks(events: Iterable[Outgoing], *, split: Split) -> Iterator[list[Outgoing]]:
    """Group the events into requests within the server's limits. Raises TooLarge when `split` forbids a second."""
    whole = list(events)
    chunk, size_bytes = list[Outgoing](), 0
    for event in whole:
        if chunk and (len(chunk) == BATCH_EVENTS or size_bytes + len(event.text) + 1 > BATCH_BYTES):
            if split == "never":
                raise TooLarge(
                    f"a batch of {len(whole)} events is over the limit of {BATCH_EVENTS} events or {BATCH_BYTES} bytes;"
                    ' split="when larger" sends it in parts, each of them whole or not at all'
                )
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(event)
        size_bytes += len(event.text) + 1
    if chunk:
        yield chunk


def key_of(line: bytes) -> str | None:
    """The idempotency key of an event's text; None for what is no whole event."""
    try:
        key = json.loads(line)["idempotency_key"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return key if isinstance(key, str) else None
