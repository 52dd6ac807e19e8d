"""tail: no gap and no duplicate, whatever happens in between."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import ClassVar

import httpx
import msgspec
import pytest

from audit_stream.client import AsyncAuditClient, AuditClient, Event
from audit_stream.client.sse import Frame, Parser
from audit_stream.client.wire import Incoming, Request
from audit_stream.errors import ChainBroken, Refused
from tests.client.clients import UnhurriedWire, append_numbers
from tests.faults.processes import free_port
from tests.harness import ServerProcess, running_server

STREAM = (
    b"\xef\xbb\xbfretry: 5\r\n\r\n:\xe2\x98\x83\n\nevent: other\nid: 1\n"
    b'data: {"a":1}\n\nid:2\rdata\rdata: x\r\rid: 9\n\n'
)


async def take(events: AsyncGenerator[Event, None], count: int) -> list[int]:
    return [(await anext(events)).event_id for _ in range(count)]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_server_leaves_no_gap_and_no_duplicate(
    redis_url: str, chain: str, sig: signal.Signals
) -> None:
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain}
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    async def follow() -> list[int]:
        async with AsyncAuditClient(url) as client, aclosing(client.tail(after=0)) as events:
            with running_server(**settings, PORT=str(port)) as server:
                await append(server, 1, 2, 3)
                found = await take(events, 3)
                server.stop(sig)
            with running_server(**settings) as elsewhere:
                await append(elsewhere, 4, 5)  # while nobody is connected
            with running_server(**settings, PORT=str(port)) as server:
                found += await take(events, 2)
                await append(server, 6, 7)
                return found + await take(events, 2)

    assert asyncio.run(follow()) == [1, 2, 3, 4, 5, 6, 7]


async def append(server: ServerProcess, *numbers: int) -> None:
    for number in numbers:
        await asyncio.to_thread(server.post, {"kind": "other", "source": "s", "payload": {"n": number}})


def test_a_tail_may_be_left_at_any_event_and_taken_up_behind_it(server: ServerProcess) -> None:
    with AuditClient(server.url) as client:
        append_numbers(client, *range(5))
        events = client.tail(after=1)
        assert [next(events).event_id for _ in range(2)] == [2, 3]
        events.close()
        assert next(client.tail(after=3)).event_id == 4


def test_without_a_cursor_it_begins_at_what_comes_next(server: ServerProcess) -> None:
    async def follow() -> int:
        async with AsyncAuditClient(server.url) as client:
            await client.append("other", "s")
            async with aclosing(client.tail()) as events:
                coming = asyncio.ensure_future(anext(events))
                # It is the first connection that is counted, so from here on the next event is a new one.
                while (await client.stats()).subscribers == 0:  # noqa: ASYNC110 - it is another process' event
                    await asyncio.sleep(0.01)
                await client.append("other", "s")
                return (await coming).event_id

    assert asyncio.run(follow()) == 2


def test_a_filtered_tail_yields_only_what_it_was_asked_for(server: ServerProcess) -> None:
    with AuditClient(server.url) as client:
        for kind in ("other", "request_denied", "other", "request_denied"):
            client.append(kind, "s")
        events = client.tail(kind="request_denied", source="s", after=0)
        assert [next(events).event_id for _ in range(2)] == [2, 4]


def test_a_cursor_that_the_chain_never_reached_is_evidence_and_not_waited_for(server: ServerProcess) -> None:
    with AuditClient(server.url) as client:
        with pytest.raises(ChainBroken, match="ahead of the chain"):
            next(client.tail(after=5))
        with pytest.raises(Refused, match="nonsense"):
            next(client.tail(kind="nonsense", after=0))


def test_an_address_that_streams_nothing_is_refused(server: ServerProcess) -> None:
    with AuditClient(f"{server.url}/elsewhere") as client, pytest.raises(Refused, match="answered 404 to stream"):
        next(client.tail(after=0))


class Replaying(UnhurriedWire):
    """A server that resumes nowhere: on each connection it sends these bytes from the start, and is lost."""

    connections: ClassVar[list[bytes]] = []
    asked: ClassVar[list[str]] = []

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncGenerator[Incoming, None]:
        self.asked.append(request.headers["Last-Event-ID"])
        yield Incoming(200, httpx.Headers({"content-type": "text/event-stream"}), self._lost(self.connections.pop(0)))

    async def _lost(self, body: bytes) -> AsyncGenerator[bytes, None]:
        yield body
        raise httpx.ReadError("lost")


def frame(event_id: int) -> bytes:
    event = Event(event_id=event_id, timestamp="t", kind="other", source="s", payload={}, prev_hash="", hash="")
    return b"id: %d\ndata: %b\n\n" % (event_id, msgspec.json.encode(event))


def test_what_comes_twice_is_yielded_once_and_half_a_frame_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = map(frame, (1, 2, 3))
    monkeypatch.setattr(Replaying, "connections", [one + two[:-1], one + two + b"id: 7\n\n", three + frame(8)])
    monkeypatch.setattr(Replaying, "asked", [])

    async def follow() -> list[int]:
        async with AsyncAuditClient("http://h", wire=Replaying) as client, aclosing(client.tail(after=0)) as events:
            return await take(events, 3)

    assert asyncio.run(follow()) == [1, 2, 8]
    assert Replaying.asked == ["0", "1", "7"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_frames_are_the_same_wherever_the_bytes_are_cut(size: int) -> None:
    parser = Parser()
    found = [frame for at in range(0, len(STREAM), size) for frame in parser.feed(STREAM[at : at + size])]
    assert found == [Frame(b"1", b'{"a":1}'), Frame(b"2", b"\nx")]
    assert (parser.last_id, parser.retry_ms) == (b"9", 5)
