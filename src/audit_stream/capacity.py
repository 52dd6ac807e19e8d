"""How long the memory of Redis lasts at the present rate."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from time import monotonic
from typing import NamedTuple

from audit_stream.errors import AuditStreamError
from audit_stream.stream import Stream

SOON_DAYS = 14
"""`doctor` and the alert warn below this: enough time to order memory."""

DAY = timedelta(days=1)
SHORTEST = timedelta(hours=1)
"""A rate that was observed for less time says nothing about the next weeks."""
FEWEST = 1_000
"""In a shorter chain, the first nodes of its streams take more memory than its events."""
LOOK_EVERY_S = 10.0


class Memory(NamedTuple):
    used_bytes: int
    limit_bytes: int
    """`maxmemory`, or where that is 0 the memory of the machine."""
    dataset_bytes: int
    """What is used for data: `used_bytes` without buffers and what an empty Redis takes."""


class Growth(NamedTuple):
    """The events of one chain, and how many of them are new."""

    events: int
    recent: int
    """Committed within the last `window`."""
    window: timedelta


class Capacity(NamedTuple):
    used_bytes: int
    limit_bytes: int
    days_until_full: float | None
    """None when too little was appended to tell."""


def memory(facts: Mapping[str, str]) -> Memory | None:
    """Read what INFO says of memory; None where a provider hides it."""
    used, limit = _number(facts, "used_memory"), _number(facts, "maxmemory") or _number(facts, "total_system_memory")
    if not used or not limit:
        return None
    return Memory(used, limit, _number(facts, "used_memory_dataset") or used)


def _number(facts: Mapping[str, str], name: str) -> int:
    text = facts.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else 0


def days_until_full(memory: Memory, growth: Growth) -> float | None:
    """Divide the memory that is free by what the events of a day take.

    The bytes of an event are all data of this Redis divided by the events of the chain. Idempotency keys and
    other chains therefore count as growing with it, and the answer errs on the early side. None when the
    chain does not grow, or is too short or too young for a rate.
    """
    if memory.used_bytes >= memory.limit_bytes:
        return 0.0
    if growth.events < FEWEST or growth.recent <= 0 or growth.window < SHORTEST:
        return None
    bytes_per_day = memory.dataset_bytes / growth.events * growth.recent * (DAY / growth.window)
    return (memory.limit_bytes - memory.used_bytes) / bytes_per_day


async def growth(stream: Stream) -> Growth:
    """Count the events of the last day, or since the first one, by the clock of Redis. Raises Unreachable."""
    now_ms, head = await stream.now_ms(), await stream.head()
    first = await stream.indexes.times(b"0-0", count=1)
    if not first:
        return Growth(head.event_id, 0, timedelta(0))
    window = min(DAY, timedelta(milliseconds=max(0, now_ms - int(first[0][0].partition(b"-")[0]))))
    before = await stream.indexes.last_before(now_ms - window // timedelta(milliseconds=1))
    return Growth(head.event_id, head.event_id - (before or 0), window)


async def look(stream: Stream, facts: Mapping[str, str]) -> Capacity | None:
    """Compute the capacity; None where Redis hides its memory. Raises Unreachable, ChainBroken."""
    found = memory(facts)
    if found is None:
        return None
    return Capacity(found.used_bytes, found.limit_bytes, days_until_full(found, await growth(stream)))


class CapacityWatch:
    """Keeps the capacity for LOOK_EVERY_S, so that /metrics and /stats do not ask Redis each time."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._last: Capacity | None = None
        self._due = 0.0
        self._looking = asyncio.Lock()

    async def now(self) -> Capacity | None:
        """Return the capacity; None while Redis is unreachable or hides its memory."""
        async with self._looking:
            if monotonic() >= self._due:
                try:
                    self._last = await look(self._stream, await self._stream.facts())
                except AuditStreamError:
                    self._last = None
                self._due = monotonic() + LOOK_EVERY_S
        return self._last
