"""A table of every way a call can be lost, and what waits behind it.

An append that is in doubt either lands exactly once or not at all, and its producer is told which; when
that cannot be known in time, a retry under the same idempotency key is safe.
"""

import asyncio

import pytest

from audit_stream import appender, waiting
from audit_stream.chain import START
from audit_stream.errors import Pushback, Unreachable
from audit_stream.event import Draft
from audit_stream.pipelined import Line
from audit_stream.settings import Ack
from audit_stream.stream import Stream
from audit_stream.submission import link
from tests.conformance.stores import (
    Chain,
    Fault,
    Held,
    Lossy,
    behind_the_gate,
    drafted,
    drafts,
    handed_in,
    nothing,
    texts,
)

pytestmark = pytest.mark.anyio

LOSSES: dict[str, list[Fault]] = {
    "reply lost after landing": ["reply lost"],
    "request lost before landing": ["request lost"],
    "both requests lost": ["request lost", "request lost"],
    "both replies lost": ["reply lost", "reply lost"],
    "request lost, then the reply": ["request lost", "reply lost"],
    "reply lost, then the request": ["reply lost", "request lost"],
    "five replies lost": ["reply lost"] * 5,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rival", ["alone", "another replica meanwhile"])
async def test_a_batch_whose_call_was_lost_is_on_the_chain_once(spine: Chain, name: str, rival: str) -> None:
    async with spine.stream(Lossy) as lossy, spine.replica() as other, spine.replica(lossy) as replica:
        receipts = [await replica.append(drafts(2, "before"))]
        if rival != "alone":

            async def meanwhile() -> None:
                receipts.append(await other.append(drafts(1, "rival")))

            lossy.meanwhile = meanwhile
        lossy.faults.extend(LOSSES[name])
        batch = [drafted("a", key="ka"), drafted("b"), drafted("c", key="kc")]
        receipts.append(await replica.append(batch))
        assert not any(receipt.replayed for receipt in receipts[-1])
        assert not lossy.faults
        lossy.meanwhile = nothing
        receipts.append(await replica.append(drafts(2, "behind")))
        again = await replica.append(batch[:1])
        assert (again[0].event, again[0].replayed) == (receipts[-2][0].event, True)
    await spine.assert_is_made_of(*receipts)


async def test_submissions_that_shared_a_lost_batch_each_get_their_receipts(spine: Chain) -> None:
    async with spine.stream(Lossy) as lossy, spine.replica(lossy) as replica:
        lossy.faults.extend(["reply lost", "request lost"])
        submissions = [drafts(n % 5 + 1, f"{n}.") for n in range(12)]
        answers = await asyncio.gather(*(replica.append(submission) for submission in submissions))
    await spine.assert_is_made_of(*answers)
    for submission, receipts in zip(submissions, answers, strict=True):
        assert [receipt.event.payload for receipt in receipts] == [draft.payload for draft in submission]


@pytest.mark.parametrize("name", LOSSES)
async def test_a_retry_whose_call_is_lost_as_well_gets_the_first_receipt(spine: Chain, name: str) -> None:
    async with spine.stream(Lossy) as lossy, spine.replica(lossy) as replica:
        first = await replica.append([drafted("a", key="k")])
        lossy.faults.extend(LOSSES[name])
        again = await replica.append([drafted("a", key="k"), drafted("new")])
        assert (again[0].event, again[0].replayed) == (first[0].event, True)
    await spine.assert_is_made_of(first, again[1:])


async def test_a_lost_reply_stays_in_doubt_when_redis_refuses_what_comes_after(
    spine: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "DEADLINE_S", 0.3)
    async with spine.stream(Lossy) as lossy, spine.replica(lossy) as replica:
        lossy.faults.append("reply lost")
        lossy.faults.extend(["refused"] * 1000)
        batch = [drafted("a", key="k")]
        with pytest.raises(Unreachable, match="whether the event was written is not known yet") as caught:
            await replica.append(batch)
        assert caught.value.in_doubt
        lossy.faults.clear()
        receipts = await replica.append(batch)
        assert receipts[0].replayed
    await spine.assert_is_made_of(receipts)


async def test_a_redis_that_refuses_writes_is_not_asked_twice(spine: Chain) -> None:
    async with spine.stream(Lossy) as lossy, spine.replica(lossy) as replica:
        lossy.faults.append("refused")
        with pytest.raises(Unreachable) as caught:
            await replica.append(drafts(2))
        assert (caught.value.in_doubt, lossy.calls) == (False, 1)
        receipts = await replica.append(drafts(1))
    await spine.assert_is_made_of(receipts)


async def test_replicas_are_not_asked_on_a_connection_that_wrote_nothing(real_spine: Chain) -> None:
    """They would hold all that it wrote: nothing."""

    class CutAfterAppending(Stream):
        async def _replicas_with(self, ack: Ack, line: Line) -> int:
            await self._appends.give_up()
            return await super()._replicas_with(ack, line)

    async with real_spine.stream(CutAfterAppending) as stream:
        made = drafts(1)
        (event,) = link(START, made)
        ack = Ack(fsync=False, replicas=1)
        with pytest.raises(Unreachable) as caught:
            await stream.append(made, [event.hash], believed=START, token=b"t", ttl_ms=1, ack=ack)
    assert caught.value.in_doubt


async def test_producers_whose_batch_was_never_sent_are_not_told_that_it_was(
    spine: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "DEADLINE_S", 0.3)

    class LostAtTheGate(Held, Lossy):
        """The batch that waits at the gate is lost when it opens."""

    async with spine.stream(LostAtTheGate) as stream, spine.replica(stream) as replica:
        stream.faults.extend(["reply lost"] * 1000)
        sent, *waiting = await behind_the_gate(stream, replica, drafts(1, "sent"), drafts(1, "b"), drafts(1, "c"))
        stream.open.set()
        with pytest.raises(Unreachable, match="not known yet") as in_doubt:
            await sent
        assert in_doubt.value.in_doubt
        for producer in waiting:
            with pytest.raises(Unreachable, match="the connection broke; nothing was written") as caught:
                await producer
            assert not caught.value.in_doubt
        stream.faults.clear()
    assert [event.payload for event in await spine.stored()] == [b'{"text":"sent0"}']


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Timeout]:
    """Every deadline that is set, so that a test can let one pass when it wants to."""
    made: list[asyncio.Timeout] = []
    timeout = asyncio.timeout

    def recorded(delay: float | None) -> asyncio.Timeout:
        made.append(timeout(delay))
        return made[-1]

    monkeypatch.setattr(asyncio, "timeout", recorded)
    return made


