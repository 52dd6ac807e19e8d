"""Verifying the chain where it is stored: reading ahead while it hashes, one walk for all who ask."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic, perf_counter
from typing import Any, Literal, NamedTuple

from audit_stream.chain import START, Head, Verdict, verify
from audit_stream.comparing import Contents, Disagreement, Entries, commit_order_holds, first_disagreement
from audit_stream.connection import end
from audit_stream.entries import Page
from audit_stream.errors import ChainBroken, Pushback, Refused, Unreachable
from audit_stream.query import Pace
from audit_stream.stream import Stream

LAST_STRETCH = 500
PART_EVENTS = 250
TURN_KEYS = 5_000
"""After so many keys, about two milliseconds' work, others have their turn."""
GENTLE = 4
"""A gentle walk rests so many times as long as it works."""
RANGED_WALKS = 2
"""So many walks over a part of the chain go on at a time in one process."""


Indexes = Literal["agree", "disagree", "not checked"]


class Report(NamedTuple):
    """A verdict and what it is about."""

    verdict: Verdict
    first: int
    indexes: Indexes
    """Whether they agree with the chain."""
    took_s: float
    unchecked: str | None = None
    """Why the indexes were not checked."""


class Walk:
    """One pass over the chain, from event `first` to `last` or to the end."""

    def __init__(
        self, stream: Stream, first: int, last: int | None, *, deep: bool = False, gentle: bool = False
    ) -> None:
        self._stream, self.first, self._last = stream, first, last
        self._gentle = gentle
        self._contents = Contents(stream.keys)
        self._entries = Entries(stream, first) if deep else None
        self.checked = 0
        self.expected = 0
        """How many events there are to check, as known at the start."""

    async def run(self) -> Report:
        """Check every link, then the end, then that the indexes agree. Raises Unreachable, Refused.

        Without an answer about the indexes the verdict is on the links alone, and the report says so.
        """
        began = monotonic()
        verdict = await self._links()
        if verdict.valid and self._last is None:
            verdict = (await self._to_the_end(verdict))[0]
        indexes: Indexes = "not checked"
        unchecked: str | None = "only a part of the chain was verified"
        if not verdict.valid:
            unchecked = "the chain is broken"
        elif self.first == 1 and self._last is None:
            verdict, indexes, unchecked = await self._with_indexes(verdict)
        return Report(verdict, self.first, indexes, monotonic() - began, unchecked)

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
                if self._entries:
                    await self._entries.compare(all_of_them=not page.events)
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
        self._contents.add(page.events)
        if self._entries:
            self._entries.add(page.events)
        verdict = verdict._replace(checked=self.checked)
        if verdict.valid and page.foreign:
            return verdict._replace(valid=False, first_break_at=verdict.head.event_id + 1, reason=str(page.foreign))
        return verdict

    # --- the end, and the indexes

    async def _to_the_end(
        self, verdict: Verdict, indexes: Sequence[bytes] = ()
    ) -> tuple[Verdict, list[tuple[bytes, int, int]]]:
        """Check what was appended meanwhile and that nothing was cut off.

        Returns the verdict, and of each index how many entries it held at that moment and the last one's event_id.
        """
        pace = Pace(most=LAST_STRETCH)
        while True:
            count = pace.count
            end = await self._stream.end(verdict.head.event_id, count=count, indexes=indexes)
            pace.saw(end.page.events)
            verdict = self._check(end.page, verdict.head)
            if not verdict.valid:
                return verdict, []
            if len(end.page.events) < count:
                break
        head = verdict.head
        if end.written > head.event_id:
            reason = f"chain ends at event #{head.event_id}, but #{end.written} was written"
            return verdict._replace(valid=False, first_break_at=head.event_id + 1, reason=reason), []
        return verdict, [(key, *found) for key, found in zip(indexes, end.indexes, strict=True)]

    async def _with_indexes(self, verdict: Verdict) -> tuple[Verdict, Indexes, str | None]:
        """Compare the indexes with a chain that holds, some at a time. What fails here leaves that verdict as it is."""
        try:
            for keys in self._contents.pages():
                verdict, ends = await self._to_the_end(verdict, keys)
                if not verdict.valid:
                    return verdict, "not checked", "the chain is broken"
                upto, expected = verdict.head.event_id, self._contents.expected
                suspects = [key for key, length, last_id in ends if length != expected(key) or last_id > upto]
                for key in suspects:
                    if found := await first_disagreement(self._stream, key, upto):
                        return _disagreeing(verdict, found)
            if self._entries and (found := await self._in_depth(self._entries, verdict.head.event_id)):
                return _disagreeing(verdict, found)
        except Unreachable as error:
            return verdict, "not checked", error.reason
        return verdict, "agree", None

    async def _in_depth(self, entries: Entries, upto: int) -> Disagreement | None:
        await entries.compare(all_of_them=True)
        if entries.error:
            raise Unreachable(entries.error)
        if entries.found:
            return entries.found
        time = self._stream.keys.time
        suspects = [] if await commit_order_holds(self._stream, upto) else [time]
        # An index of which the chain knows nothing is either foreign or of an event that was appended just now.
        for place, key in enumerate(await self._stream.indexes.find_keys()):
            if place % TURN_KEYS == 0:
                await asyncio.sleep(0)
            if not self._contents.expected(key):
                suspects.append(key)
        for key in suspects:
            if found := await first_disagreement(self._stream, key, upto):
                return found
        return None


