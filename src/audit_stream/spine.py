"""Everything one replica holds, opened and closed together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from audit_stream.appender import Appender
from audit_stream.capacity import CapacityWatch
from audit_stream.errors import ChainBroken, Misconfigured, Unreachable
from audit_stream.keeper import PinKeeper, check_pin, contradiction, head_of
from audit_stream.promise import Finding, judge
from audit_stream.settings import Settings
from audit_stream.stream import Stream
from audit_stream.tail import Tail
from audit_stream.tally import Board, Tally
from audit_stream.verifier import Verifier, Walk, Walking
from audit_stream.watch import Verdicts, Watch

REACHABLE_WITHIN_S = 10.0


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
    capacity: CapacityWatch


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
        pin = await check_pin(stream, settings)
        appender = parts.appender(
            stream,
            hashing=settings.hashing,
            ack=settings.ack,
            idempotency_ttl=settings.idempotency_ttl,
            promised=head_of(pin),
            tally=tally,
        )
        # What Redis shows under fsync is on its disk; that a replica has it, too, only an append makes sure of.
        durable = settings.ack.fsync and not settings.ack.replicas
        verdicts = Verdicts(tally, on_intact=appender.promise if durable else None)
        verifier = Verifier(stream, verdicts.asked_for, parts.walking)
        async with AsyncExitStack() as stack:
            keeper = await stack.enter_async_context(PinKeeper(settings.pin, pin, appender)) if settings.pin else None
            await stack.enter_async_context(appender)
            tail = await stack.enter_async_context(Tail(stream, tally=tally))
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
            try:
                yield Spine(settings, stream, appender, tail, verifier, keeper, tally, verdicts, CapacityWatch(stream))
            finally:
                await verifier.close()
    finally:
        await stream.close()


async def check(stream: Stream, settings: Settings) -> dict[str, str]:
    """Return Redis' facts when it can keep the promise and holds a chain that we can read.

    Waits a little for a Redis that is just starting. Raises Misconfigured with everything that is wrong.
    """
    facts = await _reached(stream)
    fatal = [finding for finding in judge(facts, settings.ack) if finding.fatal]
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


async def _reached(stream: Stream) -> dict[str, str]:
    try:
        async with asyncio.timeout(REACHABLE_WITHIN_S):
            while True:
                try:
                    return await stream.facts()
                except Unreachable as error:
                    reason = error
                    await asyncio.sleep(0.2)
    except TimeoutError:
        raise Misconfigured(f"{reason}\nCheck AUDIT_STREAM_REDIS_URL, and that Redis is running.") from reason


async def not_ready(spine: Spine) -> list[str]:
    """Why this replica should get no traffic now; empty when it should. Raises Unreachable."""
    findings: list[Finding] = judge(await spine.stream.facts(), spine.settings.ack)
    reasons = [str(finding) for finding in findings if finding.fatal or finding.setting == "replicas"]
    if not await spine.stream.runs_scripts():
        reasons.append("Redis computes SHA-256 wrong in its scripts")
    if not spine.tail.connected:
        reasons.append("the live tail is not connected")
    if spine.keeper and (pin := spine.keeper.pin) and (reason := await contradiction(spine.stream, pin)):
        reasons.append(reason)
    return reasons
