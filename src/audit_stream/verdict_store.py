"""`{audit}:verdict`: what a server reads of others' verdicts, and where it leaves its own for them.

The key in Redis when something fails, and who repairs it:

    Redis refuses the write (memory, read-only), or is away   the server shows its verdict all the same; the next
                                                              tick writes it
    another server writes at the same time                    the next tick looks at what it wrote
    the server is killed before it has written                the verdict is lost; the next walk reaches it anew
    the key is lost, or an older copy of Redis took over      each server that knows a newer verdict writes it at its
                                                              next tick
    the key holds something else                              it is ignored, and overwritten with the next verdict
"""

import asyncio
import contextlib
import logging
from typing import Self

from audit_stream.connection import end
from audit_stream.errors import AuditStreamError
from audit_stream.stream import Stream
from audit_stream.verdicts import LastVerdict, Verdicts, format_verdict, parse_verdict

TICK_S = 10.0

log = logging.getLogger(__name__)


class VerdictStore:
    """Keeps the verdicts of this server and the key in agreement. Start it with `async with`."""

    def __init__(self, stream: Stream, verdicts: Verdicts, *, ticks: bool = True) -> None:
        """Without `ticks` this process only writes what it finds itself; another one of the server's does the rest."""
        self._stream, self._verdicts = stream, verdicts
        self._wait_s = TICK_S if ticks else None
        self._ignored = False
        self._missing: LastVerdict | None = None
        self._error = ""
        """Why the key could not be read or written; empty when all is well."""

    async def __aenter__(self) -> Self:
        await self.agree()
        self._task = asyncio.create_task(self._keep(), name="last verdict")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._task)
        if self._verdicts.changed.is_set():
            await self.agree()

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s):
                    await self._verdicts.changed.wait()
            await self.agree()

    async def agree(self) -> None:
        """Read the key, and write what this server knows better. An error is logged once, and never raised."""
        self._verdicts.changed.clear()
        error = ""
        try:
            if await self._stream.kept_verdict.exchange(self._decide) and self._missing:
                self._verdicts.hear(self._missing)
        except AuditStreamError as refusal:
            error = str(refusal)
        except Exception:
            log.exception("the last verdict could not be kept, and the fault is ours")
        if error and not self._error:
            log.warning("the last verdict cannot be kept in Redis for now: %s", error)
        self._error = error

    def _decide(self, text: bytes) -> bytes | None:
        self._missing = self._verdicts.hear(self._parsed(text))
        return format_verdict(self._missing) if self._missing else None

    def _parsed(self, text: bytes) -> LastVerdict | None:
        if not text:
            return None
        try:
            verdict = parse_verdict(text)
        except ValueError as error:
            if not self._ignored:
                key = self._stream.keys.verdict.decode()
                log.warning("what the key %s holds is not a verdict, and is ignored: %s", key, error)
            self._ignored = True
            return None
        self._ignored = False
        return verdict
