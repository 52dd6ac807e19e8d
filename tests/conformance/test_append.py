import asyncio
import json
from typing import Any

import pytest

from audit_stream.appender import LOST_RACES, Appender
from audit_stream.chain import GENESIS, START, Event, Head, link_hash
from audit_stream.entries import FIELDS
from audit_stream.errors import HashMismatch
from audit_stream.event import Draft
from audit_stream.scripts import Moved
from audit_stream.stream import Stream
from audit_stream.submission import Receipt
from tests.conformance.stores import Chain, Held, behind_the_gate, drafted, drafts, texts

pytestmark = pytest.mark.anyio


async def test_the_first_event_follows_genesis(spine: Chain) -> None:
    async with spine.replica() as replica:
        (receipt,) = await replica.append([drafted("first")])
    assert (receipt.event.event_id, receipt.event.prev_hash) == (1, GENESIS)
    assert not receipt.replayed
    await spine.assert_is_made_of([receipt])


async def test_each_event_is_linked_to_the_one_before_it(spine: Chain) -> None:
    async with spine.replica() as replica:
        receipts = [await replica.append([drafted(str(n))]) for n in range(5)]
    await spine.assert_is_made_of(*receipts)
    assert texts(await spine.stored()) == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_batch_is_appended_in_its_order_without_a_gap(spine: Chain) -> None:
    async with spine.replica() as replica:
        receipts = await replica.append(drafts(40))
    await spine.assert_is_made_of(receipts)
    assert texts([receipt.event for receipt in receipts]) == [b"%d" % n for n in range(40)]


@pytest.mark.parametrize(
    "source", ['quo"te\\', "café", "😀", " ", "tab\t", "line\nend", "\x00", "\x7f", "</script>", "{}:*", "s" * 256]
)
async def test_a_source_of_any_letters_is_stored_and_hashed_as_it_is(spine: Chain, source: str) -> None:
    async with spine.replica() as replica:
        receipts = await replica.append(drafts(2, source=source))
    await spine.assert_is_made_of(receipts)
    assert receipts[1].event.source.decode() == source


async def test_the_published_chain_gets_the_published_hashes(
    spine: Chain, vectors: dict[str, list[dict[str, object]]]
) -> None:
    fields = ("kind", "source", "payload", "timestamp")
    requests: list[dict[str, Any]] = [{name: event[name] for name in fields} for event in vectors["chain"]]
    async with spine.replica() as replica:
        receipts = await replica.append([drafted(**request) for request in requests])
    assert [receipt.event.hash.decode() for receipt in receipts] == [event["hash"] for event in vectors["chain"]]
    await spine.assert_is_made_of(receipts)


@pytest.mark.parametrize("payload_bytes", [3_500, 5_000, 70_000])
async def test_an_event_on_either_side_of_the_check_limit_is_linked(spine: Chain, payload_bytes: int) -> None:
    async with spine.replica() as replica:
        receipts = await replica.append([drafted("x" * payload_bytes), drafted("behind it")])
    await spine.assert_is_made_of(receipts)


async def test_many_producers_at_once_each_get_their_own_receipts(spine: Chain) -> None:
    submissions = [drafts(n % 4 + 1, f"{n}.") for n in range(40)]
    async with spine.replica() as one, spine.replica() as other:
        answers = await asyncio.gather(
            *((one if n % 3 else other).append(submission) for n, submission in enumerate(submissions))
        )
    await spine.assert_is_made_of(*answers)
    for submission, receipts in zip(submissions, answers, strict=True):
        ids = [receipt.event.event_id for receipt in receipts]
        assert ids == list(range(ids[0], ids[0] + len(ids))), "one producer's batch was split"
        assert [receipt.event.payload for receipt in receipts] == [draft.payload for draft in submission]


async def test_whoever_arrives_while_a_batch_is_in_flight_is_in_the_next_one(spine: Chain) -> None:
    async with spine.stream(Held) as held, spine.replica(held) as replica:
        tasks = await behind_the_gate(held, replica, *(drafts(2, f"{n}.") for n in range(20)))
        held.open.set()
        answers = await asyncio.gather(*tasks)
        assert replica.batches == 2
    await spine.assert_is_made_of(*answers)


async def test_a_producer_that_goes_away_takes_nothing_back_and_disturbs_nobody(spine: Chain) -> None:
    async with spine.stream(Held) as held, spine.replica(held) as replica:
        first, leaves, stays = await behind_the_gate(held, replica, drafts(1, "a"), drafts(1, "b"), drafts(1, "c"))
        leaves.cancel()
        held.open.set()
        await asyncio.gather(first, stays)
    assert texts(await spine.stored()) == [b"a0", b"b0", b"c0"]


