"""The relay: drains the outbox into the chain, in order, for as long as it runs.

At each step, what is known and who repairs it:

    read, not sent        the row is in the outbox; whoever leads next sends it
    sent, no answer       the chain may have it; it is sent again under the same key, and stored once
    answered, not deleted the same
    deleted               the chain has it
"""

import asyncio
import logging
from collections.abc import Coroutine
from time import monotonic
from typing import Any, TypeVar

from audit_stream.client.http import Backoff, retry_after_s
from audit_stream.daemon import served
from audit_stream.errors import AuditStreamError
from audit_stream.sources.postgres.changes import Outgoing, outgoing
from audit_stream.sources.postgres.metrics import Metrics
from audit_stream.sources.postgres.outbox import Lost, Outbox
from audit_stream.sources.postgres.settings import RelaySettings
from audit_stream.sources.spine import Refusal, Spine

# Well within what the spine takes at once (2,000 events, 4 MiB), and short enough to be stopped between two.
BATCH_EVENTS = 500
BATCH_BYTES = 2 * 1024 * 1024
# A batch under way when it is told to stop may still be answered.
GRACE_S = 5.0
# How often to look while changes are being written that found the relay awake.
AWAKE_S = 0.05
LONGEST_PAUSE_S = 10.0

log = logging.getLogger("audit_stream.relay")

T = TypeVar("T")


class _Stopped(Exception):
    """It was told to stop, and nothing is under way."""


