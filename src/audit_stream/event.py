"""What a producer hands in, the canonical text made of it, and the JSON of an event.

A PublishRequest is turned into a Draft once, at ingest; decoding.py reads it. From there on
only the Draft's bytes matter: they are hashed, stored, verified and spliced into every answer.
"""

import json
import re
import time
from collections.abc import Sequence, Set
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain as flatten
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from audit_stream.chain import BACKSLASH, QUOTE, Event, quoted
from audit_stream.errors import Refused
from audit_stream.kinds import unknown_kind
from audit_stream.timestamps import check_timestamp

MAX_NESTING = 64
MAX_SOURCE_LENGTH = 256
MAX_KEY_LENGTH = 255
RESERVED_KEYS = ("cloudevent:", "audit-stream:")
"""Idempotency keys that the server makes itself begin so, and no producer's."""
LF, CR = b"\n\r"

IdempotencyKey = Annotated[str, Meta(min_length=1, max_length=MAX_KEY_LENGTH)]


class PublishRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One event as a producer hands it in."""

    kind: str
    source: Annotated[
        str,
        Meta(min_length=1, max_length=MAX_SOURCE_LENGTH, description="Producing repository or service."),
    ]
    payload: Annotated[dict[str, Any], Meta(description="Any JSON object, nested 64 deep at most.")] = {}
    timestamp: Annotated[
        str | None,
        Meta(description="RFC 3339 with offset, kept verbatim; the server's UTC now when left out."),
    ] = None
    idempotency_key: Annotated[
        IdempotencyKey | None,
        Meta(description="A source's same key with the same content is appended once."),
    ] = None


class Draft(NamedTuple):
    """A PublishRequest that passed: canonical bytes, ready to be linked. Not yet an event."""

    timestamp: bytes
    kind: bytes
    source: bytes
    payload: bytes
    stamped: bool
    """The server gave the timestamp, so a retry of the same request carries another one."""
    once: bytes
    """Idempotency key, or nothing."""

    def says_the_same_as(self, other: "Event | Draft") -> bool:
        """Whether a retry of the request that made `other` would look like this draft."""
        return (
            self.payload == other.payload
            and self.kind == other.kind
            and self.source == other.source
            and (self.stamped or self.timestamp == other.timestamp)
        )

    @property
    def size_bytes(self) -> int:
        return len(self.payload) + len(self.source) + len(self.once) + 256


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False)


def draft(request: PublishRequest, kinds: Set[str], *, once: str | None = None, key_is_ours: bool = False) -> Draft:
    """Make the canonical text. Raises Refused, naming the field, for what has none or breaks the schema.

    `once` is the idempotency key from the request's header; it may repeat the body's, not contradict it.
    `key_is_ours` is for a key that was made here: only such a one may begin as RESERVED_KEYS do.
    """
    if request.kind not in kinds:
        raise Refused(unknown_kind(request.kind, kinds), field="kind")
    key = request.idempotency_key
    if once is not None and key is not None and once != key:
        raise conflicting_keys()
    key = key or once or ""
    if key.startswith(RESERVED_KEYS) and not key_is_ours:
        raise Refused(
            f"idempotency_key: {key!r} begins with {key.partition(':')[0]}:, as the keys do that the server makes"
            " itself; begin yours with something else",
            field="idempotency_key",
        )
    timestamp = request.timestamp
    return Draft(
        _now() if timestamp is None else check_timestamp(timestamp, field="timestamp").encode(),
        request.kind.encode(),
        request.source.encode(),
        canonical_text(request.payload),
        timestamp is None,
        key.encode(),
    )


def conflicting_keys() -> Refused:
    return Refused("idempotency_key: the header and the body name two different keys", field="idempotency_key")


def _now() -> bytes:
    """What `datetime.now(UTC).isoformat(timespec="milliseconds")` gives, in a quarter of the time."""
    ms = int(time.time() * 1000)
    return b"%b.%03d+00:00" % (_second(ms // 1000), ms % 1000)


@lru_cache(maxsize=2)
def _second(unix_s: int) -> bytes:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()[:19].encode()


def canonical_text(payload: dict[str, Any]) -> bytes:
    """Return `json.dumps(payload, sort_keys=True, separators=(",", ":"))` as ASCII bytes.

    Raises Refused for a payload that other readers could not take: nested beyond 64, or with an
    integer out of the range of a double.
    """
    try:
        text = _canonical.encode(payload).encode("ascii")
    except RecursionError as error:
        raise too_deep() from error
    # Neither walk is made unless the text shows that it could find something.
    if text.count(b"{") + text.count(b"[") > MAX_NESTING:
        _check_nesting(payload)
    if len(text) > 308 and _LONG_NUMBER.search(text):
        _check_numbers(payload)
    return text


_LONG_NUMBER = re.compile(rb"(?<![0-9])[0-9]{309}")  # the largest double has 309 digits
# Looked for at the beginning of a number alone: from each digit on, it would take 309 steps a byte.


def _levels(payload: Any) -> Any:
    level: list[Any] = [payload]
    while level:
        yield level
        children = flatten.from_iterable(v.values() if type(v) is dict else v for v in level)
        level = [child for child in children if type(child) is dict or type(child) is list]


def _check_nesting(payload: dict[str, Any]) -> None:
    for depth, _ in enumerate(_levels(payload), start=1):
        if depth > MAX_NESTING:
            raise too_deep()


def _check_numbers(payload: dict[str, Any]) -> None:
    for level in _levels(payload):
        for value in flatten.from_iterable(v.values() if type(v) is dict else v for v in level):
            if type(value) is int:
                try:
                    float(value)
                except OverflowError as error:
                    raise Refused("payload: a number is out of the range of a double", field="payload") from error


def too_deep() -> Refused:
    return Refused(f"payload: nested deeper than {MAX_NESTING} levels", field="payload")


def to_json(event: Event) -> bytes:
    """Return the event as a JSON object, its stored payload text spliced in unchanged."""
    timestamp = event.timestamp
    return b'{"event_id":%d,"timestamp":%b,"kind":%b,"source":%b,"payload":%b,"prev_hash":"%b","hash":"%b"}' % (
        event.event_id,
        quoted(timestamp) if QUOTE in timestamp or BACKSLASH in timestamp else b'"%b"' % timestamp,
        quoted(event.kind),
        quoted(event.source),
        event.payload,
        event.prev_hash,
        event.hash,
    )


_stored = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_readable(event: Event) -> bool:
    """Whether `to_json` gives JSON on one line. What we stored always does; what was tampered with may not."""
    try:
        _stored.decode(event.payload)
        event.source.decode()
        plain = event.kind.decode().isprintable() and event.timestamp.decode().isprintable()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    hashes = event.prev_hash.isalnum() and event.hash.isalnum()
    return plain and hashes and event.payload.isascii() and LF not in event.payload and CR not in event.payload


def to_json_array(events: Sequence[Event]) -> bytes:
    return b"[%b]" % b",".join(map(to_json, events))
