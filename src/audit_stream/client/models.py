"""What the server answers, typed, and the check that anyone can make of a receipt."""

from collections.abc import Mapping
from typing import Any

import msgspec

from audit_stream.chain import link_hash
from audit_stream.errors import ChainBroken, Refused
from audit_stream.event import canonical_text


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event of the chain. Handed to its producer, it is the receipt."""

    event_id: int
    timestamp: str
    kind: str
    source: str
    payload: dict[str, Any]
    prev_hash: str
    hash: str
    replayed: bool = False
    """The whole request was appended before, under the same idempotency keys: this is the first receipt."""


class Spooled(msgspec.Struct, frozen=True, kw_only=True):
    """The event is on this machine's disk, not yet in the chain. It keeps its place and is appended later, once."""

    idempotency_key: str
    path: str
    reason: str
    """Why it was not appended at once."""


Receipt = Event | Spooled


class Drained(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a drain of the spool did."""

    stored: int
    refused: int
    """Put aside for good in `PATH.refused`, each with its reason."""
    left: int
    reason: str | None
    """Why it stopped before the end."""
    retry_in_s: float = 0.0
    """Before that it is not worth asking a server again that is away."""


class Head(msgspec.Struct, frozen=True):
    event_id: int
    hash: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What recomputing every link showed."""

    valid: bool
    checked: int
    """How many events held."""
    first_break_at: int | None
    reason: str | None
    first: int
    head: Head
    """The last event that held: compare it with a checkpoint kept elsewhere."""
    indexes: str
    took_ms: float
    unchecked: str | None = None
    """Why the indexes were not checked; None when they were, or the server is an older one."""


class LastVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the server found when it last verified, asked or in the background."""

    valid: bool | None
    """None when the newest attempt could not tell."""
    checked: int
    first_break_at: int | None
    reason: str | None
    event_id: int
    """Up to here the chain held."""
    at: str
    whole_at: str | None
    """When all of the chain was last checked and held."""


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """The newest event that the server has noted outside Redis."""

    event_id: int | None
    hash: str | None
    trouble: str
    """Why the pin cannot be moved; empty when all is well."""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """How full the server's Redis is."""

    used_bytes: int
    limit_bytes: int
    days_until_full: float | None
    """At the rate of the last day; None when too little was appended to tell."""


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    last_event_id: int
    latest_hash: str | None
    chain: str
    ack: str
    """What a 201 of this server means."""
    hashing: str
    redis: str
    replicas: int = 0
    """Replicas of Redis that are connected."""
    capacity: Capacity | None = None
    """None where Redis does not say, or the server is an older one."""
    pin: Pin | None = None
    """None where the server keeps none."""
    subscribers: int
    batches: int
    lost_races: int
    index_trouble: str
    last_verdict: LastVerdict | None = None
    """None when nobody has verified yet, or the server is an older one."""


def check(receipt: Receipt | Mapping[str, Any] | bytes | str) -> bool:
    """Recompute the receipt's hash from its other fields; True when it is the one it carries.

    Takes an Event, or its JSON as a text or as parsed. Raises ChainBroken naming both hashes when they
    differ, and Refused for what is no event. Proves that the receipt agrees with itself; that the chain
    still holds this event, `get` and `verify` show.
    """
    event = _event(receipt)
    try:
        payload = canonical_text(event.payload)
        found = link_hash(
            event.event_id,
            event.timestamp.encode(),
            event.kind.encode(),
            event.source.encode(),
            payload,
            event.prev_hash.encode(),
        ).decode()
    except (ValueError, Refused) as error:
        raise ChainBroken(
            f"event #{event.event_id} has no hash at all: {error}", at=event.event_id, expected=event.hash
        ) from error
    if found != event.hash:
        raise ChainBroken(
            f"hash mismatch at event #{event.event_id}: it says {event.hash}, its content gives {found}",
            at=event.event_id,
            expected=event.hash,
            found=found,
        )
    return True


def _event(receipt: Receipt | Mapping[str, Any] | bytes | str) -> Event:
    if isinstance(receipt, Event):
        return receipt
    if isinstance(receipt, Spooled):
        raise Refused(f"the event {receipt.idempotency_key} is still in {receipt.path}: it has no hash yet")
    try:
        if isinstance(receipt, bytes | str):
            return msgspec.json.decode(receipt, type=Event)
        return msgspec.convert(dict(receipt), Event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"not an event: {error}") from error
