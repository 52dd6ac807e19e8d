"""Comparing the indexes with the chain. Verifying knows of an index's form what this module tells it, and no more.

An index is compared in two ways: by how many entries it holds (`Contents`), and entry by entry, a stretch of the
chain at a time (`Entries`). `first_disagreement` reads the chain once more, to say what is wrong with one index.
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice, zip_longest
from operator import itemgetter
from typing import NamedTuple

from audit_stream.chain import Event
from audit_stream.errors import ChainBroken, Unreachable
from audit_stream.indexes import Stretch
from audit_stream.keys import Keys
from audit_stream.query import Pace
from audit_stream.stream import Stream

PAGE_KEYS = 500
"""So many indexes are asked about at once. Redis answers in about a millisecond, and does nothing else meanwhile."""
PAGE_ENTRIES = 2_000
STRETCH_ENTRIES = 1_000
WINDOW = 65_536
"""Entries are compared each time so many events were checked, so that the memory does not grow with the chain."""
INDEX_PAGE = 2_000


class Disagreement(NamedTuple):
    """What is wrong with an index."""

    at: int
    """The event that it lacks, or holds and must not."""
    reason: str


class Contents:
    """How many entries each index must hold, by the events that were checked."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._of_kind, self._of_source = keys.kind(b""), keys.source(b"")
        self.events = 0
        self.kinds: Counter[bytes] = Counter()
        self.sources: Counter[bytes] = Counter()

    def add(self, events: Sequence[Event]) -> None:
        self.events += len(events)
        self.kinds.update(map(itemgetter(2), events))
        self.sources.update(map(itemgetter(3), events))

    def update(self, other: "Contents") -> None:
        """Add what was counted in a part of the chain."""
        self.events += other.events
        self.kinds.update(other.kinds)
        self.sources.update(other.sources)

    def expected(self, key: bytes) -> int:
        if key.startswith(self._of_source):
            return self.sources.get(key[len(self._of_source) :], 0)
        if key.startswith(self._of_kind):
            return self.kinds.get(key[len(self._of_kind) :], 0)
        return self.events

    def pages(self) -> Iterator[list[bytes]]:
        """Yield the keys of all indexes, those included whose first event is added while this goes on."""
        yield [self._keys.time]
        for names, key_of in ((self.kinds, self._keys.kind), (self.sources, self._keys.source)):
            done = 0
            while further := list(islice(names, done, None)):
                done += len(further)
                for start in range(0, len(further), PAGE_KEYS):
                    yield [key_of(name) for name in further[start : start + PAGE_KEYS]]


class Entries:
    """Compares every entry of the indexes by kind and source with a chain that is walked, each index read once.

    Redis writes an event and its entries in one step, so what disagrees once it was read does disagree. An error
    ends the comparison and not the walk: `error` says why, `found` what was wrong.
    """

    def __init__(self, stream: Stream, first: int) -> None:
        self._stream = stream
        self._low = first if first > 1 else 0
        self._kinds: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._sources: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._events = self._high = 0
        self.found: Disagreement | None = None
        self.error = ""

    def add(self, events: Sequence[Event]) -> None:
        if self.found or self.error or not events:
            return
        for event_id, _, kind, source, *_ in events:
            entry = b"%d-0" % event_id
            self._kinds[kind].append(entry)
            self._sources[source].append(entry)
        self._events += len(events)
        self._high = event_id

    def passed(self, upto: int, found: Disagreement | None, error: str) -> None:
        """Leave out the events up to this one: they were compared elsewhere, and that is what came of it."""
        self._low = upto + 1
        self.found = self.found or found
        self.error = self.error or error

    async def compare(self, *, all_of_them: bool = False) -> None:
        """Compare what was added, once that is a window full."""
        if not self._events or (self._events < WINDOW and not all_of_them):
            return
        try:
            for page in _pages_of(self._stretches()):
                replies = await self._stream.indexes.entries(page)
                for stretch, reply in zip(page, replies, strict=True):
                    if reply != b",".join(stretch.entries):
                        wrong = _difference(stretch, reply)
                        self.found = min(self.found or wrong, wrong)
        except Unreachable as error:
            self.error = str(error)
        self._kinds.clear()
        self._sources.clear()
        self._low, self._events = self._high + 1, 0

    def _stretches(self) -> Iterator[Stretch]:
        """Yield what each index must hold from `_low` to `_high`; of a long one a part at a time."""
        keys = self._stream.keys
        for names, key_of in ((self._kinds, keys.kind), (self._sources, keys.source)):
            for name, entries in names.items():
                key, low = key_of(name), b"%d" % self._low
                for start in range(0, len(entries), STRETCH_ENTRIES):
                    part = entries[start : start + STRETCH_ENTRIES]
                    is_last = start + STRETCH_ENTRIES >= len(entries)
                    yield Stretch(key, low, b"%d" % self._high if is_last else part[-1], part)
                    low = b"(" + part[-1]


