"""A batch that follows on the heels of another: whatever becomes of the first, both are on the chain once, in order."""

import asyncio
from collections import deque
from typing import Any

import pytest

from audit_stream import appender
from audit_stream.appender import Appender
from audit_stream.chain import Head
from audit_stream.connection import Clients
from audit_stream.errors import Unreachable
from audit_stream.stream import Stream
from tests.conformance.stores import Chain, Store, drafted, drafts, handed_in

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def three_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "WORTH_FOLLOWING", 3)


@pytest.fixture
def checked(store: Store, chain: str) -> Chain:
    """When the script hashes, nothing can follow: no head is known before."""
    return Chain(store, chain, "checked")


class Staged(Stream):
    """A stream whose appends wait until the test lets them go, the first ones to a fate of their own."""

    def __init__(self, clients: Clients, chain: str) -> None:
        super().__init__(clients, chain)
        self.believed: list[Head] = []
        self.under_way = asyncio.Condition()
        self.go = asyncio.Event()
        self.fates: deque[str] = deque()
        self.rival: Appender | None = None

    async def append(self, *drafts: Any, **options: Any) -> Any:
        async with self.under_way:
            self.believed.append(options["believed"])
            self.under_way.notify_all()
        fate = self.fates.popleft() if self.fates else "lands"
        await self.go.wait()
        if fate == "comes too late":
            assert self.rival
            await self.rival.append([drafted("rival")])
        if fate == "is refused":
            raise Unreachable("out of memory")
        if fate == "request lost":
            raise Unreachable("the connection broke", in_doubt=True)
        reply = await super().append(*drafts, **options)
        if fate == "reply lost":
            raise Unreachable("the connection broke", in_doubt=True)
        return reply

    async def calls(self, count: int) -> None:
        async with self.under_way:
            await self.under_way.wait_for(lambda: len(self.believed) == count)


async def test_a_batch_worth_it_follows_at_once_and_loses_no_race(checked: Chain) -> None:
    async with checked.stream(Staged) as staged, checked.replica(staged) as replica:
        first = handed_in(replica, drafts(2, "first"))
        await staged.calls(1)
        second = handed_in(replica, drafts(3, "second"))
        await staged.calls(2)
        assert [head.event_id for head in staged.believed] == [0, 2]
        staged.go.set()
        receipts = await asyncio.gather(*first, *second)
        assert (replica.lost_races, replica.batches) == (0, 2)
    await checked.assert_is_made_of(*receipts)


async def test_few_events_wait_for_the_batch_in_flight_and_a_third_batch_waits_for_the_first(spine: Chain) -> None:
    async with spine.stream(Staged) as staged, spine.replica(staged) as replica:
        handed = handed_in(replica, drafts(1, "first"))
        await staged.calls(1)
        handed += handed_in(replica, drafts(2, "second"))
        await asyncio.sleep(0.01)
        assert len(staged.believed) == 1
        handed += handed_in(replica, drafts(1, "second too"))
        most = 1 if spine.hashing == "script" else 2
        await staged.calls(most)
        handed += handed_in(replica, drafts(9, "third"))
        await asyncio.sleep(0.01)
        assert len(staged.believed) == most
        staged.go.set()
        receipts = await asyncio.gather(*handed)
    await spine.assert_is_made_of(*receipts)


FATES = ("lands", "comes too late", "request lost", "reply lost")


@pytest.mark.parametrize("of_second", FATES)
@pytest.mark.parametrize("of_first", FATES)
async def test_whatever_becomes_of_two_batches_they_are_on_the_chain_once_and_in_order(
    checked: Chain, of_first: str, of_second: str
) -> None:
    async with checked.stream(Staged) as staged, checked.replica() as rival, checked.replica(staged) as replica:
        staged.rival, staged.fates = rival, deque([of_first, of_second])
        handed = handed_in(replica, drafts(2, "first"))
        await staged.calls(1)
        handed += handed_in(replica, drafts(3, "second"))
        await staged.calls(2)
        handed += handed_in(replica, drafts(4, "third"))
        staged.go.set()
        receipts = await asyncio.gather(*handed)
        ids = [receipt.event.event_id for group in receipts for receipt in group]
        assert ids == sorted(ids)
    rivals = [event for event in await checked.stored() if event.payload == b'{"text":"rival"}']
    assert len(rivals) == [of_first, of_second].count("comes too late")
    assert len(await checked.stored()) == len(ids) + len(rivals)


@pytest.mark.parametrize("of_first", [*FATES, "is refused"])
async def test_a_key_of_the_batch_ahead_is_replayed_or_else_appended_by_the_one_behind(
    checked: Chain, of_first: str
) -> None:
    async with checked.stream(Staged) as staged, checked.replica() as rival, checked.replica(staged) as replica:
        staged.rival, staged.fates = rival, deque([of_first])
        keyed = drafted("keyed", key="k")
        first = handed_in(replica, [drafted("before"), keyed])
        await staged.calls(1)
        second = handed_in(replica, [drafted("behind"), keyed, drafted("last")])
        await staged.calls(2)
        staged.go.set()
        behind = (await asyncio.gather(*second))[0]
        if of_first == "is refused":
            with pytest.raises(Unreachable, match="out of memory"):
                await first[0]
            assert [receipt.replayed for receipt in behind] == [False, False, False]
        else:
            assert behind[1].event == (await first[0])[1].event
            assert [receipt.replayed for receipt in behind] == [False, True, False]
    stored = [event.payload for event in await checked.stored()]
    assert stored.count(b'{"text":"keyed"}') == 1


async def test_leaving_answers_the_batch_ahead_the_one_behind_and_who_waits(checked: Chain) -> None:
    async with checked.stream(Staged) as staged:
        async with checked.replica(staged) as replica:
            handed = handed_in(replica, drafts(2, "first"))
            await staged.calls(1)
            handed += handed_in(replica, drafts(3, "second"))
            await staged.calls(2)
            handed += handed_in(replica, drafts(1, "third"))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(staged.go.set)
        assert all(task.done() for task in handed)
        receipts = await asyncio.gather(*handed)
    await checked.assert_is_made_of(*receipts)
