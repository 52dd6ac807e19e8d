"""`{audit}:sources`: every source that has an event on the chain, a set.

It can be rebuilt from the indexes, and holds the empty string, which is not a source, once it has been.
"""

from collections.abc import Sequence
from typing import NamedTuple

from audit_stream.keys import Keys
from audit_stream.reader import Reader

COMPLETE = b""


class Known(NamedTuple):
    new: list[bytes]
    """Those of the sources asked about that the set does not hold."""
    size: int
    """How many it holds."""
    complete: bool
    """Whether the sources of the time before the set are in it as well."""


class KnownSources:
    """The set of one chain. Raises Unreachable, or ChainBroken for a key that is not a set."""

    def __init__(self, reader: Reader, keys: Keys) -> None:
        self._reader, self._keys = reader, keys

    async def look(self, sources: Sequence[bytes]) -> Known:
        async with self._reader.asking() as redis, redis.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("SMISMEMBER", self._keys.sources, COMPLETE, *sources)
            pipeline.scard(self._keys.sources)
            (complete, *known), count = await pipeline.execute()
        new = [source for source, is_known in zip(sources, known, strict=True) if not is_known]
        return Known(new, count - complete, bool(complete))

    async def add(self, sources: Sequence[bytes]) -> None:
        async with self._reader.asking() as redis:
            await redis.execute_command("SADD", self._keys.sources, *sources)

    async def indexed(self, sources: Sequence[bytes]) -> list[bytes]:
        """Return those that have an index, and so an event."""
        async with self._reader.asking() as redis, redis.pipeline(transaction=False) as pipeline:
            for source in sources:
                pipeline.exists(self._keys.source(source))
            found = await pipeline.execute()
        return [source for source, exists in zip(sources, found, strict=True) if exists]