class Relay:
    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._metrics = Metrics()
        self._lag_due = 0.0

    def stop(self) -> None:
        """End as soon as nothing is under way: at once, or when the spine has answered."""
        self._stopping.set()

    async def run(self) -> None:
        """Drain until stopped. Raises Misconfigured for what waiting does not mend."""
        listen, asked_for = self._settings.metrics, self._settings.metrics_asked_for
        with served(self._metrics.registry, listen, log, asked_for=asked_for):
            spine = Spine(self._settings.audit_stream_url, self._settings.headers)
            work = asyncio.create_task(self._work(spine))
            stopped = asyncio.create_task(self._stopping.wait())
            try:
                await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    await asyncio.wait({work}, timeout=GRACE_S)
                if not work.done():
                    # The spine is silent. Whether it has the batch is for the next run to find out: same keys.
                    work.cancel()
                await asyncio.wait({work})
                if not work.cancelled() and (error := work.exception()) and not isinstance(error, _Stopped):
                    raise error
            finally:
                await _ended(stopped)
                await _ended(work)
                await spine.close()
        log.info("stopped")

    # --- the database: connect, lead, drain, and again

    async def _work(self, spine: Spine) -> None:
        backoff = self._fresh_backoff()
        while True:
            try:
                async with await self._unless_stopped(Outbox.connect(self._settings.database_url)) as outbox:
                    self._metrics.connected.set(1)
                    await self._take_the_lead(outbox)
                    backoff = self._fresh_backoff()
                    await self._drain(outbox, spine)
            except Lost as lost:
                log.warning("the database is away: %s", lost)
                self._metrics.lost.labels("database").inc()
            finally:
                self._metrics.connected.set(0)
                self._metrics.leading.set(0)
            await self._pause(backoff.pause_s() or LONGEST_PAUSE_S)

    async def _take_the_lead(self, outbox: Outbox) -> None:
        waits = False
        while not await outbox.lead():
            if not waits:
                log.info("another relay leads; waiting for its place")
            waits = True
            await self._look_at_lag(outbox)
            await self._pause(self._settings.poll_s)
        log.info("leading: changes go to %s", self._settings.audit_stream_url)
        self._metrics.leading.set(1)

    async def _drain(self, outbox: Outbox, spine: Spine) -> None:
        batch: list[Outgoing] = []
        while True:
            if not batch:
                batch = await self._next(outbox, [])
            await self._look_at_lag(outbox)
            if not batch:
                batch = await self._sleep(outbox)
                continue
            # While the spine has one batch, the next is read. It is not remembered where that was: an id may
            # become visible after larger ones did, so each time the oldest are taken that are not under way.
            reading = asyncio.ensure_future(self._next(outbox, batch))
            try:
                await self._deliver(outbox, spine, batch)
                batch = await reading
            finally:
                await _ended(reading)
            if self._stopping.is_set():
                raise _Stopped

    async def _sleep(self, outbox: Outbox) -> list[Outgoing]:
        """Nothing waits: sleep until a change wakes us or it is time to look; what was written meanwhile, if known."""
        if not await outbox.fall_asleep():
            await self._pause(min(AWAKE_S, self._settings.poll_s))
            return []
        try:
            batch = await self._next(outbox, [])
            if not batch:
                await self._unless_stopped(outbox.woken(self._settings.poll_s))
            return batch
        finally:
            await outbox.wake_up()

    async def _next(self, outbox: Outbox, besides: list[Outgoing]) -> list[Outgoing]:
        ids = [change.id for change in besides]
        changes = await outbox.next(besides=ids, count=BATCH_EVENTS, size_bytes=BATCH_BYTES)
        return list(map(outgoing, changes))

    async def _look_at_lag(self, outbox: Outbox) -> None:
        if self._settings.metrics and monotonic() >= self._lag_due:
            self._metrics.lag(await outbox.lag())
            self._lag_due = monotonic() + self._settings.poll_s

    # --- the spine

    async def _deliver(self, outbox: Outbox, spine: Spine, batch: list[Outgoing]) -> None:
        """Append every change of the batch, or put it aside; each is out of the outbox when this returns."""
        at, size = 0, len(batch)
        while at < len(batch):
            part = batch[at : at + size]
            refusal = await self._append(outbox, spine, part)
            if refusal is None:
                await outbox.delivered([change.id for change in part])
                self._metrics.delivered.inc(len(part))
                at, size = at + len(part), size * 2
            elif len(part) == 1:
                log.error("change %d (%s) goes to the dead letters: %s", part[0].id, part[0].change_id, refusal.reason)
                await outbox.refuse(part[0].id, refusal.reason)
                self._metrics.refused.inc()
                at, size = at + 1, 1
            else:
                # Nothing of it was written. First those before the one that is wrong, then that one on its own.
                size = max(1, len(part) // 2 if refusal.at is None else refusal.at)

    async def _append(self, outbox: Outbox, spine: Spine, changes: list[Outgoing]) -> Refusal | None:
        events = [change.event for change in changes]
        backoff = self._fresh_backoff()
        said = ""
        while True:
            try:
                refusal = await spine.append(events)
            except AuditStreamError as failure:
                if str(failure) != said:
                    log.warning("the spine takes nothing now, changes wait in the outbox: %s", failure)
                    said = str(failure)
                self._metrics.lost.labels("spine").inc()
                self._metrics.spine_away.set(1)
                await self._pause(backoff.pause_s(at_least_s=retry_after_s(failure)) or LONGEST_PAUSE_S)
                # Another relay may lead by now, and keys are not remembered for ever.
                await outbox.still_there()
                await self._look_at_lag(outbox)
            else:
                if said:
                    log.info("the spine is back")
                self._metrics.spine_away.set(0)
                return refusal

    # --- waiting

    def _fresh_backoff(self) -> Backoff:
        return Backoff(None, longest_s=LONGEST_PAUSE_S)

    async def _pause(self, seconds: float) -> None:
        await self._unless_stopped(asyncio.sleep(seconds))

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what may as well not be done; raises _Stopped when told to stop before or meanwhile."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _Stopped
        finally:
            await _ended(task)
            await _ended(stopped)


async def _ended(task: "asyncio.Future[Any]") -> None:
    """Cancel it unless it is done, and wait until it is; what became of it was seen, or no longer matters."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
