"""The bodies of the answers, for the OpenAPI document. The bytes themselves are made elsewhere."""

from datetime import UTC, datetime
from time import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from audit_stream.capacity import Capacity
from audit_stream.chain import Verdict
from audit_stream.keeper import PinKeeper
from audit_stream.verdicts import LastVerdict, summary

Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="SHA-256, lower-case hex")]
EventId = Annotated[int, Meta(ge=1)]
Indexes = Literal["agree", "disagree", "not checked"]


class EventBody(msgspec.Struct):
    """An event of the chain. Handed to its producer, it is the receipt."""

    event_id: EventId
    timestamp: Annotated[str, Meta(description="RFC 3339 with offset")]
    kind: str
    source: str
    payload: dict[str, Any]
    prev_hash: Hash
    hash: Hash


class HeadBody(msgspec.Struct):
    event_id: Annotated[int, Meta(ge=0)]
    hash: Hash


class VerdictBody(msgspec.Struct):
    """What recomputing every link showed."""

    valid: bool
    checked: Annotated[int, Meta(ge=0, description="How many events held")]
    first_break_at: Annotated[int | None, Meta(description="The event_id at which the first link fails")]
    reason: str | None
    first: Annotated[int, Meta(description="The event that checking began at")]
    head: Annotated[HeadBody, Meta(description="The last event that held: compare it with a checkpoint kept elsewhere")]
    indexes: Annotated[Indexes, Meta(description="Whether the indexes agree with the chain")]
    took_ms: float
    unchecked: Annotated[str | None, Meta(description="Why the indexes were not checked; null when they were")] = None

    @classmethod
    def of(cls, verdict: Verdict, first: int, indexes: Indexes, took_s: float, unchecked: str | None) -> "VerdictBody":
        valid, checked, first_break_at, reason, head = verdict
        hash_ = head.hash.decode(errors="replace")
        return cls(
            valid,
            checked,
            first_break_at,
            reason,
            first,
            HeadBody(head.event_id, hash_),
            indexes,
            round(took_s * 1e3, 1),
            unchecked,
        )


class ProgressBody(msgspec.Struct):
    """A line of a verification that is asked for as application/x-ndjson; the verdict is the last line."""

    checked: int
    expected: int


class LastVerdictBody(msgspec.Struct):
    """What was found when a server of this chain last verified, asked or in the background."""

    valid: Annotated[bool | None, Meta(description="null: the newest attempt could not tell")]
    checked: Annotated[int, Meta(ge=0, description="How many events held, of those that were checked then")]
    first_break_at: int | None
    reason: str | None
    event_id: Annotated[int, Meta(ge=0, description="Up to here the chain held")]
    at: Annotated[str, Meta(description="When, RFC 3339")]
    whole_at: Annotated[str | None, Meta(description="When the whole chain was last checked and held")]

    @classmethod
    def of(cls, last: LastVerdict) -> "LastVerdictBody":
        return cls(
            valid=last.valid,
            checked=last.checked,
            first_break_at=last.first_break_at,
            reason=last.reason,
            event_id=last.head[0],
            at=_moment(last.at),
            whole_at=None if last.whole_at is None else _moment(last.whole_at),
        )


class ChainBody(msgspec.Struct):
    """The last verdict in short. Without the reason: readiness is shown to those who have no token."""

    verdict: Literal["intact", "broken", "unknown", "never verified"]
    summary: Annotated[str, Meta(description="The same for people: intact up to #4121, 3 min ago")]
    event_id: Annotated[int | None, Meta(description="Up to here the chain held")] = None
    first_break_at: Annotated[int | None, Meta(description="The event_id at which the first link fails")] = None
    at: Annotated[str | None, Meta(description="When that was found, RFC 3339")] = None

    @classmethod
    def of(cls, last: LastVerdict | None) -> "ChainBody":
        if last is None:
            return cls("never verified", "never verified")
        verdict: Literal["intact", "broken", "unknown"]
        verdict = "unknown" if last.valid is None else "intact" if last.valid else "broken"
        event_id, broken_at = last.head[0], last.first_break_at
        text = summary(last.valid, event_id, broken_at, time() - last.at)
        return cls(verdict, text, event_id, broken_at, _moment(last.at))


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")


class PinBody(msgspec.Struct):
    """The newest event that is noted outside Redis (AUDIT_STREAM_PIN)."""

    event_id: Annotated[int | None, Meta(description="null until there is one")]
    hash: Hash | None
    trouble: Annotated[str, Meta(description="Why the pin cannot be moved; empty when all is well")]

    @classmethod
    def of(cls, keeper: PinKeeper) -> "PinBody":
        event_id, hash_ = keeper.pin or (None, None)
        return cls(event_id, hash_, keeper.trouble)


class CapacityBody(msgspec.Struct):
    """How full Redis is, as of a minute ago at most."""

    used_bytes: int
    limit_bytes: Annotated[int, Meta(description="maxmemory, or where that is 0 the memory of the machine")]
    days_until_full: Annotated[
        float | None, Meta(description="At the rate of the last day; null when too little was appended to tell")
    ]

    @classmethod
    def of(cls, capacity: Capacity) -> "CapacityBody":
        days = capacity.days_until_full
        return cls(capacity.used_bytes, capacity.limit_bytes, None if days is None else round(days, 1))


class StatsBody(msgspec.Struct):
    count: int
    last_event_id: int
    latest_hash: Hash | None
    chain: str
    ack: str
    hashing: Literal["checked", "script"]
    redis: str
    replicas: Annotated[int, Meta(description="Replicas of Redis that are connected")]
    capacity: Annotated[CapacityBody | None, Meta(description="null where Redis does not say")]
    pin: Annotated[PinBody | None, Meta(description="null where none is kept")]
    subscribers: Annotated[int, Meta(description="Open streams on this replica")]
    batches: Annotated[int, Meta(description="Script calls that this replica shared among its producers")]
    lost_races: Annotated[int, Meta(description="Batches hashed again because another replica was first")]
    index_trouble: Annotated[str, Meta(description="Index writes that Redis refused; empty when all is well")]
    last_verdict: Annotated[LastVerdictBody | None, Meta(description="null: nobody has verified yet")]


class StatusBody(msgspec.Struct):
    status: Literal["ok"]


class ReadyBody(msgspec.Struct):
    status: Literal["ready"]
    chain: Annotated[ChainBody, Meta(description="The last verdict; a server stays ready when it is a break")]


class InfoBody(msgspec.Struct):
    name: str
    version: str
    description: str
    kinds: list[str]
    endpoints: dict[str, str]


class MistakeBody(msgspec.Struct):
    detail: str
    field: Annotated[str | None, Meta(description="The field that is wrong; null: the event as a whole")]


class ProblemBody(msgspec.Struct, omit_defaults=True):
    """Problem details (RFC 9457)."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    field: Annotated[str | None, Meta(description="The field that is wrong")] = None
    index: Annotated[int | None, Meta(description="Its place in the batch, from 0")] = None
    errors: Annotated[list[MistakeBody] | None, Meta(description="All that is wrong with the event, one by one")] = None
    at: Annotated[int | None, Meta(description="The event at which the chain is damaged")] = None
    advice: Annotated[str | None, Meta(description="What an operator can do about that")] = None
    reasons: list[str] | None = None
    chain: Annotated[ChainBody | None, Meta(description="The last verdict, where readiness was asked for")] = None
