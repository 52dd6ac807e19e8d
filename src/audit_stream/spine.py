"""Everything one replica holds, opened and closed together."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from audit_stream.appender import Appender
from audit_stream.capacity import CapacityWatch
from audit_stream.errors import ChainBroken, Denied, Loading, Misconfigured, Unreachable
from audit_stream.keeper import PinKeeper, check_pin, head_of
from audit_stream.promise import Finding, judge
from audit_stream.readiness import Readiness
from audit_stream.settings import Settings
from audit_stream.source_limit import SourceLimit
from audit_stream.stream import Stream
from audit_stream.tail import Tail
from audit_stream.tally import Board, Tally
from audit_stream.verdict_store import VerdictStore
from audit_stream.verdicts import Verdicts
from audit_stream.verifier import Verifier, Walk, Walking
from audit_stream.watch import Watch

REACHABLE_WITHIN_S = 10.0
FAILS_OVER = ("redis+sentinel://", "rediss+sentinel://")

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a spine is made of; traces put their own in place of these."""

    stream: type[Stream] = Stream
    appender: type[Appender] = Appender
    walking: Walking = Walk.run


class Spine(NamedTuple):
    settings: Settings
    stream: Stream
    appender: Appender
    tail: Tail
    verifier: Verifier
    keeper: PinKeeper | None
    tally: Tally
    verdicts: Verdicts
    readiness: Readiness
    capacity: CapacityWatch
    sources: SourceLimit | None


def spine_of(state: Any) -> Spine:
    """The spine that the application opened when it started."""
    spine: Spine = state.spine
    return spine


@asynccontextmanager
async def open_spine(
    settings: Settings, redis_url: str, tally: Tally | None = None, parts: Parts | None = None
) -> AsyncIterator[Spine]:
    """Open the chain, refusing one that this replica must not write to (see `check`)."""
    tally = tally or Tally(Board(settings.kinds))
    parts = parts or Parts()
    stream = parts.stream.at(redis_url, settings.chain, tally)
    try:
        await check(stream, settings)
        pinned = await check_pin(stream, settings)
        appender = parts.appender(
            stream,
            hashing=settings.hashing,
            ack=settings.ack,
            idempotency_ttl=settings.idempotency_ttl,
            promised=head_of(pinned.pin),
            tally=tally,
        )
        # What Redis shows under fsync is on its disk; that a replica has it, too, only an append makes sure of.
        durable = settings.ack.fsync and not settings.ack.replicas
        verdicts = Verdicts(tally, on_intact=appender.promise if durable else None)
        verifier = Verifier(stream, verdicts.asked_for, parts.walking)
        async with AsyncExitStack() as stack:
            keeper = (
                await stack.enter_async_context(PinKeeper(settings.pin, pinned, appender)) if settings.pin else None
            )
            await stack.enter_async_context(appender)
            tail = await stack.enter_async_context(Tail(stream, tally=tally))
            readiness = await stack.enter_async_context(Readiness(stream, appender, tail, keeper, settings))
            await stack.enter_async_context(VerdictStore(stream, verdicts, ticks=tally.worker == 0))
            if settings.verify_every and tally.worker == 0:
                watch = Watch(
                    stream,
                    verdicts,
                    token=tally.board.token,
                    every=settings.verify_every,
                    whole_every=settings.verify_whole_every,
                    walking=parts.walking,
                )
                await stack.enter_async_context(watch)
            capacity = CapacityWatch(stream)
            limit = settings.max_sources
            sources = await stack.enter_async_context(SourceLimit(stream, limit)) if limit else None
            try:
                yield Spine(
                    settings, stream, appender, tail, verifier, keeper, tally, verdicts, readiness, capacity, sources
                )
            finally:
                await verifier.close()
    finally:
        await stream.close()


async def check(stream: Stream, settings: Settings) -> dict[str, str]:
    """Return Redis' facts when it can keep the promise and holds a chain that we can read.

    Waits REACHABLE_WITHIN_S for a Redis that is unavailable, and as long as it takes for one that loads its data.
    Raises Misconfigured with everything that is wrong; at once where waiting does not help.
    """
    patience = _Patience(stream.where)
    while True:
        try:
            return await _checked(stream, settings)
        except Denied as error:
            raise Misconfigured(f"Redis at {stream.where}: {error}") from error
        except Unreachable as error:
            patience.wait_for(error)
        await asyncio.sleep(0.2)


class _Patience:
    """How long to wait for a Redis, and what the log says meanwhile: each reason to wait once."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._deadline: float | None = None
        self._announced: set[type[Unreachable]] = set()

    def wait_for(self, error: Unreachable) -> None:
        """Return when it is worth asking again. Raises Misconfigured when there was time enough."""
        now = time.monotonic()
        if isinstance(error, Loading):
            self._deadline = None
            self._announce(error, "Redis at %s is loading its data; waiting until it has it all", self._where)
            return
        if self._deadline is None:
            self._deadline = now + REACHABLE_WITHIN_S
            self._announce(error, "waiting for Redis at %s (%.0f s): %s", self._where, REACHABLE_WITHIN_S, error)
        elif now >= self._deadline:
            tls = "speaks TLS" if self._where.startswith("rediss") else "wants no TLS"
            raise Misconfigured(
                f"Redis at {self._where}: {error}\n"
                f"Check AUDIT_STREAM_REDIS_URL, that Redis is running there, and that it {tls}."
            ) from error

    def _announce(self, error: Unreachable, message: str, *values: object) -> None:
        if type(error) not in self._announced:
            self._announced.add(type(error))
            log.warning(message, *values)


async def _checked(stream: Stream, settings: Settings) -> dict[str, str]:
    facts = await stream.facts()
    if facts.get("loading") == "1":
        raise Loading("Redis is loading its data")
    fatal = [finding for finding in findings_on(facts, settings) if finding.fatal]
    if fatal:
        raise Misconfigured(
            "\n".join(
                [f"this Redis cannot keep the promise AUDIT_STREAM_ACK={settings.ack}:"]
                + [f"  {finding}" for finding in fatal]
            )
        )
    key = stream.keys.events.decode()
    if (kind := await stream.type_of(stream.keys.events)) not in ("none", "stream"):
        raise Misconfigured(
            f"key {key} is a {kind}, not a stream: choose another AUDIT_STREAM_CHAIN, or remove the key"
        )
    try:
        (await stream.page(0, count=1)).unbroken()
        await stream.head()
    except ChainBroken as error:
        raise Misconfigured(f"the chain at {key} is not one that this version can read: {error}") from error
    if not await stream.runs_scripts():
        raise Misconfigured("this Redis computes SHA-256 wrong in its scripts")
    return facts


def findings_on(facts: Mapping[str, str], settings: Settings) -> list[Finding]:
    """What falls short on the Redis that the settings name; the worst first."""
    follows = (settings.redis_url or "").startswith(FAILS_OVER)
    return judge(facts, settings.ack, trusted=settings.trust_redis, fails_over=follows)
