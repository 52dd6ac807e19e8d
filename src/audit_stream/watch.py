"""Verifying in the background: what is new every few minutes, all of it once a day.

Of many replicas one walks at a time: the one that holds the lease, a key in Redis. What it may leave out of a walk
depends on its own walks alone (see `verdicts`).
"""

import asyncio
import contextlib
import logging
from datetime import timedelta
from time import time

from audit_stream.chain import Head, Verdict, verify
from audit_stream.connection import end
from audit_stream.errors import AuditStreamError, ChainBroken, Unreachable
from audit_stream.stream import Stream
from audit_stream.verdicts import Verdicts
from audit_stream.verifier import Walk, Walking

LEASE_S = 30.0
"""When the replica that walks is gone, another one takes over after so long."""
FIRST_WALK_AFTER_S = 10.0
"""A server that has just started, or has just taken over, answers its clients before it walks."""

log = logging.getLogger(__name__)


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
        self._second_look: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Watch":
        self._leading = asyncio.create_task(self._lead(), name="watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(self._leading)
        await self._stop()
        # Should this fail, the lease runs out by itself.
        with contextlib.suppress(AuditStreamError):
            await self._stream.lease.let_go(self._token)

    async def _lead(self) -> None:
        while True:
            try:
                leads = await self._stream.lease.take(self._token, int(LEASE_S * 1000))
            except AuditStreamError as error:
                # Then nobody can take it from us either, and a walk under way finds the same.
                log.warning("whose turn it is to verify could not be told: %s", error)
            except Exception:
                log.exception("taking turns at verifying failed, and the fault is ours")
            else:
                if leads and self._rounds is None:
                    self._rounds = asyncio.create_task(self._verify_again_and_again(), name="verify in the background")
                elif not leads:
                    await self._stop_rounds()
                    # The replica that leads has looked since then, and its verdict is read from Redis.
                    if (own := self._verdicts.own) and time() - own.at > self._every_s:
                        self._verdicts.forget()
                    self._look_again_if_disputed()
            await asyncio.sleep(LEASE_S / 3)

    def _look_again_if_disputed(self) -> None:
        """Another server has found whole what this one found broken. Only a walk of our own can settle that."""
        walking = self._second_look is not None and not self._second_look.done()
        if self._verdicts.disputed and not walking:
            self._second_look = asyncio.create_task(self.verify_once(), name="verify a disputed break")

    async def _stop(self) -> None:
        await self._stop_rounds()
        if self._second_look:
            await end(self._second_look)

    async def _stop_rounds(self) -> None:
        if self._rounds:
            await end(self._rounds)
            self._rounds = None

    async def _verify_again_and_again(self) -> None:
        await asyncio.sleep(min(self._every_s, FIRST_WALK_AFTER_S))
        while True:
            await self.verify_once()
            await asyncio.sleep(self._every_s)

    async def verify_once(self) -> None:
        """Check what is new, or all of the chain when that is due, or when the last verdict was not good."""
        # Only what this server saw itself makes a walk shorter; a break makes it whole, whoever found it.
        own, shown = self._verdicts.own, self._verdicts.last
        broken = shown is not None and shown.valid is False
        due = own is None or own.whole_at is None or time() - own.whole_at >= self._whole_every_s
        walk: Walk
        if own is None or due or broken or own.head[0] == 0:
            walk = Walk(self._stream, 1, None, gentle=True)
        else:
            walk = NewEvents(self._stream, Head(own.head[0], own.head[1].encode()))
        try:
            report = await self._walking(walk)
        except AuditStreamError as error:
            self._verdicts.cannot_tell(error)
        except Exception:
            log.exception("verifying in the background failed, and the fault is ours")
            self._verdicts.cannot_tell(Unreachable("the server failed; its log says why"))
        else:
            self._verdicts.found(report, walk.first == 1)
