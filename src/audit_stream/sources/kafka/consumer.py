"""audit-consumer: brings the records of topics to the chain, and projects the chain where that is asked for."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from audit_stream.daemon import served
from audit_stream.errors import AuditStreamError
from audit_stream.sinks import running
from audit_stream.sinks.settings import SinkSettings
from audit_stream.sources.delivery import Delivery
from audit_stream.sources.kafka.broker import Assignment, Broker
from audit_stream.sources.kafka.complaints import Complaints
from audit_stream.sources.kafka.courier import Courier
from audit_stream.sources.kafka.dead_letters import DeadLetters
from audit_stream.sources.kafka.lanes import Lanes
from audit_stream.sources.kafka.metrics import Metrics
from audit_stream.sources.kafka.settings import KafkaSettings
from audit_stream.sources.spine import Spine
from audit_stream.sources.stopping import Stopping, ended

# Whoever else needs the consumer waits for so long.
POLL_S = 0.1
# A batch under way when it is told to stop, or loses a partition, may still be answered.
GRACE_S = 5.0

log = logging.getLogger("audit_stream.kafka")


class AuditConsumer:
    def __init__(self, settings: KafkaSettings, sinks: SinkSettings | None = None) -> None:
        self._settings, self._sinks = settings, sinks
        self._stopping = Stopping()
        self._metrics, self._complaints = Metrics(), Complaints()
        self._away = False

    def stop(self) -> None:
        """End as soon as nothing is under way: at once, or when the spine has answered."""
        self._stopping.set()

    async def run(self) -> None:
        """Consume until stopped. Raises Misconfigured for what waiting does not mend."""
        settings = self._settings
        with served(self._metrics.registry, settings.metrics, log, asked_for=settings.metrics_asked_for):
            spine = Spine(settings.audit_stream_url, settings.headers)
            try:
                async with self._projecting():
                    await self._consume(spine)
            finally:
                await spine.close()
        log.info("stopped")

    @asynccontextmanager
    async def _projecting(self) -> AsyncIterator[None]:
        if self._sinks is None or not self._sinks.sinks:
            yield
            return
        async with running(self._sinks, registry=self._metrics.registry):
            log.info("the chain goes to %s", ", ".join(self._sinks.sinks))
            yield

    async def _consume(self, spine: Spine) -> None:
        broker = Broker(self._settings, self._metrics, self._complaints, self._release)
        dead_letters = DeadLetters(self._settings, broker, self._stopping, self._metrics, self._complaints)
        deliver = Delivery(spine, self._stopping, log, away=self._note_away)
        courier = Courier(
            self._settings, broker, dead_letters, deliver, self._stopping, self._metrics, self._complaints
        )
        self._lanes = Lanes(courier.settle, self._stopping)
        tasks: list[asyncio.Task[None]] = []
        try:
            await broker.subscribe()
            log.info("records of %s go to %s", ", ".join(self._settings.topics), self._settings.audit_stream_url)
            stopped = asyncio.create_task(self._stopping.wait())
            # Reading goes on to the end: who does not poll hears of nothing.
            tasks = [asyncio.create_task(self._read(broker)), stopped, *self._lanes.run()]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            # When the spine is silent, whether it has the batch is for the next run to find out: same keys.
            await asyncio.wait(tasks[1:], timeout=GRACE_S)
        finally:
            for task in tasks:
                await ended(task)
            await broker.close()
        for task in tasks:
            if not task.cancelled() and (error := task.exception()):
                raise error

    async def _read(self, broker: Broker) -> None:
        while True:
            if self._lanes.full and not self._away and not self._stopping.is_set():
                # While all goes well there will be room in a moment; pausing would throw away what was read ahead.
                await self._lanes.wait_for_room(timeout_s=POLL_S)
            hold = self._lanes.full or self._away or self._stopping.is_set()
            self._lanes.put(await broker.take(hold=hold, timeout_s=POLL_S))
            self._metrics.waiting.set(self._lanes.records)

    async def _release(self, assignments: Sequence[Assignment]) -> None:
        # Without a spine nothing would end by waiting.
        await self._lanes.release(assignments, patience_s=0 if self._away else GRACE_S)

    def _note_away(self, failure: AuditStreamError | None) -> None:
        self._away = failure is not None
        self._metrics.spine_away.set(self._away)
        if failure:
            self._metrics.failures.labels("spine").inc()
