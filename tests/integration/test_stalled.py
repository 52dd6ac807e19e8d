"""Readers that do not read: what the server holds for them is bounded, and so is the time."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from audit_stream.appender import Appender
from audit_stream.event import PublishRequest, draft
from audit_stream.server.process import Server
from audit_stream.settings import Settings
from audit_stream.stream import Stream
from audit_stream.tally import Tally

KINDS = frozenset({"other"})
LARGE = 250_000
EVENTS = 12
STALLED_S = 0.4
HELD_BYTES = 512 * 1024
"""A chunk, what the transport held before it, and the frame of the answer."""


class Served:
    def __init__(self, server: Server, port: int, tally: Tally) -> None:
        self.server, self.port, self.tally = server, port, tally

    def ask(self, path: str, accept: str = "*/*") -> socket.socket:
        """Ask, on a connection whose kernel holds next to nothing, and do not read."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", self.port))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode())
        return sock

    def unsent_bytes(self) -> list[int]:
        return [connection.transport.get_write_buffer_size() for connection in self.server.server_state.connections]

    async def until(self, count: int, what: str) -> None:
        """Until so many are counted."""
        while self.tally.board.total(what) != count:  # noqa: ASYNC110 (a number in shared memory tells nobody)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(redis_url: str, chain: str, folder: Path, stalled_s: float) -> AsyncIterator[Served]:
    """A server in this process, on a chain of large events."""
    stream = Stream.at(redis_url, chain)
    async with Appender(stream) as appender:
        await appender.append([draft(PublishRequest("other", "s", {"x": "x" * LARGE}), KINDS) for _ in range(EVENTS)])
    await stream.close()
    tally, started = Tally(), asyncio.Event()
    server = Server(
        Settings(redis_url=redis_url, chain=chain, data_dir=folder), started.set, tally, stalled_s=stalled_s
    )
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        await started.wait()
        try:
            yield Served(server, listening.getsockname()[1], tally)
        finally:
            server.should_exit = True
            await task


ANSWERS = [
    ("/stream?after=0", "*/*"),
    (f"/events?limit={EVENTS}", "application/json"),
    (f"/events?limit={EVENTS}", "application/x-ndjson"),
]


def test_readers_that_do_not_read_hold_little_and_are_dropped_and_counted(
    redis_url: str, chain: str, tmp_path: Path
) -> None:
    async def test() -> None:
        async with serving(redis_url, chain, tmp_path, STALLED_S) as served:
            with ExitStack() as ends:
                for path, accept in ANSWERS:
                    ends.enter_context(served.ask(path, accept))
                most = 0
                dropped = asyncio.create_task(served.until(len(ANSWERS), "stalled_readers"))
                while not dropped.done():
                    most = max(most, *served.unsent_bytes(), 0)
                    await asyncio.sleep(0.01)
            assert LARGE / 2 < most <= HELD_BYTES
            await served.until(0, "sse_subscribers")
            assert served.tally.board.total("sse_drops") == 0  # that one is for those who read too slowly

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("path", [path for path, _ in ANSWERS[:2]])
def test_a_reader_that_reads_slowly_is_not_dropped(redis_url: str, chain: str, tmp_path: Path, path: str) -> None:
    """In none of the looks was everything read that waited, and in each of them something was."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with serving(redis_url, chain, tmp_path, STALLED_S) as served:
            with served.ask(path) as slow, served.ask(path):
                slow.setblocking(False)
                reading = asyncio.create_task(served.until(1, "stalled_readers"))
                taken = 0
                while not reading.done():
                    taken += len(await loop.sock_recv(slow, 4096))
                    await asyncio.sleep(STALLED_S / 40)
                # The other one is gone by now, and this one is still served.
                assert taken < EVENTS * LARGE / 2
                for _ in range(20):
                    assert await loop.sock_recv(slow, 65536)
                assert served.tally.board.total("stalled_readers") == 1

    asyncio.run(asyncio.wait_for(test(), 60))
