"""Whether an append would succeed now, known before a producer has to find out.

A check goes the way that appends go: over their connection, through a dry run of their script. It is made every ten
seconds, every second while something is wrong, at once after an append has failed, and whenever a connection for
appends is opened. What it finds in Redis' settings also closes the gate: while durability falls short of
AUDIT_STREAM_ACK no append is taken, because its 201 would not mean what it promises.

Where Redis cannot be reached at all the gate stays as it is: appends try for themselves, and so come back first.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

from audit_stream.appender import Appender
from audit_stream.connection import end
from audit_stream.errors import AuditStreamError, ChainBroken, Unreachable
from audit_stream.facts import is_rewriting
from audit_stream.keeper import PinKeeper, contradiction
from audit_stream.promise import judge
from audit_stream.settings import Settings
from audit_stream.stream import Stream
from audit_stream.tail import Tail

EVERY_S = 10.0
UNREADY_EVERY_S = 1.0
ANSWER_WITHIN_S = 1.5
SILENT = "Redis does not answer: check that it is running, and that nothing holds it up"
GIVE_UP_AFTER_S = 5.0
"""A check that takes longer ends with its connection. Sooner would cut off appends that are only slow."""

log = logging.getLogger(__name__)


class Readiness:
    """Watches over one server's way to Redis. Start it with `async with`, inside its appender and tail."""

    def __init__(
        self, stream: Stream, appender: Appender, tail: Tail, keeper: PinKeeper | None, settings: Settings
    ) -> None:
        self._stream, self._appender, self._tail, self._keeper = stream, appender, tail, keeper
        self._ack, self._trusted = settings.ack, settings.trust_redis
        self.reasons: list[str] = []
        """Why an append would fail, as the last check found; empty when it would succeed."""
        self._unsynced = False
        """Whether the last check found that Redis syncs nothing while it rewrites its file."""
        self._check: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._stream.admit_writers(self._admit)
        await self.now()
        self._watching = asyncio.create_task(self._watch(), name="readiness")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end(*(task for task in (self._watching, self._check) if task))

    async def now(self) -> list[str]:
        """Return `reasons` after a check. Those who ask at the same time share one."""
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._look(), name="readiness check")
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                # Shielded: its answers come on the line of the appends, and have to be read there.
                await asyncio.shield(self._check)
        except TimeoutError:
            self._found([SILENT])
        return self.reasons

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(UNREADY_EVERY_S if self.reasons else EVERY_S):
                    await self._appender.failed.wait()
            # A server that is cut off from its replicas may go on for ever as a primary that others have replaced.
            # Where nobody says who the primary is, the check that follows finds out what that means for appends.
            with suppress(AuditStreamError):
                await self._stream.follow_owner()
            await self.now()
            if self._appender.failed.is_set():
                # Appends go on failing: there is no need to look more often than this.
                await asyncio.sleep(UNREADY_EVERY_S)

    async def _look(self) -> None:
        self._appender.failed.clear()
        reasons: list[str] = []
        try:
            async with asyncio.timeout(GIVE_UP_AFTER_S):
                facts = await self._stream.facts_of_writer(fsync=self._ack.fsync)
                self._unsynced = "aof_synced" in facts
                reasons = self._weigh(facts)
                reasons += await self._dry_run()
        except TimeoutError:
            reasons = [SILENT]
        except Unreachable as error:
            reasons = [error.reason]
        except Exception:
            log.exception("checking whether this server is ready failed, and the fault is ours")
            reasons = ["the server failed to check; its log says why"]
        if not self._tail.connected:
            reasons.append("the live tail is not connected to Redis: it connects again by itself")
        self._found(reasons)

    async def _dry_run(self) -> list[str]:
        try:
            if self._keeper and (pin := self._keeper.pin) and (reason := await contradiction(self._stream, pin)):
                return [f"{reason}. {ChainBroken.advice}"]
            await self._stream.dry_run(self._appender.promised)
        except ChainBroken as error:
            return [f"{error}. {error.advice}"]
        except AuditStreamError as error:
            return [str(error)]
        return []

    def _found(self, reasons: list[str]) -> None:
        if reasons != self.reasons:
            if reasons:
                log.error("this server is not ready: %s", "; ".join(reasons))
            else:
                log.warning("this server is ready again")
        self.reasons = reasons

    # --- the gate

    def _admit(self, facts: Mapping[str, str]) -> None:
        """Refuse a server that cannot keep what a 201 means, before the first append goes to it."""
        if is_rewriting(facts):
            # Whether it syncs meanwhile cannot be told from these facts: check now.
            self._appender.failed.set()
            facts = {**facts, "aof_synced": "no"} if self._unsynced else facts
        if self._weigh(facts):
            raise Unreachable(f"{self._appender.refusing}; nothing was written", reason=self._appender.refusing)

    def _weigh(self, facts: Mapping[str, str]) -> list[str]:
        findings = judge(facts, self._ack, trusted=self._trusted)
        short = [str(finding) for finding in findings if finding.fatal or finding.setting == "replicas"]
        why = f"durability falls short of AUDIT_STREAM_ACK={self._ack}: {short[0].rstrip('.')}" if short else ""
        self._appender.refusing = why
        return short
