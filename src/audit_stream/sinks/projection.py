"""One projection: the chain into one sink, in order, for as long as it runs, whatever goes wrong on either side.

At each step, what is known and who repairs it:

    read, not written        the sink's cursor is before it; it is read again
    written in part          `Sink.open` finds out what is there; the rest is written
    written, cursor behind   the sink passes over what it has
    the sink is away         tried again, ever more slowly; no other sink notices
    the chain is away        the same
"""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal

from audit_stream.chain import START, Head
from audit_stream.client.http import Backoff, retry_after_s
from audit_stream.errors import AuditStreamError
from audit_stream.sinks.reading import Chain
from audit_stream.sinks.sink import Name, Sink

LONGEST_PAUSE_S = 10.0

log = logging.getLogger("audit_stream.project")

Upto = Literal["the end", "for ever"]


@dataclass
class Progress:
    """What a projection tells of itself."""

    sink: Name
    head: Head = START
    """The last event that the sink has, as far as this process knows."""
    events: int = 0
    """Taken by the sink since the start of this process."""
    failures: int = 0
    failing: str = ""
    """Why it does nothing now; empty while all is well."""
    caught_up_at: float = field(default_factory=monotonic)
    """When it last had all of the chain."""


class Projection:
    def __init__(self, sink: Sink, chain: Chain) -> None:
        self._sink, self._chain = sink, chain
        self.progress = Progress(sink.name)

    async def run(self) -> None:
        """Project for ever; cancel it to end it, and it ends once what is under way is settled."""
        backoff = _fresh_backoff()
        while True:
            before = self.progress.events
            try:
                await self.project("for ever")
            except Exception as failure:
                self._failed(failure)
                if self.progress.events > before:
                    backoff = _fresh_backoff()
                at_least_s = retry_after_s(failure) if isinstance(failure, AuditStreamError) else 0
                await asyncio.sleep(backoff.pause_s(at_least_s=at_least_s) or LONGEST_PAUSE_S)

    async def project(self, upto: Upto) -> None:
        """Take hold of the sink, and fill it. Raises what went wrong."""
        try:
            position = await self._sink.open()
            self.progress.head = position.behind
            await self._chain.check(position.newest)
            async with aclosing(self._chain.batches(position.behind)) as batches:
                async for events, live in batches:
                    if events:
                        await self._sink.write(events)
                        self._wrote(len(events), Head(events[-1].event_id, events[-1].hash))
                    elif live:
                        log.info("%s has all of the chain, up to #%d", self.progress.sink, self.progress.head.event_id)
                        self.progress.failing = ""
                    if live:
                        self.progress.caught_up_at = monotonic()
                        await self._sink.rest()
                        if upto == "the end":
                            return
        finally:
            await self._sink.close()

    def _wrote(self, count: int, head: Head) -> None:
        self.progress.head = head
        self.progress.events += count
        if self.progress.failing:
            log.info("%s goes on behind event #%d", self.progress.sink, head.event_id - count)
            self.progress.failing = ""

    def _failed(self, failure: Exception) -> None:
        self.progress.failures += 1
        said = str(failure) or type(failure).__name__
        if said == self.progress.failing:
            return
        self.progress.failing = said
        if isinstance(failure, AuditStreamError | OSError):
            log.warning("%s waits: %s", self.progress.sink, said)
        else:
            # A mistake of ours. It is told in full, and the other sinks go on.
            log.error("%s waits: %s", self.progress.sink, said, exc_info=failure)


def _fresh_backoff() -> Backoff:
    return Backoff(None, longest_s=LONGEST_PAUSE_S)
