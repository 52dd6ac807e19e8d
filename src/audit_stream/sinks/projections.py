"""All projections of a process, side by side: each fails and comes back on its own."""

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

from audit_stream.errors import AuditStreamError
from audit_stream.sinks.choosing import sinks_of
from audit_stream.sinks.projection import Progress, Projection
from audit_stream.sinks.reading import Chain
from audit_stream.sinks.settings import SinkSettings
from audit_stream.sinks.sink import Name

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LOOK_EVERY_S = 5.0

log = logging.getLogger("audit_stream.project")


class Projections:
    def __init__(self, settings: SinkSettings) -> None:
        self._chain = Chain(settings.audit_stream_url, settings.headers)
        self._projections = [Projection(sink, self._chain) for sink in sinks_of(settings)]
        self._newest = 0
        self.spine_away = False
        """Whether it did not answer when it was last looked at."""

    @property
    def progress(self) -> list[Progress]:
        return [projection.progress for projection in self._projections]

    @property
    def newest(self) -> int:
        """The newest event_id of the chain, as far as it is known here."""
        return max([self._newest, *(progress.head.event_id for progress in self.progress)])

    def register(self, registry: "CollectorRegistry") -> None:
        from audit_stream.sinks.metrics import Collector

        registry.register(Collector(self))

    async def run(self) -> None:
        """Project for ever; cancel it to end it."""
        tasks = [asyncio.create_task(work) for work in (self._look(), *(p.run() for p in self._projections))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._chain.close()

    async def run_to_the_end(self) -> dict[Name, str]:
        """Project what is in the chain now. What went wrong, by sink; the others have all of it."""
        try:
            work = [projection.project("the end") for projection in self._projections]
            outcomes = await asyncio.gather(*work, return_exceptions=True)
        finally:
            await self._chain.close()
        failed: dict[Name, str] = {}
        for progress, outcome in zip(self.progress, outcomes, strict=True):
            if isinstance(outcome, AuditStreamError | OSError):
                failed[progress.sink] = str(outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
        return failed

    async def _look(self) -> None:
        """Look where the chain ends, so that a sink that waits knows how far it is behind."""
        while True:
            try:
                self._newest = (await self._chain.head()).event_id
                self.spine_away = False
                for progress in self.progress:
                    if progress.head.event_id >= self._newest:
                        progress.caught_up_at = monotonic()
            except AuditStreamError as error:
                if not self.spine_away:
                    log.warning("the spine is away: %s", error)
                self.spine_away = True
            await asyncio.sleep(LOOK_EVERY_S)
