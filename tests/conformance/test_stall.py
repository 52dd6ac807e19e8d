"""A Redis that takes requests and does not answer, with the real deadline."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import pytest

from audit_stream import appender
from audit_stream.appender import DEADLINE_S
from audit_stream.embedded import EmbeddedValkey
from audit_stream.errors import Unreachable
from audit_stream.settings import Hashing
from tests.conformance.stores import Chain, drafted, drafts, handed_in, real_store

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("hashing", ["checked", "script"])
async def test_a_redis_that_stalls_is_reported_within_two_seconds_to_all_who_wait(
    tmp_path: Path, hashing: Hashing, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        spine = Chain(real_store(valkey.url), "stalled", hashing)
        with spine.store.raw:
            async with spine.replica() as replica:
                first = await replica.append(drafts(1, "first"))
                os.kill(valkey.pid, signal.SIGSTOP)
                try:
                    monkeypatch.setattr(appender, "DEADLINE_S", DEADLINE_S)
                    async with measured() as clock:
                        tasks = handed_in(replica, [drafted("a", key="ka")])
                        await asyncio.sleep(0)
                        tasks += handed_in(replica, [drafted("b", key="kb")], [drafted("c", key="kc")])
                        answers = await asyncio.gather(*tasks, return_exceptions=True)
                finally:
                    monkeypatch.setattr(appender, "DEADLINE_S", 60)
                    os.kill(valkey.pid, signal.SIGCONT)
                assert [type(answer) for answer in answers] == [Unreachable] * 3
                assert isinstance(answers[0], Unreachable)
                assert answers[0].in_doubt
                assert clock.took_s < 2 + clock.lag_s
                # What the stalled Redis had in its buffers may land now, and the retry says so.
                retried = [await replica.append([drafted(text, key=f"k{text}")]) for text in "abc"]
            await spine.assert_is_made_of(first, *retried)


class Clock:
    took_s = 0.0
    lag_s = 0.0
    """How late this process was woken: the machine's fault, and no part of an answer's time."""


@asynccontextmanager
async def measured() -> AsyncIterator[Clock]:
    clock, began = Clock(), monotonic()

    async def tick() -> None:
        while True:
            before = monotonic()
            await asyncio.sleep(0.01)
            clock.lag_s += max(0.0, monotonic() - before - 0.02)

    ticking = asyncio.create_task(tick())
    try:
        yield clock
    finally:
        clock.took_s = monotonic() - began
        ticking.cancel()