async def test_a_stored_event_is_plain_for_anyone_who_looks(spine: Chain) -> None:
    async with spine.replica() as replica:
        (receipt,) = await replica.append([drafted("plain")])
    ((entry_id, fields),) = spine.raw.xrange(spine.keys.events)
    assert entry_id == b"1-0"
    assert list(fields) == FIELDS
    assert json.loads(fields[b"payload"]) == {"text": "plain"}
    assert Event(1, *fields.values()) == receipt.event


async def test_the_chains_keys_share_one_hash_tag_and_none_is_left_that_never_expires(spine: Chain) -> None:
    async with spine.replica() as replica:
        await replica.append([drafted("a", key="k"), drafted("b")])
    keys = spine.keys
    lasting = {keys.events, keys.time, keys.kind(b"other"), keys.source(b"conformance")}
    found = {key: spine.raw.pttl(key) for key in spine.raw.keys(b"{%b}:*" % spine.name.encode())}
    assert {key for key, ttl_ms in found.items() if ttl_ms == -1} == lasting
    day_ms = 24 * 3600 * 1000
    assert day_ms - 120_000 < found[keys.once(b"k")] <= day_ms
    assert spine.raw.keys(b"*%b*" % spine.name.encode()) == spine.raw.keys(b"{%b}:*" % spine.name.encode())


# --- what the script refuses of a caller that is wrong


async def test_a_wrong_head_hash_is_refused_and_nothing_is_written(spine: Chain) -> None:
    keyed = drafted("b", key="k")
    right = link_hash(1, *drafted("a")[:4], GENESIS)
    async with spine.stream(Stream) as stream:
        with pytest.raises(HashMismatch):
            await append_offering(stream, [drafted("a"), keyed], [right, b"f" * 64])
        assert await stream.head() == START
    assert spine.raw.keys(b"{%b}:*" % spine.name.encode()) == []


async def test_an_offer_for_another_head_is_told_the_real_one_and_nothing_is_written(spine: Chain) -> None:
    async with spine.replica() as replica:
        receipts = await replica.append(drafts(3))
    before = {key: spine.raw.dump(key) for key in spine.raw.keys(b"{%b}:*" % spine.name.encode())}
    head = receipts[-1].event
    async with spine.stream(Stream) as stream:
        reply = await append_offering(stream, [drafted("late", key="k")], [b"f" * 64])
    assert reply == Moved(Head(head.event_id, head.hash))
    assert {key: spine.raw.dump(key) for key in spine.raw.keys(b"{%b}:*" % spine.name.encode())} == before


async def append_offering(stream: Stream, batch: list[Draft], hashes: list[bytes]) -> object:
    return await stream.append(batch, hashes, believed=START, token=b"t", ttl_ms=60_000)


# --- Redis forgets the script


async def test_a_redis_that_forgot_the_script_is_given_it_again(spine: Chain) -> None:
    async with spine.replica() as replica:
        receipts = [await replica.append(drafts(1, "before"))]
        spine.raw.script_flush()
        receipts.append(await replica.append(drafts(2, "after")))
    await spine.assert_is_made_of(*receipts)


# --- more than one replica


async def test_a_replica_whose_head_is_old_loses_one_race_and_appends_behind_the_real_head(spine: Chain) -> None:
    async with spine.replica() as one, spine.replica() as other:
        receipts = [await one.append(drafts(3, "one"))]
        receipts.append(await other.append(drafts(2, "other")))
        assert other.lost_races == (1 if spine.hashing == "checked" else 0)
    await spine.assert_is_made_of(*receipts)


async def test_two_replicas_that_race_build_one_chain(spine: Chain) -> None:
    async with spine.replica() as one, spine.replica() as other:

        async def produce(name: str, replica: Appender) -> list[list[Receipt]]:
            return [await replica.append(drafts(1, f"{name}{n}.")) for n in range(25)]

        answers = await asyncio.gather(produce("one", one), produce("other", other))
        if spine.hashing == "checked":
            assert one.lost_races + other.lost_races > 0
    await spine.assert_is_made_of(*answers[0], *answers[1])


class Outrun(Stream):
    """Another replica is always faster, until the script hashes."""

    rival: Appender
    offers = 0

    async def append(self, drafts: Any, hashes: Any, **options: Any) -> Any:
        if hashes is not None:
            self.offers += 1
            await self.rival.append([drafted("rival")])
        return await super().append(drafts, hashes, **options)


async def test_after_enough_lost_races_the_script_hashes_and_no_submission_is_split(spine: Chain) -> None:
    async with spine.stream(Outrun) as outrun, spine.replica() as rival, spine.replica(outrun) as replica:
        outrun.rival = rival
        submissions = [drafts(7, f"{n}.") for n in range(6)]
        answers = await asyncio.gather(*(replica.append(submission) for submission in submissions))
        assert replica.lost_races == outrun.offers == (LOST_RACES if spine.hashing == "checked" else 0)
    stored = await spine.stored()
    assert len(stored) == 42 + outrun.offers
    for receipts in answers:
        first = receipts[0].event.event_id
        assert [receipt.event for receipt in receipts] == stored[first - 1 : first + 6]
