"""Verifying in the background: what is new every few minutes, all of it once a day.

The verdict stays in this server and its workers. Redis is what is being checked, so nothing that it holds can
speak for it; all that is kept there is a lease, so that of many replicas one walks at a time.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import timedelta
from time import time

import msgspec

from audit_stream.chain import START, Head, Verdict, verify
from audit_stream.connection import end
from audit_stream.errors import AuditStreamError, ChainBroken, Unreachable
from audit_stream.stream import Stream
from audit_stream.tally import Tally
from audit_stream.verifier import Report, Walk, Walking

LEASE_S = 30.0
"""When the replica that walks is gone, another one takes over after so long."""
REASON_LENGTH = 500

log = logging.getLogger(__name__)


class LastVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What this server found when it last verified."""

    valid: bool | None
    """None when the newest attempt could not tell. A break stays one until a whole walk holds."""
    head: tuple[int, str] = (0, START.hash.decode())
    """Up to here the chain held."""
    checked: int = 0
    first_break_at: int | None = None
    reason: str | None = None
    at: float
    """When it was found, in seconds since 1970; not when an attempt failed."""
    whole_at: float | None = None
    """When all of the chain was last checked and held."""
    took_s: float = 0.0


class Verdicts:
    """The newest verdict of a server, shared by its workers."""

    def __init__(self, tally: Tally, on_intact: Callable[[Head], None] | None = None) -> None:
        """`on_intact` is told the head of each chain that was found whole, from its first event to its end."""
        self._tally, self._on_intact = tally, on_intact

    @property
    def last(self) -> LastVerdict | None:
        note = self._tally.board.note
        return msgspec.json.decode(note, type=LastVerdict) if note else None

    def found(self, report: Report, whole: bool) -> None:
        """Keep the verdict. One on a part of the chain says that all is well only where all was well before."""
        verdict, last, now = report.verdict, self.last, time()
        self._tally.verified("valid" if verdict.valid else "broken")
        whole_at = last.whole_at if last else None
        if verdict.valid:
            broken_before = last is not None and last.valid is False
            if broken_before and not whole:
                return
            if last and broken_before:
                log.warning("the chain holds again; it was broken at event #%s: %s", last.first_break_at, last.reason)
            whole_at = now if whole else whole_at
            if whole and self._on_intact:
                self._on_intact(verdict.head)
        elif not last or (last.first_break_at, last.reason) != (verdict.first_break_at, _short(verdict.reason)):
            log.error(
                "the chain is broken at event #%s: %s",
                verdict.first_break_at,
                verdict.reason,
                extra={"event_id": verdict.first_break_at, "reason": verdict.reason},
            )
        self._keep(
            LastVerdict(
                valid=verdict.valid,
                head=(verdict.head.event_id, verdict.head.hash.decode(errors="replace")[:64]),
                checked=verdict.checked,
                first_break_at=verdict.first_break_at,
                reason=_short(verdict.reason),
                at=now,
                whole_at=whole_at,
                took_s=report.took_s,
            )
        )

    def asked_for(self, report: Report, whole: bool) -> None:
        """Keep what somebody's walk found: that all of the chain holds, or that some of it does not."""
        if whole or not report.verdict.valid:
            self.found(report, whole)

    def cannot_tell(self, error: AuditStreamError) -> None:
        self._tally.verified("unknown")
        log.warning("whether the chain holds could not be told: %s", error)
        if (last := self.last) and last.valid:
            self._keep(msgspec.structs.replace(last, valid=None))

    def forget(self) -> None:
        self._tally.board.note = b""

    def _keep(self, verdict: LastVerdict) -> None:
        self._tally.board.note = msgspec.json.encode(verdict)


def _short(reason: str | None) -> str | None:
    return None if reason is None else reason[:REASON_LENGTH]


class NewEvents(Walk):
    """Only what came after a head that held before; and that this head still is what it was."""

    def __init__(self, stream: Stream, known: Head) -> None:
        super().__init__(stream, known.event_id + 1, None, gentle=True)
        self._known = known

    async def _anchor(self, written: int) -> Head | Verdict:
        known = self._known
        before = Head(known.event_id - 1, b"")
        if written < known.event_id:
            reason = f"chain ends at event #{written}, but #{known.event_id} was verified"
            return Verdict(False, 0, written + 1, reason, before)
        try:
            event = await self._stream.get(known.event_id)
        except ChainBroken as broken:
            return Verdict(False, 0, known.event_id, str(broken), before)
        if event is None or event.hash != known.hash:
            reason = f"event #{known.event_id} is not the one that was verified"
            return Verdict(False, 0, known.event_id, reason, before)
        verdict = verify([event], start=Head(known.event_id - 1, event.prev_hash))
        return known if verdict.valid else verdict


class Watch:
    """Verifies while this replica holds the lease. Start it with `async with`."""

    def __init__(
        self,
        stream: Stream,
        verdicts: Verdicts,
        *,
        token: bytes,
        every: timedelta,
        whole_every: timedelta,
        walking: Walking = Walk.run,
    ) -> None:
        """The token names this server in the lease."""
        self._stream, self._verdicts, self._token, self._walking = stream, verdicts, token, walking
        self._every_s, self._whole_every_s = every.total_seconds(), whole_every.total_seconds()
        self._rounds: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Watch":
        self._leading = asyncio.create_task(self._lead(), name="watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._leading)
        await self._stop()
        # Should this fail, the lease runs out by itself.
        with contextlib.suppress(AuditStreamError):
            await self._stream.let_go(self._token)

    async def _lead(self) -> None:
        while True:
            try:
                leads = await self._stream.take_lease(self._token, int(LEASE_S * 1000))
            except AuditStreamError as error:
                # Then nobody can take it from us either, and a walk under way finds the same.
                log.warning("whose turn it is to verify could not be told: %s", error)
            except Exception:
                log.exception("taking turns at verifying failed, and the fault is ours")
            else:
                if leads and self._rounds is None:
                    self._rounds = asyncio.create_task(self._verify_again_and_again(), name="verify in the background")
                elif not leads:
                    await self._stop()
                    # Who leads has looked since then, and speaks for the chain.
                    if (last := self._verdicts.last) and time() - last.at > self._every_s:
                        self._verdicts.forget()
            await asyncio.sleep(LEASE_S / 3)

    async def _stop(self) -> None:
        if self._rounds:
            await end(self._rounds)
            self._rounds = None

    async def _verify_again_and_again(self) -> None:
        while True:
            await self.verify_once()
            await asyncio.sleep(self._every_s)

    async def verify_once(self) -> None:
        """Check what is new, or all of the chain when that is due, or when the last verdict was not good."""
        last = self._verdicts.last
        due = last is None or last.whole_at is None or time() - last.whole_at >= self._whole_every_s
        walk: Walk
        if last is None or due or last.valid is False or last.head[0] == 0:
            walk = Walk(self._stream, 1, None, gentle=True)
        else:
            walk = NewEvents(self._stream, Head(last.head[0], last.head[1].encode()))
        try:
            report = await self._walking(walk)
        except AuditStreamError as error:
            self._verdicts.cannot_tell(error)
        except Exception:
            log.exception("verifying in the background failed, and the fault is ours")
            self._verdicts.cannot_tell(Unreachable("the server failed; its log says why"))
        else:
            self._verdicts.found(report, walk.first == 1)
