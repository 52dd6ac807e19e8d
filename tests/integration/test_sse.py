"""GET /stream over real sockets: every event behind the cursor, in order, each once, whatever happens meanwhile."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import pytest
import redis

from audit_stream.appender import Appender
from audit_stream.chain import link_hash
from audit_stream.embedded import EmbeddedValkey
from audit_stream.event import PublishRequest, draft
from audit_stream.stream import Stream
from audit_stream.tail import KEPT_BYTES, KEPT_EVENTS, Tail, View
from tests.harness import ServerProcess, running_server
from tests.integration.sse_client import Frame, SseStream, follow, open_stream, split, take

T = TypeVar("T")
STOPS_WITHIN_S = 5


def run(test: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(test, 100))


def request(n: int = 0, **changes: object) -> dict[str, Any]:
    return {"kind": "other", "source": "gate", "payload": {"n": n}} | changes


def append(server: ServerProcess, batch: list[dict[str, Any]]) -> str:
    """Append as a producer should: told that the outcome is not known, it sends the same again under its key."""
    key = {"Idempotency-Key": os.urandom(8).hex()}
    while (response := server.post_batch(batch, **key)).status_code == 503:
        pass
    return response.raise_for_status().text


def write(server: ServerProcess, count: int, **changes: object) -> list[str]:
    """Append `count` events; return each as JSON, as a frame must carry it."""
    append(server, [request(n, **changes) for n in range(count)])
    return server.get(f"/events?limit={count}", Accept="application/x-ndjson").text.splitlines()


async def write_later(server: ServerProcess, count: int, **changes: object) -> list[str]:
    return await asyncio.to_thread(write, server, count, **changes)


def ids(frames: list[Frame]) -> list[int | None]:
    return [frame.id for frame in frames]


def behind(after: int, upto: int) -> list[int]:
    return list(range(after + 1, upto + 1))


def subscribers(server: ServerProcess) -> int:
    return int(server.get("/stats").json()["subscribers"])


# --- the frames


def test_a_frame_is_the_event_as_it_can_be_read(server: ServerProcess) -> None:
    written = write(server, 3, source='caf\u00e9\n/"?')

    async def test() -> None:
        for query, event in (("?after=0", "other"), ("?after=0&named=true", "other"), ("?after=0&named=false", None)):
            async with open_stream(server.url, query) as stream:
                expected = [Frame(event=event, id=n, data=data) for n, data in enumerate(written, start=1)]
                assert await take(stream, 3) == expected

    run(test())


def test_the_first_frame_comes_at_once_and_no_proxy_may_hold_it_back(server: ServerProcess) -> None:
    async def test() -> None:
        async with open_stream(server.url) as stream, asyncio.timeout(5):  # a heartbeat would take 15 s
            first = await stream.next()
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-cache"
        assert stream.headers["x-accel-buffering"] == "no"
        assert first
        assert first.retry
        assert 100 <= first.retry <= 10_000
        assert first.comment
        assert (first.event, first.id, first.data) == (None, None, None)

    run(test())


def test_without_a_cursor_only_what_comes_is_sent(server: ServerProcess) -> None:
    write(server, 3)

    async def test() -> None:
        async with open_stream(server.url) as stream:
            await stream.next()  # it stands at the head now
            await write_later(server, 2)
            assert ids(await take(stream, 2)) == [4, 5]

    run(test())


@pytest.mark.parametrize(
    ("query", "last_event_id", "expected"),
    [
        ("?after=0", None, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("?after=4", None, [5, 6, 7, 8, 9]),
        ("", 7, [8, 9]),
        ("?after=0", 7, [8, 9]),
        ("?after=7", 2, [3, 4, 5, 6, 7, 8, 9]),
        ("?after=99", 7, [8, 9]),
        ("?after=7", 0, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("?after=7", "", [8, 9]),
    ],
)
def test_the_header_wins_over_after(
    nine: ServerProcess, query: str, last_event_id: str | int | None, expected: list[int]
) -> None:
    async def test() -> None:
        async with open_stream(nine.url, query, last_event_id=last_event_id) as stream:
            assert ids(await take(stream, len(expected))) == expected

    run(test())


@pytest.mark.parametrize(
    ("query", "last_event_id", "status", "word"),
    [
        ("?after=10", None, 409, "#10"),
        ("", 10, 409, "#10"),
        ("", 2**62, 409, "ends at #9"),
        ("?after=-1", None, 422, "after"),
        ("?after=x", None, 422, "after"),
        ("", "abc", 422, "Last-Event-ID"),
        ("", "-1", 422, "Last-Event-ID"),
        ("", "1.5", 422, "Last-Event-ID"),
        ("", "9" * 30, 422, "Last-Event-ID"),
        ("?after=0", "abc", 422, "Last-Event-ID"),
        ("?kind=surprise", None, 422, "kind"),
        ("?named=perhaps", None, 422, "named"),
        ("?limit=5", None, 422, "limit"),
    ],
)
def test_a_stream_that_would_miss_events_is_not_begun(
    nine: ServerProcess, query: str, last_event_id: str | int | None, status: int, word: str
) -> None:
    async def test() -> None:
        async with open_stream(nine.url, query, last_event_id=last_event_id) as stream:
            assert stream.status == status
            assert stream.headers["content-type"] == "application/problem+json"
            assert word in (await stream.body()).decode()

    run(test())


@pytest.fixture(scope="module")
def nine(redis_url: str) -> Iterator[ServerProcess]:
    """A server with nine events, which no test adds to."""
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=f"nine.{os.urandom(4).hex()}") as server:
        write(server, 9)
        yield server


# --- filters


def test_filters_must_all_hold_in_the_replay_and_live(server: ServerProcess) -> None:
    pairs = [(kind, source) for kind in ("other", "flag_swapped") for source in ("gate", "caf\u00e9/&?")] * 5
    batch = [request(kind=kind, source=source) for kind, source in pairs]

    def expected(kind: str | None, source: str | None) -> list[int]:
        return [n for n, pair in enumerate(pairs * 2, start=1) if kind in (None, pair[0]) and source in (None, pair[1])]

    async def test() -> None:
        async with AsyncExitStack() as stack:
            open_ = []
            for kind in (None, "other", "flag_swapped"):
                for source in (None, "gate", "caf\u00e9/&?"):
                    query = "?after=0" + (f"&kind={kind}" if kind else "")
                    query += f"&source={quote(source, safe='')}" if source else ""
                    stream = await stack.enter_async_context(open_stream(server.url, query))
                    open_.append((stream, expected(kind, source)))
            for stream, wanted in open_:
                half = len(wanted) // 2
                assert ids(await take(stream, half)) == wanted[:half]
            await asyncio.to_thread(append, server, batch)
            for stream, wanted in open_:
                half = len(wanted) // 2
                assert ids(await take(stream, half)) == wanted[half:]

    append(server, batch)
    run(test())


def test_under_a_filter_the_cursor_still_moves(redis_url: str, chain: str) -> None:
    async def test() -> None:
        stream = Stream.at(redis_url, chain)
        kinds = frozenset({"other", "flag_swapped"})

        async def append(*names: str) -> None:
            await appender.append([draft(PublishRequest(name, "s"), kinds) for name in names])

        frames: list[Frame] = []

        async def until(wanted: Frame) -> None:
            """Read on to this frame; all on the way may only be a heartbeat, or an id that is not beyond it."""
            while True:
                found, rest = split(await anext(following))
                assert rest == b""
                for frame in found:
                    frames.append(frame)
                    if frame == wanted or (wanted.data and frame.id == wanted.id and frame.data):
                        return
                    assert frame.data is None
                    assert frame.id is None or (wanted.id is not None and frame.id < wanted.id)

        async with Appender(stream) as appender:
            await append("other", "other")
            async with Tail(stream, heartbeat_s=0.02) as tail:
                following = tail.follow(0, View(kind="flag_swapped"), bare_ids=True)
                assert isinstance(following, AsyncGenerator)
                await anext(following)
                await until(Frame(id=2))  # replayed
                await append("other", "other", "other")
                await until(Frame(id=5))  # live
                await until(Frame(comment="heartbeat"))  # nothing new to tell
                await append("flag_swapped")
                await until(Frame(event="flag_swapped", id=6, data="it"))
                await until(Frame(comment="heartbeat"))  # the event has told its id itself
                await append("other")
                await until(Frame(id=7))
                await following.aclose()
                assert tail.subscribers == 0
        told = [frame.id for frame in frames if frame.id is not None]
        assert told == sorted(set(told))
        await stream.close()

    run(test())


# --- nothing missed, nothing twice


def test_from_every_position_of_a_run_nothing_is_missed_while_it_goes_on(server: ServerProcess) -> None:
    run_length, each = 300, 50

    async def test() -> None:
        receipts: list[str] = []
        at_once = asyncio.Semaphore(100)

        async def subscribe(cursor: int) -> list[Frame]:
            query, header = ("", cursor) if cursor % 2 else (f"?after={cursor}", None)
            async with at_once, open_stream(server.url, query, last_event_id=header) as stream:
                return await take(stream, each)

        subscribing = [asyncio.create_task(subscribe(0))]
        while len(receipts) < run_length + each:
            receipts.append((await asyncio.to_thread(append, server, [request()]))[1:-1])
            if len(subscribing) < run_length:
                subscribing.append(asyncio.create_task(subscribe(len(receipts))))
        for cursor, frames in enumerate(await asyncio.gather(*subscribing)):
            assert ids(frames) == behind(cursor, cursor + each)
            assert [frame.data for frame in frames] == receipts[cursor : cursor + each]

    run(test())


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_restart_of_the_server_misses_nothing(redis_url: str, chain: str, ends: signal.Signals) -> None:
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain}

    async def test() -> None:
        with running_server(**settings) as first:
            write(first, 50)
            port = urlsplit(first.url).port
            seen: list[list[Frame]] = [[] for _ in range(5)]
            cursors = [0, 1, 25, 49, 50]
            following = [
                asyncio.create_task(follow(first.url, after=cursor, upto=200, seen=frames))
                for cursor, frames in zip(cursors, seen, strict=True)
            ]
            await write_later(first, 50)
            # Some stand in the middle when it ends, wherever they have got to.
            await asyncio.to_thread(first.stop, ends)
        with running_server(**settings, PORT=str(port)) as second:
            await write_later(second, 100)
            for cursor, frames in zip(cursors, await asyncio.gather(*following), strict=True):
                assert ids(frames) == behind(cursor, 200)

    run(test())


def test_hopping_between_replicas_misses_nothing(redis_url: str, chain: str) -> None:
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain}
    with running_server(**settings) as one, running_server(**settings) as two:

        async def produce() -> None:
            for n in range(70):
                await asyncio.to_thread(append, (one, two)[n % 2], [request(n)] * 3)

        async def hop(step: int) -> list[Frame]:
            seen: list[Frame] = []
            replicas = [one.url, two.url]
            while len(seen) < 210:
                replicas.reverse()
                async with open_stream(replicas[0], last_event_id=len(seen)) as stream:
                    assert stream.status == 200
                    seen += await take(stream, min(step, 210 - len(seen)))
            return seen

        async def test() -> None:
            _, *hops = await asyncio.gather(produce(), hop(1), hop(7), hop(64))
            for frames in hops:
                assert ids(frames) == behind(0, 210)

        run(test())


def test_a_dead_redis_does_not_end_a_stream_and_what_it_missed_comes_after(tmp_path: Path) -> None:
    async def test() -> None:
        with EmbeddedValkey(tmp_path) as valkey, running_server(AUDIT_STREAM_REDIS_URL=valkey.url) as server:
            async with AsyncExitStack() as stack:
                streams = [await stack.enter_async_context(open_stream(server.url, "?after=0")) for _ in range(10)]
                write(server, 20)
                for stream in streams[:5]:  # the others have it all to read when Redis is back
                    assert ids(await take(stream, 20)) == behind(0, 20)
                os.kill(valkey.pid, signal.SIGKILL)
                assert server.post(request()).status_code == 503
                valkey.start()
                # Another replica writes first, so that nothing wakes this one but its own looking.
                with running_server(AUDIT_STREAM_REDIS_URL=valkey.url) as other:
                    write(other, 20)
                for stream in streams[:5]:
                    assert ids(await take(stream, 20)) == behind(20, 40)
                for stream in streams[5:]:
                    assert ids(await take(stream, 40)) == behind(0, 40)
                write(server, 1)
                for stream in streams:
                    assert ids(await take(stream, 1)) == [41]

    run(test())


def test_an_entry_that_is_no_event_is_left_out_and_the_next_event_comes(
    server: ServerProcess, redis_url: str, chain: str
) -> None:
    head = server.post(request()).json()["hash"].encode()
    event = (b"2026-05-15T03:14:15Z", b"other", b"gate", b"{}")
    fields = dict(zip((b"timestamp", b"kind", b"source", b"payload"), event, strict=True))
    fields |= {b"prev_hash": head, b"hash": link_hash(2, *event, head)}

    async def test() -> None:
        async with open_stream(server.url, "?after=1") as stream:
            await stream.next()
            with redis.Redis.from_url(redis_url) as client, client.pipeline(transaction=True) as at_once:
                at_once.xadd(f"{{{chain}}}:events", {"say": "hello"}, id="1-1")
                at_once.xadd(f"{{{chain}}}:events", dict(fields), id="2-0")
                at_once.execute()
            (frame,) = await take(stream, 1)
            assert (frame.id, frame.event) == (2, "other")
            assert (await asyncio.to_thread(server.post, request())).json()["event_id"] == 3
            assert ids(await take(stream, 1)) == [3]

    run(test())


# --- many, and slow ones


def test_two_hundred_subscribers_all_get_everything_and_are_forgotten_when_they_leave(server: ServerProcess) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            streams: list[SseStream] = []
            for _ in range(200):
                streams.append(await stack.enter_async_context(open_stream(server.url, "?after=0")))
                await streams[-1].next()

            async def produce() -> list[str]:
                return [line for _ in range(10) for line in await write_later(server, 20)]

            producing = asyncio.create_task(produce())
            received = await asyncio.gather(*(take(stream, 200) for stream in streams))
            written = await producing
            for frames in received:
                assert ids(frames) == behind(0, 200)
                assert [frame.data for frame in frames] == written
            assert subscribers(server) == 200
        deadline = time.monotonic() + 30
        while subscribers(server):  # each question is a round trip, in which it may notice the next one gone
            assert time.monotonic() < deadline
        # Nor is anything kept for them: whoever comes later is served as ever.
        async with open_stream(server.url, "?after=199") as stream:
            assert ids(await take(stream, 1)) == [200]

    run(test())


def test_a_slow_reader_holds_up_nobody_and_comes_back_for_what_it_missed(server: ServerProcess) -> None:
    batches, events = 11, 2000
    total = batches * events
    text = "x" * 1000
    assert total > 2 * KEPT_EVENTS
    assert total * len(text) > KEPT_BYTES

    async def test() -> None:
        async with (
            open_stream(server.url, "?after=0", receive_buffer=4096) as slow,
            open_stream(server.url, "?after=0") as fast,
        ):
            await slow.next()

            async def produce() -> None:
                for _ in range(batches):
                    await asyncio.to_thread(append, server, [request(payload={"text": text})] * events)

            _, frames = await asyncio.gather(produce(), take(fast, total))
            assert ids(frames) == behind(0, total)
            # Only now does the slow one read on. What it gets is whole up to its last event.
            got = [frame async for frame in slow.events()]
            assert slow.ended_properly
            assert 0 < len(got) < total
            assert ids(got) == behind(0, len(got))
        rest = await follow(server.url, after=len(got), upto=total)
        assert ids(rest) == behind(len(got), total)

    run(test())


# --- the end


def test_fifty_open_streams_end_in_good_order_within_five_seconds_of_sigterm(redis_url: str, chain: str) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            server = stack.enter_context(running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain))
            write(server, 30)
            streams = []
            for number in range(50):
                query = ("", "?after=0", "?kind=flag_swapped", "?after=29")[number % 4]
                streams.append(await stack.enter_async_context(open_stream(server.url, query)))
                await streams[-1].next()
            began = time.monotonic()
            exit_code = await asyncio.to_thread(server.stop, signal.SIGTERM)
            assert time.monotonic() - began < STOPS_WITHIN_S
            assert exit_code in (0, -signal.SIGTERM)
            for stream in streams:
                async for _ in stream.frames():
                    pass
                assert stream.ended_properly

    run(test())
