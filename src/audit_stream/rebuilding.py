"""Growing new indexes beside those in use, and putting them in their place in one step."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import WatchError

from audit_stream.chain import Event
from audit_stream.connection import reaching
from audit_stream.entries import page_of, times_of
from audit_stream.keys import Keys


class Swap(NamedTuple):
    """The last step of rebuilding the indexes."""

    entries: Sequence[tuple[bytes, bytes]]
    """(key, entry id) to add to the new indexes first."""
    moves: Sequence[tuple[bytes, bytes]]
    """(where the new index grew, the key it belongs to)."""
    drop: Sequence[bytes]
    """Keys that have no successor: old indexes, and the set of sources, which servers make anew."""


class Rebuilding:
    """What rebuilding the indexes of one chain writes. Raises Unreachable when Redis is unavailable."""

    def __init__(self, write: Redis, keys: Keys) -> None:
        self._write, self._keys = write, keys

    async def fill(self, entries: Sequence[tuple[bytes, bytes]], *, kept_s: int) -> None:
        """Add (key, entry id) to indexes that nobody reads yet; Redis forgets these after `kept_s` without a call."""
        with reaching():
            # In one step: killed in the middle, this process leaves no index that Redis would keep for ever.
            async with self._write.pipeline(transaction=True) as pipeline:
                for key, entry_id in entries:
                    pipeline.execute_command("XADD", key, entry_id, b"", b"")
                for key in {key for key, _ in entries}:
                    pipeline.expire(key, kept_s)
                await pipeline.execute()

    async def swap(
        self,
        after: int,
        times_after: bytes | None,
        count: int,
        finish: Callable[[list[Event], list[tuple[bytes, int]]], Swap | None],
    ) -> bool:
        """Put new indexes in place in one step, unless the chain moves meanwhile; return whether that was done.

        `finish` is given up to `count` events after `after`, and the entries of the time index after
        `times_after`; it says what is still to be added and moved, or that it is not ready.
        """
        with reaching():
            async with self._write.pipeline(transaction=True) as pipeline:
                await pipeline.watch(self._keys.events)
                # Having watched, a pipeline sends each command at once, until `multi`.
                ask = cast("Callable[..., Awaitable[list[Any]]]", pipeline.execute_command)
                events = await ask("XRANGE", self._keys.events, b"(%d-0" % after, "+", "COUNT", count)
                times = await ask("XRANGE", self._keys.time, b"(" + times_after, "+") if times_after else []
                swap = finish(page_of(events).unbroken(), times_of(times))
                if swap is None:
                    return False
                pipeline.multi()
                for key, entry_id in swap.entries:
                    pipeline.execute_command("XADD", key, entry_id, b"", b"")
                for key in swap.drop:
                    pipeline.unlink(key)
                for new, key in swap.moves:
                    pipeline.unlink(key)
                    pipeline.rename(new, key)
                    pipeline.persist(key)
                try:
                    await pipeline.execute()
                except WatchError:
                    return False
        return True

    async def drop(self, keys: Sequence[bytes]) -> None:
        """Remove indexes."""
        with reaching():
            for start in range(0, len(keys), 1000):
                await self._write.unlink(*keys[start : start + 1000])
