"""Appending for as long as it takes, and finding what is refused for good among what is not."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from audit_stream.client.http import Backoff, retry_after_s
from audit_stream.errors import AuditStreamError
from audit_stream.sources.spine import Refusal, Spine
from audit_stream.sources.stopping import Stopping

LONGEST_PAUSE_S = 10.0


class Outcome(NamedTuple):
    """The chain has `events[first:end]`; or it never will, and then there is only one of them."""

    first: int
    end: int
    refusal: Refusal | None


class Delivery:
    """Appends to the spine until the spine has answered; `away` meanwhile, when it takes nothing."""

    def __init__(
        self, spine: Spine, stopping: Stopping, log: logging.Logger, *, away: Callable[[AuditStreamError | None], None]
    ) -> None:
        """`away` is called with each failure of the spine, and with None whenever it has answered."""
        self._spine, self._stopping, self._log, self._away = spine, stopping, log, away

    async def __call__(
        self, events: Sequence[bytes], *, still_ours: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[Outcome]:
        """Yield what became of the events, in order and each once.

        Before the same is sent again, `still_ours` is asked, and may raise. Raises Stopped between two attempts.
        """
        at, size = 0, len(events)
        wrong: int | None = None
        while at < len(events):
            # First those before the one that is wrong, then that one on its own.
            end = min(at + size, len(events)) if wrong is None else max(wrong, at + 1)
            refusal = await self._append(events[at:end], still_ours)
            if refusal is None:
                yield Outcome(at, end, None)
                at, size, wrong = end, size * 2, wrong if wrong == end else None
            elif end - at == 1:
                yield Outcome(at, end, refusal)
                # A spine that names what is wrong finds the next one at once; else it is felt for.
                at, size, wrong = end, 1 if wrong is None else len(events), None
            elif refusal.at is not None:
                wrong = at + refusal.at
            else:
                size, wrong = (end - at) // 2, None

    async def _append(self, events: Sequence[bytes], still_ours: Callable[[], Awaitable[None]]) -> Refusal | None:
        backoff = Backoff(None, longest_s=LONGEST_PAUSE_S)
        said = ""
        while True:
            try:
                refusal = await self._spine.append(events)
            except AuditStreamError as failure:
                if str(failure) != said:
                    self._log.warning("the spine takes nothing now, what was read waits: %s", failure)
                    said = str(failure)
                self._away(failure)
                await self._stopping.pause(backoff.pause_s(at_least_s=retry_after_s(failure)) or LONGEST_PAUSE_S)
                await still_ours()
            else:
                if said:
                    self._log.info("the spine is back")
                self._away(None)
                return refusal
