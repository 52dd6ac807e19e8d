"""Verifying the chain where it is stored: reading ahead while it hashes, one walk for all who ask."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from operator import itemgetter
from time import monotonic, perf_counter
from typing import Any, Literal, NamedTuple

from audit_stream.chain import START, Head, Verdict, verify
from audit_stream.connection import end
from audit_stream.entries import Page
from audit_stream.errors import ChainBroken, Refused
from audit_stream.query import Pace
from audit_stream.stream import Stream

LAST_STRETCH = 2_000
INDEX_PAGE = 5_000
PART_EVENTS = 250
GENTLE = 4
"""A gentle walk rests so many times as long as it works."""


Indexes = Literal["agree", "disagree", "not checked"]


class Report(NamedTuple):
    """A verdict and what it is about."""

    verdict: Verdict
    first: int
    indexes: Indexes
    """Whether they agree with the chain; not checked when only a part of the chain was."""
    took_s: float


class Walk:
    """One pass over the chain, from event `first` to `last` or to the end."""

    def __init__(
        self, stream: Stream, first: int, last: int | None, *, deep: bool = False, gentle: bool = False
    ) -> None:
        self._stream, self.first, self._last, self._deep = stream, first, last, deep
        self._gentle = gentle
        self._kinds: Counter[bytes] = Counter()
        self._sources: Counter[bytes] = Counter()
        self.checked = 0
        self.expected = 0
        """How many events there are to check, as known at the start."""

    async def run(self) -> Report:
        """Check every link, then the end, then that the indexes agree. Raises Unreachable, Refused."""
        began = monotonic()
        verdict = await self._links()
        indexes: Indexes = "not checked"
        if verdict.valid and self.first > 1 and self._last is None:
            verdict, _ = await self._to_the_end(verdict, indexes=False)
        elif verdict.valid and self._last is None:
            verdict = await self._end(verdict)
            indexes = "agree" if verdict.valid else "disagree"
            if verdict.first_break_at == verdict.head.event_id + 1:
                indexes = "not checked"
        return Report(verdict, self.first, indexes, monotonic() - began)

    async def _links(self) -> Verdict:
        written = (await self._stream.end(0, count=1)).written
        upto = written if self._last is None else min(self._last, written)
        head = START
        if self.first > 1:
            anchor = await self._anchor(written)
            if isinstance(anchor, Verdict):
                return anchor
            head = anchor
        self.expected = max(0, upto - head.event_id)
        return await self._walk(head, upto)

    async def _walk(self, head: Head, upto: int) -> Verdict:
        """Check every link behind `head`. The chain went up to event `upto` a moment ago, and may go on."""
        pace = Pace()
        reading = asyncio.create_task(self._page(head.event_id, pace))
        rest_s = 0.0
        try:
            while True:
                page = await reading
                pace.saw(page.events)
                if page.events and not page.foreign:
                    # Redis reads the next page while this one is hashed.
                    reading = asyncio.create_task(self._page(page.events[-1].event_id, pace))
                for part in _in_parts(page):
                    await asyncio.sleep(rest_s)
                    began = perf_counter()
                    verdict = self._check(part, head)
                    head = verdict.head
                    rest_s = GENTLE * (perf_counter() - began) if self._gentle else 0
                    if not verdict.valid:
                        return verdict
                if not page.events:
                    return verdict
        finally:
            await end(reading)

    async def _page(self, after: int, pace: Pace) -> Page:
        return await self._stream.page(after, upto=self._last, count=pace.count)

    async def _anchor(self, written: int) -> Head | Verdict:
        """The event before the first: its hash is what the first must be linked to."""
        before = self.first - 1
        if before > written:
            raise Refused(f"from: the chain ends at event #{written}", field="from")
        try:
            event = await self._stream.get(before)
        except ChainBroken as broken:
            return Verdict(False, 0, before, str(broken), Head(before - 1, b""))
        if event is None:
            return Verdict(False, 0, before, f"event #{before} is not there", Head(before - 1, b""))
        return Head(before, event.hash)

    def _check(self, page: Page, head: Head) -> Verdict:
        verdict = verify(page.events, start=head)
        self.checked += verdict.checked
        self._kinds.update(map(itemgetter(2), page.events))
        self._sources.update(map(itemgetter(3), page.events))
        verdict = verdict._replace(checked=self.checked)
        if verdict.valid and page.foreign:
            return verdict._replace(valid=False, first_break_at=verdict.head.event_id + 1, reason=str(page.foreign))
        return verdict

    # --- the end, and the indexes

    async def _to_the_end(
        self, verdict: Verdict, *, indexes: bool
    ) -> tuple[Verdict, list[tuple[bytes, tuple[int, int]]]]:
        """Check what was appended meanwhile and that nothing was cut off; with how the indexes ended at that moment."""
        while True:
            keys = list(self._expected_lengths()) if indexes else []
            end = await self._stream.end(verdict.head.event_id, count=LAST_STRETCH, indexes=keys)
            verdict = self._check(end.page, verdict.head)
            if not verdict.valid:
                return verdict, []
            if len(end.page.events) < LAST_STRETCH:
                break
        head = verdict.head
        if end.written > head.event_id:
            reason = f"chain ends at event #{head.event_id}, but #{end.written} was written"
            return verdict._replace(valid=False, first_break_at=head.event_id + 1, reason=reason), []
        return verdict, list(zip(keys, end.indexes, strict=True))

    async def _end(self, verdict: Verdict) -> Verdict:
        verdict, ends = await self._to_the_end(verdict, indexes=True)
        if not verdict.valid:
            return verdict
        head, expected = verdict.head, self._expected_lengths()
        agree = {key: length == expected[key] and last_id <= head.event_id for key, (length, last_id) in ends}
        if self._deep:
            agree = dict.fromkeys([*agree, *await self._stream.indexes.find_keys()], False)
        for key in [key for key, fine in agree.items() if not fine]:
            if found := await self._first_disagreement(key, head.event_id):
                at, reason = found
                return verdict._replace(valid=False, first_break_at=at, reason=reason)
        return verdict

    def _expected_lengths(self) -> dict[bytes, int]:
        keys = self._stream.keys
        lengths = {keys.time: self.checked}
        lengths.update((keys.kind(kind), count) for kind, count in self._kinds.items())
        lengths.update((keys.source(source), count) for source, count in self._sources.items())
        return lengths

    async def _first_disagreement(self, key: bytes, upto: int) -> tuple[int, str] | None:
        """Walk the chain and one index side by side. None when they agree after all."""
        name = key.decode(errors="replace")
        in_chain, in_index = self._in_chain(key, upto), self._in_index(key)
        while True:
            event_id = await anext(in_chain, None)
            try:
                indexed = await anext(in_index, None)
            except ChainBroken:
                return event_id or 1, f"index {name} is no stream"
            if event_id == indexed:
                if event_id is None:
                    return None
                continue
            if indexed is None or (event_id is not None and event_id < indexed):
                assert event_id is not None
                return event_id, f"index {name} lacks event #{event_id}"
            if indexed > upto and await self._belongs(key, indexed):
                return None  # appended while this was going on, and so is all that follows
            return indexed, f"index {name} holds #{indexed}, which does not belong there"

    async def _belongs(self, key: bytes, event_id: int) -> bool:
        event, keys = await self._stream.get(event_id), self._stream.keys
        return event is not None and key in (keys.time, keys.kind(event.kind), keys.source(event.source))

    async def _in_chain(self, key: bytes, upto: int) -> AsyncIterator[int]:
        keys, pace, after = self._stream.keys, Pace(), 0
        while after < upto:
            events = (await self._stream.page(after, upto=upto, count=pace.count)).events
            if not events:
                return
            pace.saw(events)
            for event in events:
                if key in (keys.time, keys.kind(event.kind), keys.source(event.source)):
                    yield event.event_id
            after = events[-1].event_id

    async def _in_index(self, key: bytes) -> AsyncIterator[int]:
        if key == self._stream.keys.time:
            at = b"0-0"
            while entries := await self._stream.indexes.times(at, count=INDEX_PAGE):
                for _, event_id in entries:
                    yield event_id
                at = entries[-1][0]
        else:
            low = 0
            while ids := await self._stream.indexes.ids(key, low=low, high=None, count=INDEX_PAGE):
                for event_id in ids:
                    yield event_id
                low = ids[-1] + 1


def _in_parts(page: Page) -> Iterator[Page]:
    """Parts of about a millisecond's work: in between the next page comes in, and producers are answered."""
    if len(page.events) <= PART_EVENTS:
        yield page
        return
    starts = range(0, len(page.events), PART_EVENTS)
    for start in starts:
        foreign = page.foreign if start == starts[-1] else None
        yield Page(page.events[start : start + PART_EVENTS], foreign)


