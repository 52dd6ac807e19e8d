import asyncio

import pytest

from audit_stream.errors import Refused
from audit_stream.event import Draft
from tests.conformance.stores import Chain, Held, behind_the_gate, drafted, drafts, texts

pytestmark = pytest.mark.anyio

AT = "2026-05-15T03:14:15Z"


async def test_the_same_request_again_gets_the_first_receipt(spine: Chain) -> None:
    async with spine.replica() as replica:
        (first,) = await replica.append([drafted("a", key="k")])
        between = await replica.append(drafts(2))
        (again,) = await replica.append([drafted("a", key="k")])
    assert (again.event, again.replayed) == (first.event, True)
    await spine.assert_is_made_of([first], between)


async def test_another_replica_gives_the_first_receipt_as_well(spine: Chain) -> None:
    async with spine.replica() as one:
        (first,) = await one.append([drafted("a", key="k", timestamp=AT)])
        async with spine.replica() as other:
            (again,) = await other.append([drafted("a", key="k", timestamp=AT)])
    assert (again.event, again.replayed) == (first.event, True)
    await spine.assert_is_made_of([first])


@pytest.mark.parametrize(
    "other",
    [
        drafted("b", key="k", timestamp=AT),
        drafted("a", key="k", timestamp=AT, kind="flag_swapped"),
        drafted("a", key="k", timestamp="2026-05-15T03:14:16Z"),
    ],
    ids=["payload", "kind", "timestamp"],
)
async def test_the_same_key_with_other_content_is_refused_and_nothing_is_written(spine: Chain, other: Draft) -> None:
    async with spine.replica() as replica:
        first = await replica.append([drafted("a", key="k", timestamp=AT)])
        with pytest.raises(Refused, match="'k'") as caught:
            await replica.append([drafted("before"), other, drafted("behind", key="k2")])
        assert caught.value.field == "idempotency_key"
        # The key beside the refused one is not used up.
        third = await replica.append([drafted("something else", key="k2")])
    await spine.assert_is_made_of(first, third)


@pytest.mark.parametrize("source", ["elsewhere", "é" * 200], ids=["short", "long"])
async def test_a_key_is_its_source_s_own_whoever_used_it_before(spine: Chain, source: str) -> None:
    theirs = drafted("a", key="k", timestamp=AT)
    ours, other = (drafted(text, key="k", timestamp=AT, source=source) for text in "ab")
    async with spine.replica() as replica:
        first = await replica.append([theirs])
        second = await replica.append([ours])
        with pytest.raises(Refused, match="'k'"):
            await replica.append([other])
    async with spine.replica() as another:
        again = await another.append([ours, theirs])
    assert [(receipt.event, receipt.replayed) for receipt in again] == [
        (second[0].event, True),
        (first[0].event, True),
    ]
    await spine.assert_is_made_of(first, second)


async def test_two_sources_use_one_key_in_one_request_and_each_gets_its_own_event_again(spine: Chain) -> None:
    both = [drafted("a", key="k", source="one"), drafted("a", key="k", source="two")]
    async with spine.replica() as replica:
        receipts = await replica.append(both)
        again = await replica.append(both[::-1])
        assert [receipt.replayed for receipt in receipts + again] == [False, False, True, True]
        assert [receipt.event for receipt in again] == [receipt.event for receipt in receipts[::-1]]
    await spine.assert_is_made_of(receipts)


async def test_two_sources_use_one_key_in_one_batch(spine: Chain) -> None:
    one, two = drafted("a", key="k", source="one"), drafted("a", key="k", source="two")
    async with spine.stream(Held) as held, spine.replica(held) as replica:
        first, *tasks = await behind_the_gate(held, replica, drafts(1), [one], [two], [one])
        held.open.set()
        receipts = [receipt for answer in await asyncio.gather(*tasks) for receipt in answer]
    assert [receipt.replayed for receipt in receipts] == [False, False, True]
    assert receipts[2].event == receipts[0].event
    await spine.assert_is_made_of(await first, receipts[:2])


async def test_a_retry_finds_its_event_also_when_the_other_source_s_key_is_forgotten_or_taken_anew(
    spine: Chain,
) -> None:
    theirs, ours = drafted("a", key="k", source="they"), drafted("a", key="k", source="we")
    async with spine.replica() as replica:
        first = await replica.append([theirs])
        second = await replica.append([ours])
        spine.raw.delete(spine.keys.once(b"k"))
        (again,) = await replica.append([ours])
        third = await replica.append([drafted("b", key="k", source="third")])
        (once_more,) = await replica.append([ours])
    assert (again.event, once_more.event) == (second[0].event, second[0].event)
    await spine.assert_is_made_of(first, second, third)


async def test_a_key_that_one_source_uses_is_kept_under_one_name_which_servers_of_0_2_0_know(spine: Chain) -> None:
    async with spine.replica() as replica:
        await replica.append([drafted("a", key="k")])
        await replica.append([drafted("a", key="k")])
    assert list(spine.raw.scan_iter(spine.keys.once(b"*"), count=10_000)) == [spine.keys.once(b"k")]


