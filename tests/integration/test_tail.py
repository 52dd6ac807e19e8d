"""The one reader of a replica: it sleeps while nobody follows, and knows a chain that was taken back."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import redis as redis_py

from audit_stream import tail as following
from audit_stream.appender import Appender
from audit_stream.entries import Page
from audit_stream.errors import Unreachable
from audit_stream.event import PublishRequest, draft
from audit_stream.stream import Stream
from audit_stream.tail import Tail, View
from tests.integration.sse_client import split

KINDS = frozenset({"other"})


class Watched(Stream):
    """Counts what the tail asks, and can be cut off from it."""

    asked = pages = 0
    away = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.refused, self.answered = asyncio.Event(), asyncio.Event()

    async def page(self, after: int, *, upto: int | None = None, count: int) -> Page:
        self.pages += 1
        return await super().page(after, upto=upto, count=count)

    async def wait(self, after: bytes, *, count: int, block_s: float) -> Page:
        self.asked += 1
        if self.away:
            self.refused.set()
            raise Unreachable("Redis is away", in_doubt=True)
        page = await super().wait(after, count=count, block_s=min(block_s, 0.05))
        self.answered.set()
        return page


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def write(stream: Stream, *sources: str) -> None:
    async with Appender(stream) as appender:
        await appender.append([draft(PublishRequest("other", source), KINDS) for source in sources])


async def read(frames: AsyncIterator[bytes], count: int) -> list[int | None]:
    """The ids of the next `count` events."""
    found: list[int | None] = []
    async for chunk in frames:
        found += [frame.id for frame in split(chunk)[0] if frame.data]
        if len(found) >= count:
            break
    return found


def test_nothing_is_read_while_nobody_follows_and_whoever_comes_gets_all(redis_url: str, chain: str) -> None:
    async def test() -> None:
        stream = Watched.at(redis_url, chain)
        assert isinstance(stream, Watched)
        async with Tail(stream) as tail:
            for _ in range(3):
                await write(stream, "a", "b")
            assert (stream.asked, tail.newest) == (0, 0)
            first = tail.follow(0, View())
            assert await read(first, 6) == [1, 2, 3, 4, 5, 6]
            await first.aclose()  # type: ignore[attr-defined]
            await write(stream, "c")
            assert await read(tail.follow(6, View()), 1) == [7]
        await stream.close()

    run(test())


def test_who_resumes_near_the_end_is_answered_from_memory_and_who_is_further_back_from_the_chain(
    redis_url: str, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PRIMED_EVENTS", 3)

    async def test() -> None:
        stream = Watched.at(redis_url, chain)
        assert isinstance(stream, Watched)
        await write(stream, *"abcdefg")
        async with Tail(stream) as tail:
            stream.pages = 0
            assert await read(tail.follow(4, View()), 3) == [5, 6, 7]
            assert stream.pages == 0
            assert await read(tail.follow(3, View()), 4) == [4, 5, 6, 7]
            assert stream.pages == 1
        await stream.close()

    run(test())


def test_a_damaged_end_is_not_kept_in_memory_as_if_it_were_whole(redis_url: str, chain: str) -> None:
    async def test() -> None:
        stream = Stream.at(redis_url, chain)
        await write(stream, *"abcd")
        raw = redis_py.Redis.from_url(redis_url)
        raw.xdel(stream.keys.events, "3-0")
        raw.close()
        async with Tail(stream) as tail:
            assert await read(tail.follow(1, View()), 2) == [2, 4]
        await stream.close()

    run(test())


def test_after_a_long_pause_the_missed_events_are_replayed_from_the_chain(
    redis_url: str, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "KEPT_EVENTS", 10)

    async def test() -> None:
        stream = Stream.at(redis_url, chain)
        async with Tail(stream) as tail:
            await write(stream, *"abcdefghijklmnop")
            live = tail.follow(0, View())
            assert await read(live, 16) == list(range(1, 17))
            await write(stream, "q")
            assert await read(live, 1) == [17]
        await stream.close()

    run(test())


def test_from_every_cursor_around_the_end_of_what_is_kept_each_event_comes_once(
    redis_url: str, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "KEPT_EVENTS", 8)

    async def test() -> None:
        stream = Watched.at(redis_url, chain)
        assert isinstance(stream, Watched)
        async with Tail(stream) as tail:
            live = tail.follow(0, View())
            for event_id in range(1, 12):
                await write(stream, "s")
                assert await read(live, 1) == [event_id]
            stream.pages = 0
            from_the_chain = set()
            for cursor in range(11):
                before = stream.pages
                assert await read(tail.follow(cursor, View()), 11 - cursor) == list(range(cursor + 1, 12))
                if stream.pages > before:
                    from_the_chain.add(cursor)
            # Both ways were gone, and the border between them lies among these cursors.
            assert from_the_chain == set(range(len(from_the_chain)))
            assert 0 < len(from_the_chain) < 10
        await stream.close()

    run(test())


def test_a_chunk_of_large_events_ends_where_its_bytes_do(redis_url: str, chain: str) -> None:
    sizes = [200_000, 200_000, 10, 10, 300_000, 10]

    async def test() -> None:
        stream = Stream.at(redis_url, chain)
        async with Tail(stream) as tail, Appender(stream) as appender:
            live = tail.follow(0, View())
            await anext(live)
            await appender.append([draft(PublishRequest("other", "s", {"x": "x" * size}), KINDS) for size in sizes])
            for following_ in (live, tail.follow(0, View())):
                found: list[list[int | None]] = []
                async for chunk in following_:
                    found.append([frame.id for frame in split(chunk)[0] if frame.data])
                    if 6 in found[-1]:
                        break
                assert [ids for ids in found if ids] == [[1], [2, 3, 4], [5], [6]]
        await stream.close()

    run(test())


def test_a_tail_that_lost_redis_comes_back_even_when_nobody_follows_any_more(
    redis_url: str, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LINGER_S", 0)

    async def test() -> None:
        stream = Watched.at(redis_url, chain)
        assert isinstance(stream, Watched)
        async with Tail(stream) as tail:
            await write(stream, "a")
            live = tail.follow(0, View())
            assert await read(live, 1) == [1]
            stream.away = True
            await stream.refused.wait()
            await live.aclose()  # type: ignore[attr-defined]
            for _ in range(3):
                stream.refused.clear()
                await stream.refused.wait()
            assert not tail.connected
            stream.away = False
            stream.answered.clear()
            await stream.answered.wait()
            assert tail.connected
        await stream.close()

    run(test())


@pytest.mark.parametrize("written_anew", [1, 2, 5])
def test_a_reader_is_sent_back_when_its_ids_were_given_out_again(redis_url: str, chain: str, written_anew: int) -> None:
    """As after a failover to a replica that lacked the newest events, however many were appended since."""

    async def test() -> None:
        stream = Watched.at(redis_url, chain)
        assert isinstance(stream, Watched)
        raw = redis_py.Redis.from_url(redis_url)
        async with Tail(stream) as tail:
            await write(stream, "a", "b")
            live = tail.follow(0, View())
            assert await read(live, 2) == [1, 2]
            stream.away = True
            await stream.refused.wait()
            raw.delete(*raw.keys(f"{{{chain}}}:*"))
            await write(stream, *["other"] * written_anew)
            stream.away = False
            assert await read(live, 99) == []  # it ends
            assert await read(tail.follow(0, View()), written_anew) == behind(written_anew)
        raw.close()
        await stream.close()

    run(test())


def behind(upto: int) -> list[int | None]:
    return list(range(1, upto + 1))
