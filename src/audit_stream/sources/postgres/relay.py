"""The relay: drains the outbox into the chain, in order, for as long as it runs.

At each step, what is known and who repairs it:

    read, not sent        the row is in the outbox; whoever leads next sends it
    sent, no answer       the chain may have it; it is sent again under the same key, and stored once
    answered, not deleted the same
    deleted               the chain has it
"""

import asyncio
import logging
from time import monotonic

from audit_stream.client.http import Backoff
from audit_stream.daemon import served
from audit_stream.errors import AuditStreamError
from audit_stream.sources.delivery import LONGEST_PAUSE_S, Delivery
from audit_stream.sources.postgres.changes import Outgoing, outgoing
from audit_stream.sources.postgres.metrics import Metrics
from audit_stream.sources.postgres.outbox import Lost, Outbox
from audit_stream.sources.postgres.settings import RelaySettings
from audit_stream.sources.spine import Spine
from audit_stream.sources.stopping import Stopped, Stopping, ended

# Well within what the spine takes at once (2,000 events, 4 MiB), and short enough to be stopped between two.
BATCH_EVENTS = 500
BATCH_BYTES = 2 * 1024 * 1024
# A batch under way when it is told to stop may still be answered.
GRACE_S = 5.0
# How often to look while changes are being written that found the relay awake.
AWAKE_S = 0.05

log = logging.getLogger("audit_stream.relay")


class Relay:
    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._stopping = Stopping()
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
                if not work.cancelled() and (error := work.exception()) and not isinstance(error, Stopped):
                    raise error
            finally:
                await ended(stopped)
                await ended(work)
                await spine.close()
        log.info("stopped")

    # --- the database: connect, lead, drain, and again

    async def _work(self, spine: Spine) -> None:
        backoff = self._fresh_backoff()
        while True:
            try:
                async with await self._stopping.unless(Outbox.connect(self._settings.database_url)) as outbox:
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
            await self._stopping.pause(backoff.pause_s() or LONGEST_PAUSE_S)

    async def _take_the_lead(self, outbox: Outbox) -> None:
        waits = False
        while not await outbox.lead():
            if not waits:
                log.info("another relay leads; waiting for its place")
            waits = True
            await self._look_at_lag(outbox)
            await self._stopping.pause(self._settings.poll_s)
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
                await ended(reading)
            if self._stopping.is_set():
                raise Stopped

    async def _sleep(self, outbox: Outbox) -> list[Outgoing]:
        """Nothing waits: sleep until a change wakes us or it is time to look; what was written meanwhile, if known."""
        if not await outbox.fall_asleep():
            await self._stopping.pause(min(AWAKE_S, self._settings.poll_s))
            return []
        try:
            batch = await self._next(outbox, [])
            if not batch:
                await self._stopping.unless(outbox.woken(self._settings.poll_s))
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

        async def still_ours() -> None:
            # Another relay may lead by now, and keys are not remembered for ever.
            await outbox.still_there()
            await self._look_at_lag(outbox)

        deliver = Delivery(spine, self._stopping, log, away=self._note_away)
        async for first, end, refusal in deliver([change.event for change in batch], still_ours=still_ours):
            if refusal is None:
                await outbox.delivered([change.id for change in batch[first:end]])
                self._metrics.delivered.inc(end - first)
            else:
                change = batch[first]
                log.error("change %d (%s) goes to the dead letters: %s", change.id, change.change_id, refusal.reason)
                await outbox.refuse(change.id, refusal.reason)
                self._metrics.refused.inc()

    def _note_away(self, failure: AuditStreamError | None) -> None:
        self._metrics.spine_away.set(failure is not None)
        if failure:
            self._metrics.lost.labels("spine").inc()

    def _fresh_backoff(self) -> Backoff:
        return Backoff(None, longest_s=LONGEST_PAUSE_S)
