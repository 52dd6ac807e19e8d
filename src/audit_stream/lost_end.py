"""What Redis still knows of events that are lost: idempotency keys, and the ids it gave them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import WatchError

from audit_stream.chain import START, Head
from audit_stream.connection import reaching
from audit_stream.entries import head_of
from audit_stream.errors import ChainBroken, Unreachable
from audit_stream.keys import Keys, literally
from audit_stream.reader import Reader


class LostEnd:
    """Makes a chain that lost its newest events ready to go on. Raises Unreachable when Redis is unavailable."""

    def __init__(self, reader: Reader, write: Redis, keys: Keys) -> None:
        self._reader, self._write, self._keys = reader, write, keys

    async def forget_keys(self) -> int:
        """Forget idempotency keys that name an event after the head; return how many there were.

        Their events are lost, and a producer that sends one again is to have it stored.
        """
        count = 0
        with reaching():
            pattern = literally(self._keys.once(b"")) + b"*"
            names: list[bytes] = []
            async for name in self._reader.redis.scan_iter(match=pattern, count=1000):
                names.append(name)
                if len(names) == 1000:
                    count += await self._forget_lost(names)
                    names = []
            return count + await self._forget_lost(names)

    async def _forget_lost(self, names: Sequence[bytes]) -> int:
        values = await self._reader.redis.mget(names) if names else []
        # Asked after the keys: a key is written with its event, so one that names a later event has lost it.
        async with self._reader.asking() as redis:
            head = head_of(await redis.execute_command("XREVRANGE", self._keys.events, "+", "-", "COUNT", 1)).event_id
        lost = [name for name, value in zip(names, values, strict=True) if value and int(value) > head]
        if lost:
            await self._write.unlink(*lost)
        return len(lost)

    async def end_at(self, head: Head) -> None:
        """Have Redis give the id after `head` next, whatever ids were given before to events that are gone.

        Raises ChainBroken when the chain does not end with this event, Unreachable when it moves meanwhile.
        """
        async with self._reader.asking() as redis, self._write.pipeline(transaction=True) as pipeline:
            await pipeline.watch(self._keys.events)
            ask = cast("Callable[..., Awaitable[list[Any]]]", pipeline.execute_command)
            if head_of(await ask("XREVRANGE", self._keys.events, "+", "-", "COUNT", 1)) != head:
                raise ChainBroken(f"the chain no longer ends with event #{head.event_id}", at=head.event_id)
            info = await redis.xinfo_stream(self._keys.events)
            pipeline.multi()
            if head != START:
                last_id = b"%d-0" % head.event_id
                if "max-deleted-entry-id" in info:
                    # Valkey does not go below an id that XDEL has removed, so that mark is set back first.
                    bound = (info["last-generated-id"], "ENTRIESADDED", head.event_id, "MAXDELETEDID", last_id)
                    pipeline.execute_command("XSETID", self._keys.events, *bound)
                pipeline.execute_command("XSETID", self._keys.events, last_id)
            else:
                pipeline.unlink(self._keys.events)
            try:
                await pipeline.execute()
            except WatchError as error:
                raise Unreachable("somebody else writes to this chain; run the command again") from error
