"""The lease of the server that verifies in the background: a key that holds its token until it runs out."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import WatchError

from audit_stream.reader import Reader


class Lease:
    """The lease at one key. Raises Unreachable when Redis is unavailable."""

    def __init__(self, reader: Reader, key: bytes) -> None:
        self._reader, self._key = reader, key

    async def take(self, token: bytes, lease_ms: int) -> bool:
        """Take the lease, or keep it for another `lease_ms`; False while another token holds it."""
        async with self._reader.asking() as redis:
            if await redis.set(self._key, token, nx=True, px=lease_ms):
                return True
            return await self._if_held(redis, token, lambda pipeline: pipeline.pexpire(self._key, lease_ms))

    async def let_go(self, token: bytes) -> bool:
        """Give the lease back, so that another need not wait until it runs out."""
        async with self._reader.asking() as redis:
            return await self._if_held(redis, token, lambda pipeline: pipeline.unlink(self._key))

    async def _if_held(self, redis: Redis, token: bytes, change: Callable[[Any], object]) -> bool:
        async with redis.pipeline(transaction=True) as pipeline:
            await pipeline.watch(self._key)
            if await cast("Awaitable[bytes | None]", pipeline.get(self._key)) != token:
                return False
            pipeline.multi()
            change(pipeline)
            try:
                await pipeline.execute()
            except WatchError:
                return False  # it ran out in this moment
        return True
