"""What Redis answers, read: entries of the events stream, and of the index by commit time."""

from typing import Any, NamedTuple

from audit_stream.chain import START, Event, Head
from audit_stream.errors import ChainBroken
from audit_stream.event import is_readable

FIELDS = [b"timestamp", b"kind", b"source", b"payload", b"prev_hash", b"hash"]
"""Of an entry of the events stream, in this order."""

LAST_SEQUENCE = 2**64 - 1
"""The id behind every other that begins with the same number ends so."""


class Page(NamedTuple):
    events: list[Event]
    """Up to the first entry that is not ours."""
    foreign: ChainBroken | None
    """That entry, where there is one."""
    last_entry: bytes = b""
    """Id of the last entry read, ours or not; nothing on an empty page."""

    def unbroken(self) -> list[Event]:
        """The events; raises ChainBroken when an entry among them is not ours, or cannot be shown as JSON."""
        for event in self.events:
            if not is_readable(event):
                raise ChainBroken(f"event #{event.event_id} is damaged: its fields are no text", at=event.event_id)
        if self.foreign:
            raise self.foreign
        return self.events


_new = tuple.__new__  # a NamedTuple's own constructor is Python, and takes as long as half of this loop


def page_of(entries: list[Any]) -> Page:
    """Read entries of the events stream up to the first that is not ours."""
    events: list[Event] = []
    for entry_id, fields in entries:
        number, _, sequence = entry_id.partition(b"-")
        if sequence != b"0" or fields[::2] != FIELDS:
            what = "its fields are not an event's" if sequence == b"0" else "its id is not an event's"
            foreign = ChainBroken(f"entry {entry_id.decode()} is not an event: {what}", at=int(number))
            return Page(events, foreign, entry_id)
        _, timestamp, _, kind, _, source, _, payload, _, prev_hash, _, hash_ = fields
        events.append(_new(Event, (int(number), timestamp, kind, source, payload, prev_hash, hash_)))
    return Page(events, None, entries[-1][0] if entries else b"")


def head_of(newest: list[Any]) -> Head:
    """Read the newest entry of the events stream; START where there is none. Raises ChainBroken as `unbroken` does."""
    events = page_of(newest).unbroken()
    return Head(events[0].event_id, events[0].hash) if events else START


def times_of(entries: list[Any]) -> list[tuple[bytes, int]]:
    """Read entries of the index by commit time: (entry id, event_id)."""
    return [(entry_id, int(entry_id.partition(b"-")[2])) for entry_id, _ in entries]
