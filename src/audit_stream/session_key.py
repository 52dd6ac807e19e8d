"""The key in Redis that keeps the secret with which the servers of a chain seal the dashboard's sessions."""

import secrets
from typing import Any

from audit_stream.reader import Reader

SECRET_BYTES = 32


class SessionKey:
    """A random secret, made by the server that first asks for it.

    Redis gives nothing away by it: a session only reads the chain, as does everyone who can read Redis.
    """

    def __init__(self, reader: Reader, key: bytes) -> None:
        self._reader, self._key = reader, key

    async def secret(self) -> bytes:
        """Return the secret. Raises Unreachable when Redis is unavailable, or takes none."""
        async with self._reader.asking() as redis:
            # Read first: a Redis that is full refuses to write even what would change nothing.
            if secret := await self._read(redis):
                return secret
            await redis.set(self._key, secrets.token_bytes(SECRET_BYTES), nx=True)
            return await self._read(redis)

    async def _read(self, redis: Any) -> bytes:
        # Not GET: anyone who can write to Redis decides how long it is.
        secret: bytes = await redis.getrange(self._key, 0, SECRET_BYTES - 1)
        return secret
