"""What an appender and a tail count while they work."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from audit_stream import tail
from audit_stream.appender import Appender
from audit_stream.errors import Pushback
from audit_stream.stream import Stream
from audit_stream.tail import Tail, View
from audit_stream.tally import Tally
from audit_stream.waiting import QUEUE_EVENTS
from tests.conformance.stores import Chain, Held, behind_the_gate, drafted, drafts, real_store


@pytest.fixture
def on(redis_url: str, chain: str) -> Chain:
    return Chain(real_store(redis_url), chain, "checked")


@asynccontextmanager
async def counted(on: Chain) -> AsyncIterator[tuple[Held, Appender, Tally]]:
    tally = Tally()
    async with on.stream(Held) as held, Appender(held, tally=tally) as appender:
        yield held, appender, tally


def test_what_waits_for_the_next_batch_is_told_while_it_waits_and_no_longer(on: Chain) -> None:
    async def test() -> None:
        async with counted(on) as (held, appender, tally):
            waiting = [drafts(2, "a"), drafts(3, "b")]
            tasks = await behind_the_gate(held, appender, drafts(1), *waiting)
            assert tally.board.total("queue_events") == 5
            assert tally.board.total("queue_bytes") == sum(draft.size_bytes for group in waiting for draft in group)
            held.open.set()
            await asyncio.gather(*tasks)
            assert tally.board.total("queue_events") == tally.board.total("queue_bytes") == 0
            batches = tally.board.histogram("batch_events")
            assert (sum(batches.counts), batches.sum) == (2, 6)

    asyncio.run(test())


def test_a_full_queue_is_told_as_full_and_who_is_refused_is_not_in_it(on: Chain) -> None:
    async def test() -> None:
        async with counted(on) as (held, appender, tally):
            tasks = await behind_the_gate(held, appender, drafts(1), drafts(QUEUE_EVENTS))
            with pytest.raises(Pushback):
                await appender.append(drafts(1))
            assert tally.board.total("queue_events") == QUEUE_EVENTS
            held.open.set()
            await asyncio.gather(*tasks)

    asyncio.run(test())


def test_a_race_is_lost_by_one_and_an_event_is_counted_by_who_appended_it(on: Chain) -> None:
    async def test() -> None:
        async with counted(on) as (one, first, mine), counted(on) as (other, second, theirs):
            one.open.set()
            (receipt,) = await first.append([drafted("one", key="k")])
            other.open.set()
            await second.append([drafted("two", source="else")])
            (again,) = await second.append([drafted("one", key="k")])
            assert again.event == receipt.event
        assert (mine.board.total("lost_races"), theirs.board.total("lost_races")) == (0, 1)
        assert list(mine.board.events()) == [(b"other", b"conformance", 1)]
        assert list(theirs.board.events()) == [(b"other", b"else", 1)]
        assert (mine.board.total("replays"), theirs.board.total("replays")) == (0, 1)

    asyncio.run(test())


def test_a_follower_is_counted_until_it_leaves_and_one_that_falls_behind_as_dropped(
    on: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "KEPT_EVENTS", 4)

    async def test() -> None:
        tally = Tally()
        async with on.stream(Stream) as stream, Appender(stream) as appender, Tail(stream, tally=tally) as live:
            slow, quick = live.follow(0, View()), live.follow(0, View())
            for following in (slow, quick):
                await anext(following)
            first = [asyncio.ensure_future(anext(following)) for following in (slow, quick)]
            await appender.append(drafts(1))
            await asyncio.gather(*first)
            assert tally.board.total("sse_subscribers") == 2
            reached = 1
            while reached < 30:  # the slow one has its first event, and asks for no other
                await appender.append(drafts(1))
                reached = int(re.findall(rb"id: (\d+)", await anext(quick))[-1])
            left = [frame async for frame in slow]
            assert left[-1] == b": too far behind; resume from your last id\n"
            assert tally.board.total("sse_drops") == 1
            assert tally.board.total("sse_subscribers") == 1

    asyncio.run(test())
