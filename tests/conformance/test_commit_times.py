"""Commit times read from an index that lacks some, holds them far apart, or is no index at all."""

import asyncio
import random

import pytest

from audit_stream.stream import Stream
from tests.conformance.stores import Chain, drafts

EVENTS = 40
pytestmark = pytest.mark.anyio


def index(chain: Chain, seed: int) -> dict[int, int]:
    """Write a time index with gaps, of batches that lie between a millisecond and years apart."""
    dice, times, ms = random.Random(seed), {}, 1_000
    for event_id in range(1, EVENTS + 1):
        ms += dice.choice((0, 0, 1, 50, 10**6, 10**11))
        if dice.random() < 0.8:
            times[event_id] = ms
            chain.raw.xadd(chain.keys.time, {"": ""}, f"{ms}-{event_id}")
    return times


@pytest.mark.parametrize("seed", range(5))
async def test_an_event_that_the_index_lacks_has_no_commit_time_and_the_others_have_theirs(
    spine: Chain, seed: int
) -> None:
    times = index(spine, seed)
    async with spine.stream(Stream) as stream:
        for wanted in ([1], [EVENTS], range(1, EVENTS + 1), range(3, EVENTS, 3), [2, 20, 21, 39], [EVENTS + 5]):
            assert await stream.commit_times.of(wanted) == [times.get(event_id) for event_id in wanted]


async def test_without_an_index_no_event_has_a_commit_time(spine: Chain) -> None:
    async with spine.stream(Stream) as stream:
        assert await stream.commit_times.of([1, 2]) == [None, None]
        spine.raw.set(spine.keys.time, "no stream")
        assert await stream.commit_times.of([1, 2]) == [None, None]


async def test_an_index_that_was_built_anew_meanwhile_is_searched_again(spine: Chain) -> None:
    index(spine, 1)
    async with spine.stream(Stream) as stream:
        await stream.commit_times.of(range(1, 10))
        spine.raw.delete(spine.keys.time)
        for event_id in range(1, EVENTS + 1):
            spine.raw.xadd(spine.keys.time, {"": ""}, f"7-{event_id}")
        assert await stream.commit_times.of(range(10, 20)) == [7] * 10


async def test_a_restored_commit_time_is_kept_but_for_one_before_the_newest_or_after_now(spine: Chain) -> None:
    async with spine.stream(Stream) as stream, spine.replica(stream) as replica:
        now = await stream.now_ms()
        # Handed in at once: what is restored shares no batch, or the times would be of other events.
        await asyncio.gather(
            replica.append(drafts(3), committed=[1000, 1000, 2000]),
            replica.append(drafts(2), committed=[1500, 3000]),
            replica.append(drafts(1)),
            replica.append(drafts(2), committed=[4000, now + 10**9]),
        )
        *kept, posted, before, after = await stream.commit_times.of(range(1, 9))
    assert kept == [1000, 1000, 2000, 2000, 3000]
    assert posted is not None
    assert before == posted
    assert after is not None
    assert now <= posted <= after < now + 10**9
    await spine.stored()
