"""Reading from Redis: answered within READ_TIMEOUT_S, and how long it took is counted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

from redis.asyncio import Redis

from audit_stream.connection import reading
from audit_stream.tally import Tally


class Reader:
    """The connections for everything that can safely be asked twice."""

    def __init__(self, redis: Redis, tally: Tally) -> None:
        self.redis = redis
        """For what may take longer than READ_TIMEOUT_S."""
        self._tally = tally

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[Redis]:
        """Lend the connections for one answer. Raises Unreachable, or ChainBroken for a key of another type."""
        began = perf_counter()
        async with reading():
            yield self.redis
        self._tally.redis_read_seconds.observe(perf_counter() - began)
