"""A TCP proxy in front of a Redis, which breaks connections, or only their words, at a chosen moment."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from redis.connection import parse_url

from audit_stream.scripts import append_script

# before  the append never reaches Redis
# after   Redis does what it was asked, and its answer is thrown away
Cut = Literal["before", "after"]
# What is dropped without a word, as by a firewall that forgot the connection. `answers`: those on connections
# that append or follow, so that nobody hears of a write; a server may still ask where the chain ends.
# `replication`: those on which a replica follows, both ways.
Hush = Literal["nothing", "answers", "replication", "all"]
_FOLLOW = b"XREAD"
_REPLICATE = b"PSYNC"
OPENING_BYTES = 1000
_WAITS = (b"*3\r\n$4\r\nWAIT\r\n", b"*4\r\n$7\r\nWAITAOF\r\n")


def _appends(chunk: bytes) -> bool:
    """Whether an append is among the commands, and not only a dry run of one."""
    return chunk.count(append_script()[1].encode()) > chunk.count(b":batch:probe")


class _Link:
    """One connection through the proxy. Once hushed it stays so: TCP never loses a part from the middle."""

    def __init__(self, hush: Hush) -> None:
        self.hush = hush
        self.hears_of_writes = False
        self.replicates = False
        self.drop_answer = False
        self.opening = b""
        """The first that the client said, by which it names itself."""
        self.dropped = False


class Proxy:
    """Passes bytes on, until it is told to break something."""

    def __init__(self, redis_url: str) -> None:
        self._cuts: list[Cut] = []
        self._closed = self._close_after_cut = False
        self._links: dict[_Link, asyncio.StreamWriter] = {}
        self._cut_off: tuple[bytes, ...] = ()
        self._hush_new: Hush = "nothing"
        self.delay_s = 0.0
        """How late each answer is."""
        self.waits_answered: int | None = None
        """After so many, a WAIT is never answered, as on a connection that died without a word. None: all are."""
        self.has_cut = threading.Event()
        self.has_dropped = threading.Event()
        """An append was dropped without a word."""
        self.redirect(redis_url)

    def redirect(self, redis_url: str) -> None:
        """From now on connect to another Redis; the connections that are open stay where they are."""
        self._target = parse_url(redis_url)

    def cut_next(self, *cuts: Cut, then_closed: bool = False) -> None:
        """Break the connections of the next appends; `then_closed`: and take no new ones until `open`."""
        self.has_cut.clear()
        self._close_after_cut = then_closed
        self._cuts[:] = cuts

    def open(self) -> None:
        self._closed = False

    def hush(self, what: Hush, *, new: bool) -> None:
        """Drop it on every connection that is open, for good, and with `new` on those opened before `speak`.

        Returns when it is so: what comes from now on is dropped.
        """

        async def hush() -> None:
            self.has_dropped.clear()
            self._hush_new = what if new else "nothing"
            for link in self._links:
                link.hush = what

        asyncio.run_coroutine_threadsafe(hush(), self._loop).result(10)

    def speak(self) -> None:
        self._hush_new = "nothing"

    def cut_off(self, *peers: bytes) -> None:
        """Drop without a word what these peers say and hear, and let all others through again.

        A peer is known by the words that its connections begin with, such as PSYNC or the name of a sentinel. A
        connection that has lost words is closed when its peer is let through again.
        """

        async def cut_off() -> None:
            self._cut_off = peers
            for link, client_out in self._links.items():
                if link.dropped and not self._is_cut_off(link):
                    client_out.transport.abort()

        asyncio.run_coroutine_threadsafe(cut_off(), self._loop).result(10)

    def _is_cut_off(self, link: _Link) -> bool:
        return any(peer in link.opening for peer in self._cut_off)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

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
        self.port: int = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()  # and when the loop ends, it cancels the connections that are open

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if path := self._target.get("path"):
            return await asyncio.open_unix_connection(path)
        return await asyncio.open_connection(self._target["host"], self._target["port"])

    async def _take(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        if self._closed:
            client_out.transport.abort()
            return
        try:
            redis_in, redis_out = await self._reach()
        except OSError:  # Redis is away
            client_out.transport.abort()
            return
        link = _Link(self._hush_new)
        self._links[link] = client_out
        pumps = (
            asyncio.create_task(self._requests(client_in, redis_out, link)),
            asyncio.create_task(self._answers(redis_in, client_out, link)),
        )
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._links[link]
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for out in (client_out, redis_out):
                out.transport.abort()

    async def _requests(self, from_: asyncio.StreamReader, to: asyncio.StreamWriter, link: _Link) -> None:
        while chunk := await from_.read(65536):
            appends = _appends(chunk)
            link.hears_of_writes |= appends or _FOLLOW in chunk
            link.replicates |= _REPLICATE in chunk
            link.opening += chunk[: OPENING_BYTES - len(link.opening)]
            if self._is_cut_off(link):
                link.dropped = True
                continue
            if link.hush == "all" or (link.hush == "replication" and link.replicates):
                if appends:
                    self.has_dropped.set()
                continue
            if self._cuts and appends:
                if self._cuts.pop(0) == "before":
                    self._cut()
                    return
                link.drop_answer = True
            if self.waits_answered is not None and chunk.startswith(_WAITS):
                self.waits_answered -= 1
                if self.waits_answered < 0:
                    continue
            to.write(chunk)
            await to.drain()

    async def _answers(self, from_: asyncio.StreamReader, to: asyncio.StreamWriter, link: _Link) -> None:
        while chunk := await from_.read(65536):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if link.drop_answer:
                self._cut()
                return
            if self._is_cut_off(link):
                link.dropped = True
                continue
            if link.hush == "all" or (link.hush == "answers" and link.hears_of_writes):
                continue
            if link.hush == "replication" and link.replicates:
                continue
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
