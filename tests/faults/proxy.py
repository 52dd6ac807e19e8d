"""A TCP proxy in front of a Redis on a unix socket, which breaks connections at a chosen moment."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from redis.connection import parse_url

# before  the append never reaches Redis
# after   Redis does what it was asked, and its answer is thrown away
Cut = Literal["before", "after"]
_APPEND = b"EVALSHA"
_WAIT = b"*3\r\n$4\r\nWAIT\r\n"


class Proxy:
    """Passes bytes on, until it is told to break something."""

    def __init__(self, redis_url: str) -> None:
        self._path: str = parse_url(redis_url)["path"]
        self._cuts: list[Cut] = []
        self._closed = self._close_after_cut = False
        self.waits_answered: int | None = None
        """After so many, a WAIT is never answered, as on a connection that died without a word. None: all are."""
        self.has_cut = threading.Event()

    def cut_next(self, *cuts: Cut, then_closed: bool = False) -> None:
        """Break the connections of the next appends; `then_closed`: and take no new ones until `open`."""
        self.has_cut.clear()
        self._close_after_cut = then_closed
        self._cuts[:] = cuts

    def open(self) -> None:
        self._closed = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self._thread.start()
        assert ready.wait(10)

    def close(self) -> None:
        """End every connection, and take no more. May be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self._port: int = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()  # and when the loop ends, it cancels the connections that are open

    async def _take(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        if self._closed:
            client_out.transport.abort()
            return
        try:
            redis_in, redis_out = await asyncio.open_unix_connection(self._path)
        except OSError:  # Redis is away
            client_out.transport.abort()
            return
        drop_answer = asyncio.Event()
        pumps = (
            asyncio.create_task(self._requests(client_in, redis_out, drop_answer)),
            asyncio.create_task(self._answers(redis_in, client_out, drop_answer)),
        )
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for out in (client_out, redis_out):
                out.transport.abort()

    async def _requests(
        self, from_: asyncio.StreamReader, to: asyncio.StreamWriter, drop_answer: asyncio.Event
    ) -> None:
        while chunk := await from_.read(65536):
            if self._cuts and _APPEND in chunk:
                if self._cuts.pop(0) == "before":
                    self._cut()
                    return
                drop_answer.set()
            if self.waits_answered is not None and chunk.startswith(_WAIT):
                self.waits_answered -= 1
                if self.waits_answered < 0:
                    continue
            to.write(chunk)
            await to.drain()

    async def _answers(self, from_: asyncio.StreamReader, to: asyncio.StreamWriter, drop_answer: asyncio.Event) -> None:
        while chunk := await from_.read(65536):
            if drop_answer.is_set():
                self._cut()
                return
            to.write(chunk)
            await to.drain()

    def _cut(self) -> None:
        self._closed = self._close_after_cut
        self.has_cut.set()


@contextmanager
def proxy_to(redis_url: str) -> Iterator[Proxy]:
    proxy = Proxy(redis_url)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
