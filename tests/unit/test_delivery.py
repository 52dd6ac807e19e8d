"""Finding what is refused for good among what is not: each event has one outcome, in order, at little cost."""

import asyncio
import logging
from collections.abc import Sequence
from typing import cast

import pytest

from audit_stream.errors import Unreachable
from audit_stream.sources.delivery import Delivery
from audit_stream.sources.spine import Refusal, Spine
from audit_stream.sources.stopping import Stopped, Stopping


class FakeSpine:
    """Refuses events called `bad`, all or nothing; `names` the one that is wrong, or not."""

    def __init__(self, *, names: bool) -> None:
        self.names, self.asked, self.taken = names, 0, list[bytes]()

    async def append(self, events: Sequence[bytes]) -> Refusal | None:
        self.asked += 1
        if b"bad" in events:
            return Refusal("bad", list(events).index(b"bad") if self.names and len(events) > 1 else None)
        self.taken += events
        return None


async def nothing() -> None: ...


async def outcomes(spine: object, events: list[bytes], stopping: Stopping | None = None) -> list[tuple[int, int, bool]]:
    log = logging.getLogger("test")
    deliver = Delivery(cast("Spine", spine), stopping or Stopping(), log, away=lambda _: None)
    return [(first, end, refusal is None) async for first, end, refusal in deliver(events, still_ours=nothing)]


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("bad", [[], [0], [9], [0, 1, 2], [3, 4, 8], list(range(10))])
def test_every_event_is_taken_or_refused_once_and_in_order(bad: list[int], names: bool) -> None:
    spine = FakeSpine(names=names)
    events = [b"bad" if at in bad else b"%d" % at for at in range(10)]
    found = asyncio.run(outcomes(spine, events))
    assert [at for first, end, _ in found for at in range(first, end)] == list(range(10))
    assert [first for first, _, taken in found if not taken] == bad
    assert spine.taken == [event for event in events if event != b"bad"]


def test_where_the_spine_names_what_is_wrong_each_costs_three_requests() -> None:
    spine = FakeSpine(names=True)
    events = [b"bad" if at % 100 == 50 else b"x" for at in range(1000)]
    asyncio.run(outcomes(spine, events))
    assert spine.asked == 3 * 10 + 1


def test_it_stops_between_two_attempts() -> None:
    stopping = Stopping()

    class Away:
        async def append(self, events: Sequence[bytes]) -> Refusal | None:
            stopping.set()
            raise Unreachable("no server")

    with pytest.raises(Stopped):
        asyncio.run(outcomes(Away(), [b"x"], stopping))


def test_before_the_same_is_sent_again_it_is_asked_whether_it_is_still_ours() -> None:
    class Lost(Exception):
        pass

    class Away:
        asked = 0

        async def append(self, events: Sequence[bytes]) -> Refusal | None:
            self.asked += 1
            assert self.asked == 1, "it was sent again"
            raise Unreachable("no server")

    async def another_leads() -> None:
        raise Lost

    spine = Away()
    deliver = Delivery(cast("Spine", spine), Stopping(), logging.getLogger("test"), away=lambda _: None)

    async def run() -> None:
        async for _ in deliver([b"x"], still_ours=another_leads):
            pass

    with pytest.raises(Lost):
        asyncio.run(run())