@pytest.mark.parametrize("fault", ["reply lost", "request lost"])
async def test_what_stays_in_doubt_at_the_deadline_is_settled_by_a_retry(
    spine: Chain, fault: Fault, deadlines: list[asyncio.Timeout]
) -> None:
    async def the_deadline_passes() -> None:
        deadlines[-1].reschedule(asyncio.get_running_loop().time())

    async with spine.stream(Lossy) as lossy, spine.replica(lossy) as replica:
        lossy.faults.append(fault)
        lossy.meanwhile = the_deadline_passes
        with pytest.raises(Unreachable) as caught:
            await replica.append([drafted("a", key="k")])
        assert caught.value.in_doubt
        assert lossy.calls == 1
        (receipt,) = await replica.append([drafted("a", key="k")])
        assert receipt.replayed == (fault == "reply lost")
        behind = await replica.append(drafts(1))
    await spine.assert_is_made_of([receipt], behind)


# --- what waits behind it


async def refused_at_once(held: Held, replica: appender.Appender, handed: list[Draft]) -> None:
    """Append; what is not refused opens the gate after a while, so that the test fails and does not hang."""
    try:
        async with asyncio.timeout(5):
            await replica.append(handed)
    except TimeoutError:
        held.open.set()
        raise


async def test_a_full_queue_pushes_back_and_keeps_what_it_took(spine: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "QUEUE_EVENTS", 4)
    async with spine.stream(Held) as held, spine.replica(held) as replica:
        tasks = await behind_the_gate(held, replica, drafts(1, "in flight"), drafts(3, "a"), drafts(1, "b"))
        with pytest.raises(Pushback) as caught:
            await refused_at_once(held, replica, drafts(1, "too many"))
        assert caught.value.retry_after >= 1
        held.open.set()
        answers = await asyncio.gather(*tasks)
        answers.append(await replica.append(drafts(1, "room again")))
    await spine.assert_is_made_of(*answers)


async def test_a_queue_full_of_bytes_pushes_back(spine: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "QUEUE_BYTES", 20_000)
    async with spine.stream(Held) as held, spine.replica(held) as replica:
        tasks = await behind_the_gate(held, replica, drafts(1), [drafted("x" * 15_000)])
        with pytest.raises(Pushback):
            await refused_at_once(held, replica, [drafted("y" * 10_000)])
        small = handed_in(replica, drafts(1, "small"))
        await asyncio.sleep(0)
        held.open.set()
        answers = await asyncio.gather(*tasks, *small)
    await spine.assert_is_made_of(*answers)


async def test_a_batch_larger_than_the_queue_is_taken_when_nothing_waits(
    spine: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "QUEUE_EVENTS", 4)
    async with spine.replica() as replica:
        await spine.assert_is_made_of(await replica.append(drafts(10)))


async def test_closing_answers_what_was_accepted_and_takes_nothing_new(spine: Chain) -> None:
    async with spine.stream(Held) as held:
        replica = appender.Appender(held, hashing=spine.hashing)
        await replica.__aenter__()
        tasks = await behind_the_gate(held, replica, drafts(1, "a"), drafts(2, "b"), drafts(1, "c"))
        closing = asyncio.create_task(replica.__aexit__())
        await asyncio.sleep(0)
        with pytest.raises(Pushback):
            await replica.append(drafts(1, "late"))
        assert not closing.done()
        held.open.set()
        await closing
        assert all(task.done() for task in tasks)
        answers = [task.result() for task in tasks]
    await spine.assert_is_made_of(*answers)
    assert texts(await spine.stored()) == [b"a0", b"b0", b"b1", b"c0"]


async def test_closing_an_idle_replica_ends_at_once(spine: Chain) -> None:
    async with asyncio.timeout(10):
        async with spine.replica():
            pass