def _disagreeing(verdict: Verdict, found: Disagreement) -> tuple[Verdict, Indexes, str | None]:
    return verdict._replace(valid=False, first_break_at=found.at, reason=found.reason), "disagree", None


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


class TooManyWalks(Pushback):
    """So many walks over parts of the chain go on already that this one has to wait."""


class Shared:
    """A walk under way, and those who wait for it."""

    def __init__(self, walk: Walk, task: "asyncio.Task[Report]", who: str) -> None:
        self.walk, self.task, self.who = walk, task, who
        self.waiting = 0
        self._began = monotonic()

    async def report(self) -> Report:
        """Wait for its end; a caller that is cancelled ends it for nobody else."""
        return await asyncio.shield(self.task)

    async def ended(self, timeout_s: float) -> bool:
        """Wait that long at most; return whether it has ended."""
        return bool((await asyncio.wait({self.task}, timeout=timeout_s))[0])

    @property
    def left_s(self) -> int:
        """About how long it will still take, in whole seconds: 1 to 60."""
        walk, took_s = self.walk, monotonic() - self._began
        left = took_s * (walk.expected - walk.checked) / walk.checked if walk.checked else 1
        return min(max(1, math.ceil(left)), 60)


_Asked = tuple[int, int | None, bool]


class Verifier:
    """Shares one walk among all who ask for the same at the same time, and ends it when nobody waits for it."""

    def __init__(
        self, stream: Stream, on_report: Callable[[Report, bool], None] | None = None, walking: Walking = Walk.run
    ) -> None:
        """`on_report` is told each report, and whether it is about all of the chain."""
        self._stream, self._on_report, self._walking = stream, on_report, walking
        self._walks: dict[_Asked, Shared] = {}

    async def verify(self, first: int = 1, last: int | None = None, *, deep: bool = False) -> Report:
        """Return the report of `join`'s walk. Raises Unreachable, Refused, TooManyWalks."""
        async with self.join(first, last, deep=deep) as shared:
            return await shared.report()

    @asynccontextmanager
    async def join(
        self, first: int = 1, last: int | None = None, *, deep: bool = False, who: str = ""
    ) -> AsyncIterator[Shared]:
        """Wait for the walk that is under way, or begin one. Raises Refused, TooManyWalks.

        Indexes are compared by how many entries they hold; `deep` compares every entry. One walk over a part of the
        chain at a time is for `who` asks.
        """
        if last is not None and last < first:
            raise Refused(f"to: {last} is before from: {first}", field="to")
        whole = (first, last) == (1, None)
        # The indexes are compared with the whole chain only, so that a part has nothing to look at more deeply.
        asked = (first, last, deep and whole)
        # Who asked for less is answered by a deeper walk as well, and never the other way round.
        shared = self._walks.get(asked) or self._walks.get((first, last, True))
        if shared is None:
            if not whole:
                self._make_room(who)
            shared = self._begin(asked, who)
        shared.waiting += 1
        try:
            yield shared
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                self._forget(shared)  # before it has ended: whoever comes next must not join it
                await end(shared.task)

    def _make_room(self, who: str) -> None:
        ranged = [shared for (first, last, _), shared in self._walks.items() if (first, last) != (1, None)]
        own = [shared for shared in ranged if shared.who == who]
        if own:
            raise TooManyWalks(
                "another walk over a part of the chain that you asked for is still under way, and there is one at a"
                " time: wait for its verdict, or ask for the whole chain",
                retry_after=own[0].left_s,
            )
        if len(ranged) >= RANGED_WALKS:
            raise TooManyWalks(
                f"{len(ranged)} walks over parts of the chain are under way, as many as go on at a time:"
                " ask again later, or for the whole chain",
                retry_after=min(shared.left_s for shared in ranged),
            )

    def _begin(self, asked: _Asked, who: str) -> Shared:
        first, last, deep = asked
        walk = Walk(self._stream, first, last, deep=deep)
        task = asyncio.create_task(self._walking(walk), name="verify")
        shared = self._walks[asked] = Shared(walk, task, who)
        task.add_done_callback(lambda _: self._ended(shared, whole=asked[:2] == (1, None)))
        return shared

    def _ended(self, shared: Shared, *, whole: bool) -> None:
        self._forget(shared)
        if self._on_report and not shared.task.cancelled() and not shared.task.exception():
            self._on_report(shared.task.result(), whole)

    def _forget(self, shared: Shared) -> None:
        self._walks = {asked: other for asked, other in self._walks.items() if other is not shared}

    async def close(self) -> None:
        """End the walks, those included that others still wait for."""
        await end(*[shared.task for shared in self._walks.values()])
