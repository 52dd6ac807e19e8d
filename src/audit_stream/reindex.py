"""Rebuilding the indexes from the chain, while replicas go on appending.

The new indexes grow beside the old ones, under keys of their own, until they have caught up with the
chain. Then they take the old ones' places in one transaction that holds only if the chain has not moved
since it was last read; if it has, they catch up again. Nobody ever reads half an index, and when this
process ends before its end the old ones are still there: what it has built so far is forgotten after a day.

The commit time of an event stands in the time index alone. What that index still says is kept where it
can be true; a missing commit time lies between its neighbours' and is estimated there.
"""

import secrets
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

from audit_stream.chain import Event
from audit_stream.errors import Pushback, Refused, Unreachable
from audit_stream.query import Pace
from audit_stream.rebuilding import Swap
from audit_stream.stream import Stream
from audit_stream.timestamps import instant

TIME_PAGE = 5_000
LAST_STRETCH = 500
"""The transaction indexes so many events at most; for more, catching up comes first."""
ATTEMPTS = 1_000
KEPT_S = 24 * 60 * 60


class Rebuilt(NamedTuple):
    events: int
    indexes: int
    estimated: int
    """How many commit times were lost."""


async def reindex(stream: Stream, on_progress: Callable[[int, int], None] = lambda done, expected: None) -> Rebuilt:
    """Rebuild every index of the chain; `on_progress` is told (done, expected).

    Raises ChainBroken for an entry that is not an event, Unreachable, and Pushback when the chain never
    rests long enough to swap. Then the indexes are as they were.
    """
    rebuild = _Rebuild(stream, await stream.now_ms(), on_progress)
    try:
        return await rebuild.run()
    finally:
        await rebuild.forget()


class _Rebuild:
    def __init__(self, stream: Stream, now_ms: int, on_progress: Callable[[int, int], None]) -> None:
        self._stream = stream
        self._keys = stream.keys
        self._token = secrets.token_hex(8).encode()
        self._on_progress = on_progress
        self._times = CommitTimes(now_ms)
        self._time_at = b"0-0"
        self._at = 0
        self._lengths: Counter[bytes] = Counter()
        """Of the new indexes, by the key they are to have."""
        self._readable_times = True
        self._old: set[bytes] = set()
        self._left: list[tuple[bytes, bytes]] = []
        """Indexed in a transaction that may not have come about."""

    async def run(self) -> Rebuilt:
        # An index that is no stream at all is damaged as well, and has nothing to say.
        self._readable_times = await self._stream.type_of(self._keys.time) == "stream"
        self._expected = (await self._stream.head()).event_id
        await self._catch_up()
        await self._check()
        self._old = {self._keys.time, *await self._stream.indexes.find_keys()}
        for _ in range(ATTEMPTS):
            self._left = []
            times_after = self._time_at if self._readable_times else None
            if await self._stream.rebuilding.swap(self._at, times_after, LAST_STRETCH + 1, self._finish):
                return Rebuilt(self._lengths[self._keys.time], len(self._lengths), self._times.estimated)
            await self._fill(self._left)
            await self._catch_up()
        raise Pushback(
            f"the chain was appended to in each of {ATTEMPTS} attempts to swap the indexes; nothing was changed."
            " Try again when it is quieter."
        )

    def _finish(self, events: list[Event], times: list[tuple[bytes, int]]) -> Swap | None:
        """What is left to do, given what was appended since the last catching up."""
        if len(events) > LAST_STRETCH:
            return None
        self._learn(times)
        self._left = self._entries(events)
        moves = [(self._rebuilt(key), key) for key in self._lengths]
        return Swap(self._left, moves, [*(key for key in self._old if key not in self._lengths), self._keys.sources])

    async def forget(self) -> None:
        with suppress(Unreachable):  # they carry a time to live
            await self._stream.rebuilding.drop([self._rebuilt(key) for key in self._lengths])

    async def _catch_up(self) -> None:
        pace = Pace()
        while events := (await self._stream.page(self._at, count=pace.count)).unbroken():
            pace.saw(events)
            # Read after the events, the time index holds whatever it will ever hold about them.
            while self._readable_times and not self._times.reach(events):
                times = await self._stream.indexes.times(self._time_at, count=TIME_PAGE)
                self._learn(times)
                if len(times) < TIME_PAGE:
                    break
            await self._fill(self._entries(events))
            self._on_progress(self._at, max(self._expected, self._at))

    def _learn(self, times: list[tuple[bytes, int]]) -> None:
        if times:
            self._time_at = times[-1][0]
            self._times.learn(times)

    def _entries(self, events: Sequence[Event]) -> list[tuple[bytes, bytes]]:
        """What the new indexes are to say about these events: (key, entry id)."""
        entries = []
        for event in events:
            ms = self._times.of(event)
            for key in (self._keys.kind(event.kind), self._keys.source(event.source)):
                entries.append((self._rebuilt(key), b"%d-0" % event.event_id))
                self._lengths[key] += 1
            entries.append((self._rebuilt(self._keys.time), b"%d-%d" % (ms, event.event_id)))
            self._lengths[self._keys.time] += 1
            self._at = event.event_id
        return entries

    async def _fill(self, entries: list[tuple[bytes, bytes]]) -> None:
        if entries:
            await self._stream.rebuilding.fill(entries, kept_s=KEPT_S)

    def _rebuilt(self, key: bytes) -> bytes:
        return self._keys.rebuilt(self._token, key)

    async def _check(self) -> None:
        """A Redis that drops keys when memory runs out may have dropped the new ones."""
        found = await self._stream.indexes.lengths([self._rebuilt(key) for key in self._lengths])
        if found != list(self._lengths.values()):
            raise Unreachable("Redis dropped a part of the new indexes; nothing was changed. Look at its memory.")


