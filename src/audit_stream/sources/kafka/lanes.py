"""Records between Kafka and the spine: side by side in lanes, and in order within each partition.

Every partition has its one lane, and a lane has one batch under way, so what came first in a partition is first on
the chain. Lanes are few: their batches are the larger, and the spine works on one while another is made.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from zlib import crc32

from audit_stream.sources.kafka.broker import Assignment, Item
from audit_stream.sources.stopping import Stopped, Stopping

LANES = 3
# Within what the spine takes at once (2,000 events, 4 MiB), also with what a record gets on top.
BATCH_EVENTS = 1_000
BATCH_BYTES = 2 * 1024 * 1024
# What is in memory, not counting what librdkafka has read ahead.
MOST_RECORDS = 12_000
MOST_BYTES = 32 * 1024 * 1024

Settle = Callable[[Sequence[Item]], Awaitable[None]]


class Lanes:
    def __init__(self, settle: Settle, stopping: Stopping) -> None:
        self._room = asyncio.Event()
        self._room.set()
        self.records = 0
        self._size_bytes = 0
        self._lanes = [_Lane(settle, stopping, self._left) for _ in range(LANES)]

    def run(self) -> list["asyncio.Task[None]"]:
        return [asyncio.create_task(lane.run(), name=f"lane {number}") for number, lane in enumerate(self._lanes)]

    def put(self, items: Sequence[Item]) -> None:
        for assignment, record in items:
            # The partitions of one topic are spread evenly.
            lane = (crc32(assignment.topic.encode()) + assignment.partition) % LANES
            self._lanes[lane].put((assignment, record))
            self.records += 1
            self._size_bytes += record.size_bytes
        self._look()

    @property
    def full(self) -> bool:
        return not self._room.is_set()

    async def wait_for_room(self, *, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._room.wait()

    async def release(self, assignments: Collection[Assignment], *, patience_s: float) -> None:
        """Forget what waits of them, and wait for what is under way."""
        busy = [asyncio.create_task(lane.idle()) for lane in self._lanes if lane.forget(assignments)]
        if busy:
            _, pending = await asyncio.wait(busy, timeout=patience_s)
            for task in pending:
                task.cancel()

    def _left(self, items: Collection[Item]) -> None:
        self.records -= len(items)
        self._size_bytes -= sum(record.size_bytes for _, record in items)
        self._look()

    def _look(self) -> None:
        if self.records >= MOST_RECORDS or self._size_bytes >= MOST_BYTES:
            self._room.clear()
        elif self.records <= MOST_RECORDS // 2 and self._size_bytes <= MOST_BYTES // 2:
            self._room.set()


class _Lane:
    def __init__(self, settle: Settle, stopping: Stopping, left: Callable[[Collection[Item]], None]) -> None:
        self._settle, self._stopping, self._left = settle, stopping, left
        self._queue: deque[Item] = deque()
        self._filled = asyncio.Event()
        self._under_way: list[Item] = []
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, item: Item) -> None:
        self._queue.append(item)
        self._filled.set()

    async def run(self) -> None:
        """Settle what is put here, until stopped."""
        try:
            while not self._stopping.is_set():
                await self._stopping.unless(self._filled.wait())
                batch = self._under_way = self._next()
                self._idle.clear()
                try:
                    await self._settle(batch)
                finally:
                    self._under_way = []
                    self._idle.set()
                    self._left(batch)
        except Stopped:
            pass  # what waits here was not committed, so it is read again

    def _next(self) -> list[Item]:
        batch: list[Item] = []
        size_bytes = 0
        while self._queue and len(batch) < BATCH_EVENTS:
            size_bytes += self._queue[0][1].size_bytes
            if batch and size_bytes > BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
        if not self._queue:
            self._filled.clear()
        return batch

    def forget(self, assignments: Collection[Assignment]) -> bool:
        """Whether something of them is under way, and cannot be forgotten."""
        leaving = [item for item in self._queue if item[0] in assignments]
        self._queue = deque(item for item in self._queue if item[0] not in assignments)
        if not self._queue:
            self._filled.clear()
        self._left(leaving)
        return any(assignment in assignments for assignment, _ in self._under_way)

    async def idle(self) -> None:
        await self._idle.wait()
