"""Reading the index streams beside a chain: by kind, by source and by commit time.

They can be rebuilt from the events, which alone are the truth.
"""

from collections.abc import Sequence
from typing import NamedTuple

from audit_stream import scripts
from audit_stream.connection import reaching
from audit_stream.entries import times_of
from audit_stream.keys import Keys, literally
from audit_stream.reader import Reader


class Stretch(NamedTuple):
    """A part of the index at `key`, and the entries that belong there."""

    key: bytes
    low: bytes
    high: bytes
    entries: Sequence[bytes]


class Indexes:
    """The indexes of one chain. Raises Unreachable, or ChainBroken for a key that is not a stream."""

    def __init__(self, reader: Reader, keys: Keys) -> None:
        self._reader, self.keys = reader, keys

    def event_id(self, key: bytes, entry_id: bytes) -> int:
        """Return the event that an entry of the index at `key` is about."""
        ms_or_id, _, id_or_zero = entry_id.partition(b"-")
        return int(id_or_zero if key == self.keys.time else ms_or_id)

    async def ids(self, key: bytes, *, low: int, high: int | None, count: int, newest_first: bool = False) -> list[int]:
        """Return up to `count` event_ids from the index at `key`, between `low` and `high`, both included."""
        first, last = b"%d" % max(low, 0), b"+" if high is None else b"%d" % max(high, 0)
        command, bounds = ("XREVRANGE", (last, first)) if newest_first else ("XRANGE", (first, last))
        async with self._reader.asking() as redis:
            reply = await redis.execute_command(command, key, *bounds, "COUNT", count)
        return [int(entry_id.partition(b"-")[0]) for entry_id, _ in reply]

    async def ids_among(self, key: bytes, event_ids: Sequence[int]) -> list[int]:
        """Return those of the ids that the index at `key` holds."""
        async with self._reader.asking() as redis, redis.pipeline(transaction=False) as pipeline:
            for event_id in event_ids:
                pipeline.execute_command("XRANGE", key, b"%d-0" % event_id, b"%d-0" % event_id)
            replies = await pipeline.execute()
        return [event_id for event_id, reply in zip(event_ids, replies, strict=True) if reply]

    async def entries(self, stretches: Sequence[Stretch]) -> list[bytes | None]:
        """Return the entry ids in each stretch, joined by commas, one too many at most; None for no stream."""
        keys = [stretch.key for stretch in stretches]
        ranges = [of for _, low, high, entries in stretches for of in (low, high, len(entries) + 1)]
        async with self._reader.asking() as redis:
            return await scripts.read_entries(redis, keys, ranges)

    async def lengths(self, keys: Sequence[bytes]) -> list[int]:
        """Return how many entries each of these streams holds."""
        async with self._reader.asking() as redis, redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.xlen(key)
            return list(await pipeline.execute())

    async def first_at(self, ms: int) -> int | None:
        """Return the first event committed at or after this Unix time in milliseconds."""
        async with self._reader.asking() as redis:
            reply = await redis.execute_command("XRANGE", self.keys.time, b"%d" % max(ms, 0), "+", "COUNT", 1)
        return int(reply[0][0].partition(b"-")[2]) if reply else None

    async def last_before(self, ms: int) -> int | None:
        """Return the last event committed before this Unix time in milliseconds."""
        bound = b"(%d-0" % max(ms, 1)
        async with self._reader.asking() as redis:
            reply = await redis.execute_command("XREVRANGE", self.keys.time, bound, "-", "COUNT", 1)
        return int(reply[0][0].partition(b"-")[2]) if reply else None

    async def times(self, after: bytes, *, count: int) -> list[tuple[bytes, int]]:
        """Return up to `count` (entry id, event_id) of the index by commit time, after the entry `after`."""
        async with self._reader.asking() as redis:
            reply = await redis.execute_command("XRANGE", self.keys.time, b"(" + after, "+", "COUNT", count)
        return times_of(reply)

    async def find_keys(self) -> list[bytes]:
        """Return the key of every kind and source index that exists."""
        with reaching():
            # No node of a cluster says that it is the wrong one for SCAN; for a key it does.
            await self._reader.redis.exists(self.keys.events)
            pattern = b"{%b}:" % self.keys.chain.encode()
            return [
                key
                async for key in self._reader.redis.scan_iter(match=literally(pattern) + b"*", count=1000)
                if key.startswith((pattern + b"kind:", pattern + b"source:"))
            ]
