"""One row of the outbox, made into the event that the spine takes.

Postgres can hold what the spine's canonical form cannot: numbers that no double is, text that is not Unicode, JSON of
any depth. Such a value is sent as text, whole, instead of being rounded or refused:

    numeric 12345678901234567890.12  →  "12345678901234567890.12"
    json {"a": "\\ud800"}            →  "{\\"a\\": \\"\\\\ud800\\"}"
"""

import json
import re
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

ROW_IMAGES = ("new", "old", "primary_key")
# The spine takes 64 levels; the payload and the row are two of them.
DEEPEST_COLUMN = 62

# What may need a closer look: more digits than every double keeps (DBL_DIG is 15), large exponents, surrogates.
_SUSPICIOUS = re.compile(rb"[0-9.]{17}|[:,\[\s]-?[0-9.]+[eE][+-]?[0-9]{3}|\\u[dD][89a-fA-F]")


class Change(NamedTuple):
    id: int
    change_id: str
    event_kind: bytes
    source: bytes
    changed_at: str
    """RFC 3339, UTC."""
    payload: bytes
    """JSON as Postgres wrote it, in the encoding of the database where that is not known (SQL_ASCII)."""


class Outgoing(NamedTuple):
    """A change, ready to be sent."""

    id: int
    change_id: str
    event: bytes
    """The PublishRequest as JSON."""


def outgoing(change: Change) -> Outgoing:
    return Outgoing(change.id, change.change_id, as_event(change))


def as_event(change: Change) -> bytes:
    """The PublishRequest as JSON; the same bytes each time, since a retry must say the same."""
    return b'{"kind":%b,"source":%b,"timestamp":"%b","idempotency_key":"%b","payload":%b}' % (
        _quoted(change.event_kind),
        _quoted(change.source),
        change.changed_at.encode(),
        change.change_id.encode(),
        canonical_payload(change.payload),
    )


def canonical_payload(payload: bytes) -> bytes:
    """The payload as it is, or with what has no canonical form as text."""
    shallow = payload.count(b"{") + payload.count(b"[") <= DEEPEST_COLUMN
    if shallow and not _SUSPICIOUS.search(payload) and (payload.isascii() or _is_utf8(payload)):
        return payload
    try:
        found = json.loads(_text(payload), parse_float=_float, parse_int=_int, parse_constant=str)
    except RecursionError:
        return payload  # deeper than Python reads: the spine says so, and the dead letter keeps it
    for image in ROW_IMAGES:
        if image in found:
            found[image] = {name: _column(value) for name, value in found[image].items()}
    return _compact(found)


def _compact(value: Any) -> bytes:
    try:
        # Not escaped where that is possible: an event must not outgrow the spine's limit on its way.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _text(raw: bytes) -> str:
    # Bytes that are no UTF-8 become lone surrogates, which are then sent escaped (PEP 383).
    return raw.decode(errors="surrogateescape")


@lru_cache(maxsize=1024)
def _quoted(raw: bytes) -> bytes:
    return json.dumps(_text(raw)).encode()


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _float(text: str) -> float | str:
    number = float(text)
    return number if isfinite(number) and Decimal(repr(number)) == Decimal(text) else text


def _int(text: str) -> int | str:
    return int(text) if len(text) < 309 else text


def _column(value: Any) -> Any:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return json.dumps(value, ensure_ascii=False) if _is_deeper(value, DEEPEST_COLUMN) else value


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return any(isinstance(left, dict | list) for left in level)
