"""Reaching the chain in its Redis, without a server between."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from audit_stream.stream import Stream

Answer = TypeVar("Answer")


def with_stream(redis_url: str, chain: str, ask: "Callable[[Stream], Awaitable[Answer]]") -> Answer:
    """Open the chain, ask, close it. Raises what asking raises."""
    from audit_stream.stream import Stream

    async def run() -> Answer:
        stream = Stream.at(redis_url, chain)
        try:
            return await ask(stream)
        finally:
            await stream.close()

    return asyncio.run(run())
