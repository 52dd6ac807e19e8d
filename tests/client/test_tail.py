"""tail: no gap and no duplicate, whatever happens in between."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import ClassVar

import httpx
import msgspec
import pytest

from audit_stream.client import AsyncAuditClient, AuditClient, Event, Head, Spooled
from audit_stream.client.sse import Frame, Parser
from audit_stream.client.wire import Incoming, Request
from audit_stream.errors import ChainBroken, ChainChanged, Refused
from tests.client.clients import UnhurriedWire, append_numbers
from tests.faults.processes import free_port
from tests.harness import ServerProcess, running_server
from tests.tamper.stored import Stored

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
    """A server that resumes nowhere: on each connection it sends these bytes from the start, and is lost.

    It has every event that it is asked for by its id.
    """

    connections: ClassVar[list[bytes]] = []
    asked: ClassVar[list[str]] = []

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncGenerator[Incoming, None]:
        if request.path != "stream":
            body = _text(int(request.path.rpartition("/")[2]))
            yield Incoming(200, httpx.Headers({"content-type": "application/json"}), _chunk(body))
            return
        self.asked.append(request.headers["Last-Event-ID"])
        yield Incoming(200, httpx.Headers({"content-type": "text/event-stream"}), self._lost(self.connections.pop(0)))

    async def _lost(self, body: bytes) -> AsyncGenerator[bytes, None]:
        yield body
        raise httpx.ReadError("lost")


async def _chunk(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _text(event_id: int) -> bytes:
    event = Event(event_id=event_id, timestamp="t", kind="other", source="s", payload={}, prev_hash="", hash="")
    return msgspec.json.encode(event)


def frame(event_id: int) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (event_id, _text(event_id))


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


# --- another chain behind the same address


class Restarting:
    """A server on one port whose chain is exchanged for an older one while it is stopped."""

    def __init__(self, redis_url: str, chain: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, "PORT": str(self.port)}
        self.stored = Stored(redis_url, chain)

    @contextmanager
    def on_another_chain(self, older: dict[bytes, bytes], *numbers: int) -> Iterator[None]:
        """Run again on the older chain, with these events added."""
        self.stored.restore(older)
        with running_server(**self.settings) as server:
            for number in numbers:
                server.post({"kind": "other", "source": "s", "payload": {"n": number}}).raise_for_status()
            yield


@pytest.fixture
def restarting(redis_url: str, chain: str) -> Iterator[Restarting]:
    found = Restarting(redis_url, chain)
    yield found
    found.stored.close()


@pytest.mark.parametrize(("kind", "added"), [(None, 3), (None, 2), ("other", 4)])
def test_a_chain_that_was_exchanged_is_told_of_after_the_reconnect(
    restarting: Restarting, kind: str | None, added: int
) -> None:
    """The next event does not follow; nothing comes; or a filter hides which event was before."""
    with AuditClient(restarting.url) as client:
        with running_server(**restarting.settings):
            append_numbers(client, 1)
            older = restarting.stored.dump()
            append_numbers(client, 2, 3)
            events = client.tail(kind=kind, after=0)
            last = [next(events) for _ in range(3)][-1]
        with restarting.on_another_chain(older, *range(added)):
            with pytest.raises(ChainChanged, match="event #3 was read with the hash") as caught:
                next(events)
            found = client.get(3)
            assert found is not None
            assert (caught.value.at, caught.value.expected, caught.value.found) == (3, last.hash, found.hash)
            assert found.hash != last.hash
            for known in (last, Head(last.event_id, last.hash)):
                with pytest.raises(ChainChanged):
                    next(client.tail(after=known))
            append_numbers(client, 9)
            assert next(client.tail(after=found)).event_id == 4


def test_an_event_that_does_not_follow_is_told_of_while_the_connection_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = frame(1), frame(2).replace(b'"prev_hash":""', b'"prev_hash":"b"')
    monkeypatch.setattr(Replaying, "connections", [one + other])
    monkeypatch.setattr(Replaying, "asked", [])

    async def follow() -> None:
        async with AsyncAuditClient("http://h", wire=Replaying) as client, aclosing(client.tail(after=0)) as events:
            assert await take(events, 1) == [1]
            with pytest.raises(ChainChanged, match="event #1 was read"):
                await anext(events)

    asyncio.run(follow())


def test_an_event_that_is_still_in_the_spool_is_no_place_to_follow_from(server: ServerProcess) -> None:
    waiting = Spooled(idempotency_key="k", path="p", reason="away")
    with AuditClient(server.url) as client, pytest.raises(Refused, match="it has no id yet"):
        next(client.tail(after=waiting))
