"""The key that keeps the last verdict of any server, as text."""

from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError, WatchError

from audit_stream.reader import Reader

VERDICT_BYTES = 4096
"""No verdict is longer."""


class KeptVerdict:
    """The text at one key. Raises Unreachable when Redis is unavailable."""

    def __init__(self, reader: Reader, key: bytes) -> None:
        self._reader, self._key = reader, key

    async def text(self) -> bytes:
        """Return the text, cut to VERDICT_BYTES; empty when there is no verdict."""
        async with self._reader.asking() as redis:
            return await _short_text(redis, self._key)

    async def exchange(self, decide: Callable[[bytes], bytes | None]) -> bool:
        """Give `decide` the same text and put what it returns in its place; False when another server was first."""
        async with self._reader.asking() as redis, redis.pipeline(transaction=True) as pipeline:
            await pipeline.watch(self._key)
            text = decide(await _short_text(pipeline, self._key))
            if text is None:
                return True
            pipeline.multi()
            pipeline.set(self._key, text)
            try:
                await pipeline.execute()
            except WatchError:
                return False
        return True


async def _short_text(client: Any, key: bytes) -> bytes:
    try:
        # Not GET: anyone who can write to Redis decides how long it is.
        text: bytes = await client.getrange(key, 0, VERDICT_BYTES - 1)
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return b"(not a string)"
    return text