async def test_a_refused_submission_does_not_touch_its_neighbours_in_the_same_batch(spine: Chain) -> None:
    async with spine.stream(Held) as held, spine.replica(held) as replica:
        tasks = await behind_the_gate(
            held,
            replica,
            [drafted("a", key="k")],
            drafts(2, "left"),
            [drafted("x"), drafted("conflict", key="k"), drafted("y")],
            drafts(2, "right"),
        )
        held.open.set()
        first, left, conflict, right = tasks
        await asyncio.wait(tasks)
        assert isinstance(conflict.exception(), Refused)
        assert replica.batches == 2
    assert texts(await spine.stored()) == [b"a", b"left0", b"left1", b"right0", b"right1"]
    await spine.assert_is_made_of(first.result(), left.result(), right.result())


async def test_a_replay_in_a_batch_leaves_its_neighbours_new(spine: Chain) -> None:
    async with spine.stream(Held) as held, spine.replica(held) as replica:
        tasks = await behind_the_gate(
            held, replica, [drafted("a", key="k")], drafts(2, "left"), [drafted("a", key="k")], drafts(2, "right")
        )
        held.open.set()
        first, left, again, right = await asyncio.gather(*tasks)
    assert (again[0].event, again[0].replayed) == (first[0].event, True)
    assert not any(receipt.replayed for receipt in [*first, *left, *right])
    await spine.assert_is_made_of(first, left, right)


async def test_a_batch_that_was_half_appended_before_is_completed(spine: Chain) -> None:
    async with spine.replica() as replica:
        (first,) = await replica.append([drafted("b", key="kb")])
        receipts = await replica.append([drafted("a", key="ka"), drafted("b", key="kb"), drafted("c")])
        assert [receipt.replayed for receipt in receipts] == [False, True, False]
        assert receipts[1].event == first.event
        assert texts([receipt.event for receipt in receipts]) == [b"a", b"b", b"c"]
    await spine.assert_is_made_of([first, receipts[0], receipts[2]])


async def test_the_same_key_twice_at_once_is_one_event(spine: Chain) -> None:
    async with spine.replica() as replica:
        answers = await asyncio.gather(*(replica.append([drafted("a", key="k")]) for _ in range(5)))
    assert len({receipt.event for (receipt,) in answers}) == 1
    assert sorted(receipt.replayed for (receipt,) in answers) == [False, True, True, True, True]
    await spine.assert_is_made_of(answers[0])


async def test_the_same_key_at_two_replicas_at_once_is_one_event(spine: Chain) -> None:
    async with spine.replica() as one, spine.replica() as other:
        answers = await asyncio.gather(*(replica.append([drafted("a", key="k")]) for replica in (one, other) * 3))
    assert len({receipt.event for (receipt,) in answers}) == 1
    assert sum(not receipt.replayed for (receipt,) in answers) == 1
    await spine.assert_is_made_of(answers[0])


async def test_two_contents_under_one_key_at_once_are_one_event_and_one_refusal(spine: Chain) -> None:
    async with spine.replica() as one, spine.replica() as other:
        answers = await asyncio.gather(
            one.append([drafted("a", key="k")]), other.append([drafted("b", key="k")]), return_exceptions=True
        )
    assert sum(isinstance(answer, Refused) for answer in answers) == 1
    await spine.assert_is_made_of(*(answer for answer in answers if not isinstance(answer, BaseException)))


async def test_a_key_twice_in_one_request_is_one_event_with_two_receipts(spine: Chain) -> None:
    async with spine.replica() as replica:
        receipts = await replica.append([drafted("a", key="k"), drafted("b"), drafted("a", key="k")])
        again = await replica.append([drafted("a", key="k"), drafted("a", key="k")])
    assert receipts[0] == receipts[2]
    assert [(receipt.event, receipt.replayed) for receipt in again] == [(receipts[0].event, True)] * 2
    await spine.assert_is_made_of(receipts[:2])


async def test_a_key_twice_in_one_request_with_two_contents_is_refused_whole(spine: Chain) -> None:
    async with spine.replica() as replica:
        with pytest.raises(Refused) as caught:
            await replica.append([drafted("a", key="k"), drafted("b", key="k")])
    assert caught.value.index == 1
    await spine.assert_is_made_of()


async def test_a_key_that_redis_has_forgotten_appends_again(spine: Chain) -> None:
    async with spine.replica() as replica:
        first = await replica.append([drafted("a", key="k")])
        spine.raw.delete(spine.keys.once(b"k"))
        again = await replica.append([drafted("a", key="k")])
    assert not again[0].replayed
    await spine.assert_is_made_of(first, again)


@pytest.mark.parametrize("key", ["k" * 255, "é", '"', "a b", "}:{", "\x00", "*"])
async def test_a_key_of_any_letters_is_remembered(spine: Chain, key: str) -> None:
    async with spine.replica() as replica:
        first = await replica.append([drafted("a", key=key)])
        again = await replica.append([drafted("a", key=key)])
        other = await replica.append([drafted("b", key=key[:-1] + "_")])
    assert (again[0].replayed, other[0].replayed) == (True, False)
    await spine.assert_is_made_of(first, other)
