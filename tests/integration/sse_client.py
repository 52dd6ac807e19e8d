"""A plain reader of server-sent events: it hides nothing of what the server sends, and resumes nothing by itself."""

import asyncio
import contextlib
import re
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit


class Frame(NamedTuple):
    """One block of the stream, field by field (WHATWG HTML §9.2.5). None: there was no such line."""

    event: str | None = None
    id: int | None = None
    data: str | None = None
    retry: int | None = None
    comment: str | None = None


def parse(block: bytes) -> Frame:
    """Read the lines of one block. Raises ValueError for a line that the server has no business sending."""
    fields: dict[str, str] = {}
    for line in block.decode().split("\n"):
        name, colon, value = line.partition(":")
        name = name or "comment"
        if not colon or name not in Frame._fields or name in fields:
            raise ValueError(f"{line!r} in {block!r}")
        fields[name] = value.removeprefix(" ")
    return Frame(
        fields.get("event"),
        int(fields["id"]) if "id" in fields else None,
        fields.get("data"),
        int(fields["retry"]) if "retry" in fields else None,
        fields.get("comment"),
    )


_BLOCK = re.compile(rb"(?:[^:\n].*\n)*(?:\n|:.*\n)")


def split(body: bytes) -> tuple[list[Frame], bytes]:
    """The whole blocks of `body`, and what is left of it. A comment ends a block here, as it comes before one."""
    frames, at = [], 0
    while match := _BLOCK.match(body, at):
        frames.append(parse(match.group().rstrip(b"\n")))
        at = match.end()
    return frames, body[at:]


class SseStream:
    """One open answer to GET /stream."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: dict[str, str]) -> None:
        self._reader = reader
        self._found: deque[Frame] = deque()
        self._rest = b""
        self.status = status
        self.headers = headers
        self.ended_properly = False
        """The last chunk came, so the server closed the stream and nothing was cut off."""

    async def next(self) -> Frame | None:
        """The next block, be it a comment; None when the server has ended the stream or it is broken."""
        try:
            while not self._found:
                size = int(await self._reader.readline(), 16)
                chunk = await self._reader.readexactly(size + 2)
                if size == 0:
                    self.ended_properly = self._rest == b""
                    return None
                found, self._rest = split(self._rest + chunk[:-2])
                self._found.extend(found)
            return self._found.popleft()
        except (OSError, asyncio.IncompleteReadError):
            return None
        except ValueError:
            if self._reader.at_eof():  # no chunk began: the connection was closed
                return None
            raise

    async def frames(self) -> AsyncIterator[Frame]:
        while frame := await self.next():
            yield frame

    async def events(self) -> AsyncIterator[Frame]:
        """Only the frames that dispatch an event."""
        async for frame in self.frames():
            if frame.data is not None:
                yield frame

    async def body(self) -> bytes:
        """The body of an answer that is no stream."""
        return await self._reader.readexactly(int(self.headers["content-length"]))


@asynccontextmanager
async def open_stream(
    url: str, query: str = "", *, last_event_id: str | int | None = None, receive_buffer: int | None = None
) -> AsyncIterator[SseStream]:
    """GET /stream on a connection of its own, which is closed on leaving."""
    address = urlsplit(url)
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
        # A reader that buffers little stops reading its socket early, as a slow client does.
        limit = 64 * 1024 if receive_buffer is None else 4096
        reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    except BaseException:
        sock.close()
        raise
    try:
        header = "" if last_event_id is None else f"Last-Event-ID: {last_event_id}\r\n"
        writer.write(f"GET /stream{query} HTTP/1.1\r\nHost: {address.netloc}\r\n{header}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = re.match(r"HTTP/1\.1 (\d+)", head)
        assert status, head
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:] if line)
        }
        yield SseStream(reader, int(status.group(1)), headers)
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # the server closed it first
            await writer.wait_closed()


async def take(stream: SseStream, count: int) -> list[Frame]:
    """The next `count` events; fewer when the stream ends."""
    taken: list[Frame] = []
    async for frame in stream.events():
        taken.append(frame)
        if len(taken) == count:
            break
    return taken


async def follow(url: str, *, after: int, upto: int, query: str = "", seen: list[Frame] | None = None) -> list[Frame]:
    """Read every event behind `after` up to `upto` as a browser does: come back by the last id when a stream ends."""
    seen = [] if seen is None else seen
    last = after
    while last < upto:
        try:
            async with open_stream(url, query, last_event_id=last) as stream:
                async for frame in stream.events():
                    seen.append(frame)
                    assert frame.id is not None
                    last = frame.id
                    if last >= upto:
                        break
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.05)  # nobody listens at the moment
    return seen