def _pages_of(stretches: Iterator[Stretch]) -> Iterator[list[Stretch]]:
    page: list[Stretch] = []
    entries = 0
    for stretch in stretches:
        page.append(stretch)
        entries += len(stretch.entries)
        if len(page) == PAGE_KEYS or entries >= PAGE_ENTRIES:
            yield page
            page, entries = [], 0
    if page:
        yield page


def _difference(stretch: Stretch, reply: bytes | None) -> Disagreement:
    if reply is None:
        return Disagreement(_event_id(stretch.entries[0]), _no_stream(stretch.key))
    for expected, indexed in zip_longest(stretch.entries, reply.split(b",") if reply else []):
        if expected == indexed:
            continue
        if indexed is None or (expected is not None and _event_id(expected) < _event_id(indexed)):
            return _lacks(stretch.key, _event_id(expected))
        break
    return _holds(stretch.key, _event_id(indexed))


def _event_id(entry: bytes) -> int:
    return int(entry.partition(b"-")[0])


def _lacks(key: bytes, event_id: int) -> Disagreement:
    return Disagreement(event_id, f"index {_name(key)} lacks event #{event_id}")


def _holds(key: bytes, event_id: int) -> Disagreement:
    return Disagreement(event_id, f"index {_name(key)} holds #{event_id}, which does not belong there")


def _no_stream(key: bytes) -> str:
    return f"index {_name(key)} is no stream"


def _name(key: bytes) -> str:
    return key.decode(errors="replace")


async def commit_order_holds(stream: Stream, upto: int) -> bool:
    """Return whether the index by commit time holds each event up to `upto` once, in the order of the chain."""
    at, event_id = b"0-0", 0
    while event_id < upto:
        entries = await stream.indexes.times(at, count=INDEX_PAGE)
        if not entries or [found for _, found in entries] != list(range(event_id + 1, event_id + 1 + len(entries))):
            return False
        at, event_id = entries[-1]
    return True


# --- one index, looked at for itself


async def first_disagreement(stream: Stream, key: bytes, upto: int) -> Disagreement | None:
    """Read the chain up to event `upto` and one index side by side. None when they agree after all."""
    in_chain, in_index = _in_chain(stream, key, upto), _in_index(stream, key)
    while True:
        event_id = await anext(in_chain, None)
        try:
            indexed = await anext(in_index, None)
        except ChainBroken:
            return Disagreement(event_id or 1, _no_stream(key))
        if event_id == indexed:
            if event_id is None:
                return None
            continue
        if indexed is None or (event_id is not None and event_id < indexed):
            assert event_id is not None
            return _lacks(key, event_id)
        if indexed > upto and await _belongs(stream, key, indexed):
            return None  # appended while this was going on, and so is all that follows
        return _holds(key, indexed)


def _is_of(keys: Keys, key: bytes, event: Event) -> bool:
    return key in (keys.time, keys.kind(event.kind), keys.source(event.source))


async def _belongs(stream: Stream, key: bytes, event_id: int) -> bool:
    event = await stream.get(event_id)
    return event is not None and _is_of(stream.keys, key, event)


async def _in_chain(stream: Stream, key: bytes, upto: int) -> AsyncIterator[int]:
    pace, after = Pace(), 0
    while after < upto:
        events = (await stream.page(after, upto=upto, count=pace.count)).events
        if not events:
            return
        pace.saw(events)
        for event in events:
            if _is_of(stream.keys, key, event):
                yield event.event_id
        after = events[-1].event_id


async def _in_index(stream: Stream, key: bytes) -> AsyncIterator[int]:
    if key == stream.keys.time:
        at = b"0-0"
        while entries := await stream.indexes.times(at, count=INDEX_PAGE):
            for _, event_id in entries:
                yield event_id
            at = entries[-1][0]
    else:
        low = 0
        while ids := await stream.indexes.ids(key, low=low, high=None, count=INDEX_PAGE):
            for event_id in ids:
                yield event_id
            low = ids[-1] + 1