Walking = Callable[[Walk], Coroutine[Any, Any, Report]]
"""Takes a walk: `Walk.run`, or something around it."""


class Verifier:
    """Shares one walk among all who ask for the same at the same time."""

    def __init__(
        self, stream: Stream, on_report: Callable[[Report, bool], None] | None = None, walking: Walking = Walk.run
    ) -> None:
        """`on_report` is told each report, and whether it is about all of the chain."""
        self._stream, self._on_report, self._walking = stream, on_report, walking
        self._walks: dict[tuple[int, int | None, bool], tuple[Walk, asyncio.Task[Report]]] = {}

    def start(
        self, first: int = 1, last: int | None = None, *, deep: bool = False
    ) -> tuple[Walk, "asyncio.Task[Report]"]:
        """Join the walk that is under way, or begin one. Await the task shielded: others may wait for it too.

        Indexes are compared by how many entries they hold; `deep` compares every entry, at several times the cost.
        """
        if last is not None and last < first:
            raise Refused(f"to: {last} is before from: {first}", field="to")
        asked = (first, last, deep)
        shared = self._walks.get(asked)
        if shared is None:
            walk = Walk(self._stream, first, last, deep=deep)
            task = asyncio.create_task(self._walking(walk), name="verify")
            shared = self._walks[asked] = (walk, task)
            task.add_done_callback(lambda done: self._ended(asked, done))
        return shared

    def _ended(self, asked: tuple[int, int | None, bool], done: "asyncio.Task[Report]") -> None:
        del self._walks[asked]
        if self._on_report and not done.cancelled() and not done.exception():
            self._on_report(done.result(), asked[:2] == (1, None))

    async def close(self) -> None:
        await end(*[task for _, task in self._walks.values()])
