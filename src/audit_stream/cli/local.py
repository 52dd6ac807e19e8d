"""Reaching the chain in its Redis, without a server between."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from audit_stream.errors import InUse, Misconfigured

if TYPE_CHECKING:
    from audit_stream.stream import Stream

Answer = TypeVar("Answer")


@contextmanager
def stopped_server(data_dir: Path, *, why: str) -> Iterator[str]:
    """Run the embedded Valkey on the data of a server that is stopped; yield its address.

    Raises Misconfigured where a server runs there, `why` saying what to do then.
    """
    from audit_stream.embedded import EmbeddedValkey

    valkey = EmbeddedValkey(data_dir)
    try:
        valkey.start()
    except InUse as error:
        raise Misconfigured(f"--data-dir: {str(error).partition(';')[0]}: {why}") from error
    try:
        yield valkey.url
    finally:
        valkey.stop()


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
