"""How requests travel and how one waits: the only part that the two faces of the client do not share.

The client is written once, as coroutines. Over `AsyncioWire` they run on an event loop. Over `BlockingWire`
nothing they await ever suspends, so `run` takes them to their end in one step, on the caller's own thread:
no loop and no thread of its own, and it works where a loop is running already.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import httpx

T = TypeVar("T")


class Request(NamedTuple):
    method: str
    path: str
    """Relative to the address of the server."""
    params: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: bytes | None = None
    read_timeout_s: float | None = None
    """Where it differs from the client's: how long the server may be silent."""


class Incoming(NamedTuple):
    """An answer whose body is still to be read."""

    status: int
    headers: httpx.Headers
    chunks: AsyncIterator[bytes]


class Wire(Protocol):
    def open(self, request: Request) -> AbstractAsyncContextManager[Incoming]:
        """Send the request. Raises httpx.TransportError, also while the body is read."""

    async def sleep(self, seconds: float) -> None: ...

    async def blocking(self, work: Callable[[], T]) -> T:
        """Do what waits for a disk or a lock."""

    async def close(self) -> None: ...


class AsyncioWire:
    def __init__(self, url: str, headers: Mapping[str, str], timeout: httpx.Timeout) -> None:
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout)

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Incoming]:
        async with self._client.stream(**_arguments(request, self._client.timeout)) as response:
            yield Incoming(response.status_code, response.headers, response.aiter_bytes())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def blocking(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def close(self) -> None:
        await self._client.aclose()


class BlockingWire:
    def __init__(self, url: str, headers: Mapping[str, str], timeout: httpx.Timeout) -> None:
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout)

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Incoming]:
        with self._client.stream(**_arguments(request, self._client.timeout)) as response:
            yield Incoming(response.status_code, response.headers, _never_suspending(response.iter_bytes()))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - it is the caller's thread that waits

    async def blocking(self, work: Callable[[], T]) -> T:
        return work()

    async def close(self) -> None:
        self._client.close()


async def _never_suspending(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def run(steps: Coroutine[Any, Any, T]) -> T:
    """Take a coroutine over a BlockingWire to its end."""
    try:
        steps.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    steps.close()
    raise RuntimeError("a coroutine over a BlockingWire waited for an event loop")


def _arguments(request: Request, timeout: httpx.Timeout) -> dict[str, Any]:
    if request.read_timeout_s is not None:
        timeout = httpx.Timeout(
            connect=timeout.connect, read=request.read_timeout_s, write=timeout.write, pool=timeout.pool
        )
    return {
        "method": request.method,
        "url": request.path,
        "params": dict(request.params),
        "headers": dict(request.headers),
        "content": request.body,
        "timeout": timeout,
    }