class CommitTimes:
    """Commit times, event by event: what the time index says where it can be true, else an estimate.

    They never run back, and neither does the event_id: an entry that breaks this, lies in the future or
    is of no event is passed over.
    """

    def __init__(self, now_ms: int) -> None:
        self._now_ms, self._asked_at = now_ms, monotonic()
        self._known: deque[tuple[int, int]] = deque()
        self._last: tuple[int, int] | None = None
        """(ms, event_id) of the last event that was asked about."""
        self.estimated = 0

    def learn(self, entries: Sequence[tuple[bytes, int]]) -> None:
        """Take further (entry id, event_id) of the time index, in its order."""
        for entry_id, event_id in entries:
            self._known.append((int(entry_id.partition(b"-")[0]), event_id))

    def reach(self, events: Sequence[Event]) -> bool:
        """Whether enough was learnt for these events: beyond the last, and not from stray entries alone."""
        return len(self._known) > len(events) and self._known[-1][1] > events[-1].event_id

    def of(self, event: Event) -> int:
        """Unix time in milliseconds at which the event was committed. Ask in the order of the chain."""
        low = self._last[0] if self._last else 0
        self._pass_over(event.event_id, low)
        if self._known and self._known[0][1] == event.event_id:
            ms = self._known.popleft()[0]
        else:
            ms = self._estimate(event, low)
            self.estimated += 1
        self._last = (ms, event.event_id)
        return ms

    def _pass_over(self, event_id: int, low: int) -> None:
        known = self._known
        while known:
            ms, indexed = known[0]
            # An entry whose successor steps back behind it stands where it does not belong.
            misplaced = len(known) > 1 and event_id <= known[1][1] < indexed
            if event_id <= indexed and low <= ms <= self._latest() and not misplaced:
                return
            known.popleft()

    def _latest(self) -> int:
        """Now, by the clock of the Redis; a second more, for the time it took to ask."""
        return self._now_ms + int((monotonic() - self._asked_at + 1) * 1000)

    def _estimate(self, event: Event, low: int) -> int:
        """The event's own timestamp if that can be its commit time, else a neighbour's."""
        high = self._known[0][0] if self._known else self._latest()
        try:
            stamp = int(instant(event.timestamp.decode("ascii", "replace"), field="timestamp").timestamp() * 1000)
        except Refused:
            stamp = -1
        if low <= stamp <= high:
            return stamp
        return high if self._last is None and self._known else low
