"""Drops connections whose reader does not read.

uvicorn stops making an answer when the reader falls behind, and waits for it without end. What was made by then
stays in this process for as long.
"""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from audit_stream.tally import Tally

STALLED_S = 60.0
"""So long may a reader take nothing at all. One that reads slowly, and be it a byte a second, is not dropped."""
LOOKS = 4
"""How often it is looked at in that time: a reader is dropped a quarter of it late at most."""

log = logging.getLogger(__name__)


class DropsStalled(HttpToolsProtocol):
    """uvicorn's protocol; an answer that waits for its reader is watched, and no other one costs anything."""

    def __init__(self, *arguments: Any, stalled_s: float = STALLED_S, tally: Tally, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._stalled_s, self._tally = stalled_s, tally
        self._next_check: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size(), self.loop.time())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self, unsent_bytes: int, since: float) -> None:
        self._stop_watching()
        self._next_check = self.loop.call_later(self._stalled_s / LOOKS, self._check, unsent_bytes, since)

    def _stop_watching(self) -> None:
        if self._next_check:
            self._next_check.cancel()
            self._next_check = None

    def _check(self, unsent_bytes: int, since: float) -> None:
        # Nothing is added meanwhile: uvicorn writes no more until the transport resumes.
        now_unsent_bytes = self.transport.get_write_buffer_size()
        now = self.loop.time()
        if now_unsent_bytes != unsent_bytes:
            self._watch(now_unsent_bytes, now)
        elif now - since < self._stalled_s:
            self._watch(unsent_bytes, since)
        else:
            self._tally.count("stalled_readers")
            log.info("a reader took nothing for %g s, with %d bytes to be sent: dropped", now - since, unsent_bytes)
            # Not `close`, which would wait until the rest is sent.
            self.transport.abort()
