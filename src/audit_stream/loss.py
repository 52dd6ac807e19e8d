"""Accepting a loss: the only way on for a chain without events that were acknowledged.

A crash may follow each step, and running it again goes on from there:

    indexes rebuilt        the lost events are in none of them; nothing is appended to the chain yet
    keys forgotten         idempotency keys of lost events; a producer that sends one again gets it stored
    end set back           Redis gives the ids of the lost events again
    loss recorded          an event says what was lost. It is found when this runs again, and not appended twice
    pins moved             each names the recording event, and the lost head for the servers that still expect it

One record for each lost head: a pin file of another host may name another one, and then gets its own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from audit_stream.appender import Appender
from audit_stream.chain import START, Event, Head, verify
from audit_stream.errors import ChainBroken, Refused
from audit_stream.event import PublishRequest, draft
from audit_stream.pin import Pin, Pinned, give_up
from audit_stream.query import Filter, fetch, select
from audit_stream.reindex import reindex
from audit_stream.stream import NOTHING, Stream

SOURCE = "audit-stream"
KIND = "incident_filed"
MOST_RECORDS = 1000


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of the event that records a loss."""

    incident: str
    """`chain_truncated`: the chain ends before the lost head. `chain_forked`: another history has grown past it."""
    lost_from: int | None
    """The first event that is known to be lost; None where two histories part at an unknown place."""
    lost_to: int
    old_head: str | None
    """ID:HASH; None where no pin names it and only Redis knows that there was a later event."""
    new_head: str
    """ID:HASH of the event that the chain ended with when the loss was accepted."""
    reason: str | None = None


class Loss(NamedTuple):
    """What a chain is without."""

    to: Head
    """The head that the chain is to go on from."""
    old: Pin | None
    """The newest of the pinned heads that the chain is without."""
    written: int
    """The highest event_id that Redis gave, when the stream was cut where it is; else 0."""
    pins: Mapping[Path, Pinned]
    """The files that the chain contradicts."""
    stale: bool
    """The indexes hold events behind the head."""
    recorded: Event | None
    """The event that records this loss, from a run that did not come to its end."""

    def incident(self, reason: str | None = None) -> Incident:
        lost_to = max(self.written, self.old.event_id if self.old else 0)
        truncated = lost_to > self.to.event_id
        return Incident(
            incident="chain_truncated" if truncated else "chain_forked",
            lost_from=self.to.event_id + 1 if truncated else None,
            lost_to=lost_to,
            old_head=str(self.old) if self.old else None,
            new_head=text(self.to),
            reason=reason,
        )


def text(head: Head) -> str:
    return f"{head.event_id}:{head.hash.decode()}"


async def find_loss(stream: Stream, to: Head, pins: Mapping[Path, Pinned]) -> Loss:
    """Compare the chain with the pins; nothing is changed.

    Raises Refused when nothing is known to be lost, or the chain does not end with `to`; ChainBroken when it is
    damaged otherwise, which is not a loss to be accepted.
    """
    head = await stream.head()
    end = await stream.end(head.event_id, count=1, indexes=[stream.keys.time])
    written = end.written if end.written > head.event_id else 0
    missing = {path: pinned for path, pinned in pins.items() if await _is_missing(stream, pinned.pin, head)}
    if not missing and not written:
        known = ", ".join(f"{path} pins event #{pinned.pin.event_id}" for path, pinned in pins.items() if pinned.pin)
        what = f"{known}, and the chain has it" if known else "there is no pin, and Redis knows of no later event"
        raise Refused(f"nothing was lost: {what}. The chain ends with {text(head)}. Nothing was changed.")
    old = max((pinned.pin for pinned in missing.values() if pinned.pin), default=None)
    records = await _records(stream, to)
    if head != to and not records:
        raise Refused(f"--to: the chain ends with {text(head)}, and not with {text(to)}. Nothing was changed.")
    lengths, last = end.indexes[0]
    loss = Loss(to, old, written, missing, max(lengths, last) > head.event_id, None)
    old_head = loss.incident().old_head
    recorded = next((event for event, incident in records if incident.old_head == old_head), None)
    return loss._replace(recorded=recorded)


async def accept_loss(
    stream: Stream,
    loss: Loss,
    reason: str | None,
    on_progress: Callable[[int, int], None] = lambda done, expected: None,
) -> Event:
    """Record the loss on the chain and move the pins; return the recording event.

    Raises Unreachable, ChainBroken, Misconfigured for a pin that cannot be moved; then run it again.
    """
    recorded = loss.recorded
    if recorded is None:
        if loss.stale:
            await reindex(stream, on_progress)
        await stream.lost_end.forget_keys()
        if loss.written:
            await stream.lost_end.end_at(loss.to)
        recorded = await _record(stream, loss, reason)
    if loss.old:
        for path, pinned in loss.pins.items():
            give_up(path, pinned, Pin(recorded.event_id, recorded.hash.decode()), lost=loss.old)
    return recorded


async def _is_missing(stream: Stream, pin: Pin | None, head: Head) -> bool:
    """Whether the chain is without the pinned event. Raises ChainBroken when it is damaged there."""
    if pin is None:
        return False
    if pin.event_id > head.event_id:
        return True
    event = await stream.get(pin.event_id)
    if event is None or not verify([event], start=Head(event.event_id - 1, event.prev_hash)).valid:
        raise ChainBroken(
            f"event #{pin.event_id} is {'not there' if event is None else 'changed'}, and later ones are: the chain is"
            " damaged, which is more than a lost end. Restore a backup. Nothing was changed.",
            at=pin.event_id,
        )
    return event.hash.decode() != pin.hash


async def _records(stream: Stream, to: Head) -> list[tuple[Event, Incident]]:
    """The losses that were accepted with this `to`; empty when the chain does not hold that event."""
    if to != START:
        event = await stream.get(to.event_id)
        if event is None or event.hash != to.hash:
            return []
    wanted = Filter(KIND, SOURCE, after=to.event_id, limit=MOST_RECORDS)
    found = []
    async for page in fetch(stream, (await select(stream, wanted)).event_ids):
        for event in page:
            try:
                incident = msgspec.json.decode(event.payload, type=Incident)
            except msgspec.DecodeError:
                continue  # an incident of another kind
            if incident.new_head == text(to):
                found.append((event, incident))
    return found


async def _record(stream: Stream, loss: Loss, reason: str | None) -> Event:
    payload = msgspec.to_builtins(loss.incident(reason))
    # Under a key, so that two who accept the same loss at once append one record.
    key = f"{SOURCE}:accept-loss:{payload['old_head']}:{payload['new_head']}"
    request = PublishRequest(kind=KIND, source=SOURCE, payload=payload, idempotency_key=key)
    promised = NOTHING if loss.to == START else loss.to
    async with Appender(stream, promised=promised) as appender:
        (receipt,) = await appender.append([draft(request, frozenset([KIND]), key_is_ours=True)])
    return receipt.event
