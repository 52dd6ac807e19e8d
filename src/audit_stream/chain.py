"""The chain: how an event is hashed onto the one before it, and how anyone checks that it was.

This file is the whole proof. It needs Python's standard library and nothing else, does no I/O, and
can be copied to an auditor's machine as it is:

    import chain
    with open("events.ndjson", "rb") as lines:
        print(chain.verify(map(chain.parse, lines)))

The format is frozen. `hash` is the lower-case hex SHA-256 (FIPS 180-4) of the preimage: the canonical
JSON of the six other fields, keys sorted by code point, no white space, ASCII only, numbers as Python
writes them. Byte for byte it is `json.dumps(body, sort_keys=True, separators=(",", ":"))`:

    {"event_id":1,"kind":"other","payload":{"a":1},"prev_hash":"000…","source":"s","timestamp":"2026-…"}

`payload` is kept as the canonical text that was hashed, never as a parsed value: a text that is parsed
and written again is no longer evidence.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

GENESIS = b"0" * 64
"""The `prev_hash` of event 1."""


class Event(NamedTuple):
    """One event of the chain, as the bytes that are stored and hashed."""

    event_id: int
    timestamp: bytes
    """RFC 3339, ASCII."""
    kind: bytes
    source: bytes
    """UTF-8."""
    payload: bytes
    """Canonical JSON text of an object."""
    prev_hash: bytes
    hash: bytes


class Head(NamedTuple):
    """The newest event of a chain, or of the part of it that was checked."""

    event_id: int
    hash: bytes


START = Head(0, GENESIS)
"""The head of an empty chain."""


QUOTE, BACKSLASH = b'"\\'
"""As numbers: to look for one byte by its number takes a fifth of the time."""


class Verdict(NamedTuple):
    valid: bool
    checked: int
    """How many events held."""
    first_break_at: int | None
    """The event_id at which the first link fails."""
    reason: str | None
    head: Head
    """The last event that held; compare it with a checkpoint kept elsewhere."""


def link_hash(event_id: int, timestamp: bytes, kind: bytes, source: bytes, payload: bytes, prev: bytes) -> bytes:
    """Return the hash, 64 hex digits, of an event that follows the one whose hash is `prev`.

    Raises ValueError for a kind or source that is not UTF-8, or a timestamp that JSON would escape:
    without that, bytes could move from one field to its neighbour and leave the preimage as it was.
    """
    if QUOTE in timestamp or BACKSLASH in timestamp:
        raise ValueError(f"a timestamp needs no escapes: {timestamp!r}")
    return sha256(preimage(event_id, timestamp, kind, source, payload, prev)).hexdigest().encode()


def preimage(event_id: int, timestamp: bytes, kind: bytes, source: bytes, payload: bytes, prev: bytes) -> bytes:
    """Return the canonical JSON of the six fields: the bytes that are hashed."""
    return b'{"event_id":%d,"kind":%b,"payload":%b,"prev_hash":"%b","source":%b,"timestamp":"%b"}' % (
        event_id,
        quoted(kind),
        payload,
        prev,
        quoted(source),
        timestamp,
    )


@lru_cache(maxsize=4096)
def quoted(text: bytes) -> bytes:
    """Return UTF-8 `text` as an ASCII JSON string, quotes included. Kinds and sources repeat, hence the cache."""
    return json.dumps(text.decode()).encode()


def verify(events: Iterable[Event], *, start: Head = START) -> Verdict:
    """Recompute every link after `start`; stop at the first that does not hold.

    Proves order and content, not completeness: a chain whose newest events were cut off still
    verifies. Compare the returned head with a checkpoint kept elsewhere.
    """
    event_id, prev = start
    checked = 0
    for event in events:
        found_id, timestamp, kind, source, payload, found_prev, found_hash = event
        if found_id != event_id + 1:
            reason = f"event_id should be {event_id + 1}, got {found_id}"
        elif found_prev != prev:
            reason = f"prev_hash mismatch at event #{found_id}"
        elif found_hash != _hash_or_nothing(found_id, timestamp, kind, source, payload, prev):
            reason = f"hash mismatch at event #{found_id}"
        else:
            event_id, prev = found_id, found_hash
            checked += 1
            continue
        return Verdict(False, checked, event_id + 1, reason, Head(event_id, prev))
    return Verdict(True, checked, None, None, Head(event_id, prev))


def _hash_or_nothing(event_id: int, timestamp: bytes, kind: bytes, source: bytes, payload: bytes, prev: bytes) -> bytes:
    try:
        return link_hash(event_id, timestamp, kind, source, payload, prev)
    except ValueError:
        return b""  # such an event never had a hash


def parse(line: bytes | str) -> Event:
    """Read an event from its JSON object, as the API answers it and exports hold it.

    Raises ValueError when a field is missing or has the wrong type.
    """
    body = json.loads(line)
    try:
        if type(body["event_id"]) is not int:
            raise TypeError("event_id is not a whole number")
        return Event(
            body["event_id"],
            body["timestamp"].encode(),
            body["kind"].encode(),
            body["source"].encode(),
            json.dumps(body["payload"], sort_keys=True, separators=(",", ":")).encode(),
            body["prev_hash"].encode(),
            body["hash"].encode(),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event: {error!r}") from error
