"""Someone else wrote where only append.lua may: what appending does then."""

import pytest

from audit_stream.chain import Head
from audit_stream.errors import ChainBroken
from audit_stream.query import Filter, select
from audit_stream.settings import FSYNC, Ack
from audit_stream.stream import Stream
from audit_stream.verifier import Walk
from tests.conformance.stores import Chain, drafted, drafts

pytestmark = pytest.mark.anyio

MEMORY = Ack(fsync=False, replicas=0)


@pytest.mark.parametrize("cut", ["the last", "the newest three", "all"])
async def test_a_chain_whose_end_was_cut_is_not_built_upon(real_spine: Chain, cut: str) -> None:
    # Only a real server: fakeredis takes an entry id that it has given out before.
    spine = real_spine
    left = {"the last": 4, "the newest three": 2, "all": 0}[cut]
    async with spine.replica() as replica:
        await replica.append(drafts(5))
    for event_id in range(left + 1, 6):
        spine.raw.xdel(spine.keys.events, f"{event_id}-0")
    async with spine.replica() as fresh:
        with pytest.raises(ChainBroken) as caught:
            await fresh.append([drafted("a", key="k")])
    assert caught.value.at == left + 1
    assert str(caught.value) == f"chain ends at event #{left}, but #5 was written"
    assert spine.raw.xlen(spine.keys.events) == left
    assert not spine.raw.exists(spine.keys.once(b"k"))


GENUINE = dict.fromkeys(["timestamp", "kind", "source", "payload", "prev_hash", "hash"], "x") | {"payload": "{}"}
FOREIGN: dict[str, tuple[str, dict[str, str]]] = {
    "another sequence number": ("3-1", GENUINE),
    "other fields": ("4-0", {"message": "hello"}),
    "a field missing": ("4-0", {name: value for name, value in GENUINE.items() if name != "hash"}),
    "a field too many": ("4-0", GENUINE | {"note": "x"}),
    "fields in another order": ("4-0", dict(reversed(GENUINE.items()))),
}


@pytest.mark.parametrize("name", FOREIGN)
async def test_nothing_is_linked_to_an_entry_that_is_no_event(spine: Chain, name: str) -> None:
    entry_id, fields = FOREIGN[name]
    async with spine.replica() as replica:
        await replica.append(drafts(3))
        spine.raw.xadd(spine.keys.events, fields, id=entry_id)
        with pytest.raises(ChainBroken, match=entry_id):
            await replica.append([drafted("a", key="k")])
    assert spine.raw.xlen(spine.keys.events) == 4
    assert not spine.raw.exists(spine.keys.once(b"k"))


async def test_a_chain_key_that_is_no_stream_is_not_written(spine: Chain) -> None:
    async with spine.replica() as replica:
        spine.raw.set(spine.keys.events, "mine")
        with pytest.raises(ChainBroken):
            await replica.append(drafts(1))
    assert spine.raw.get(spine.keys.events) == b"mine"


# --- Redis came back with less than it had


async def test_a_head_behind_a_promised_receipt_is_evidence_when_the_promise_is_fsync(spine: Chain) -> None:
    async with spine.replica(ack=FSYNC) as replica:
        await replica.append(drafts(3))
        spine.forget_everything()
        with pytest.raises(ChainBroken, match="chain ends at event #0, but #3 was written") as caught:
            await replica.append([drafted("a", key="k")])
        assert caught.value.at == 1
        with pytest.raises(ChainBroken):
            await replica.append(drafts(1))
    assert spine.raw.keys(b"{%b}:*" % spine.name.encode()) == []


async def test_a_head_behind_a_promised_receipt_is_taken_when_the_promise_is_memory(spine: Chain) -> None:
    async with spine.replica(ack=MEMORY) as replica:
        await replica.append(drafts(3))
        spine.forget_everything()
        receipts = [await replica.append(drafts(2)), await replica.append(drafts(1))]
    await spine.assert_is_made_of(*receipts)


@pytest.mark.parametrize("forgeries", [3, 5])
async def test_a_promised_event_that_was_replaced_is_evidence_when_the_promise_is_fsync(
    spine: Chain, forgeries: int
) -> None:
    async with spine.replica(ack=FSYNC) as replica:
        await replica.append(drafts(3))
        spine.forget_everything()
        async with spine.replica() as forger:
            forged = await forger.append(drafts(forgeries, "forged"))
        with pytest.raises(ChainBroken) as caught:
            await replica.append(drafts(1))
        assert caught.value.at == 3
    await spine.assert_is_made_of(forged)


async def test_a_replica_that_promised_nothing_takes_the_chain_as_it_finds_it(spine: Chain) -> None:
    async with spine.replica() as writer, spine.replica() as fresh:
        await writer.append(drafts(3))
        spine.forget_everything()
        receipts = await fresh.append(drafts(1))
    await spine.assert_is_made_of(receipts)


# --- the indexes


@pytest.mark.parametrize("damaged", ["kind", "source", "time"])
async def test_a_damaged_index_is_reported_and_does_not_stop_the_chain(spine: Chain, damaged: str) -> None:
    keys = spine.keys
    key = {"kind": keys.kind(b"other"), "source": keys.source(b"conformance"), "time": keys.time}[damaged]
    async with spine.replica() as replica:
        await replica.append(drafts(2))
        assert replica.index_trouble == ""
        spine.raw.delete(key)
        spine.raw.set(key, "no index")
        receipts = await replica.append(drafts(2, "after", key=None))
        assert key.decode() in replica.index_trouble
        assert "WRONGTYPE" in replica.index_trouble
        assert [receipt.event.event_id for receipt in receipts] == [3, 4]
        spine.raw.delete(key)
        await replica.append(drafts(1))
        assert replica.index_trouble == "", "mended, and still reported"
    async with spine.stream(Stream) as stream:
        report = await Walk(stream, 1, None).run()
    assert report.indexes == "disagree"
    assert report.verdict.checked == 5
    assert key.decode() in str(report.verdict.reason)


async def test_an_index_that_is_ahead_of_the_chain_is_reported(real_spine: Chain) -> None:
    spine = real_spine
    async with spine.replica() as replica:
        await replica.append(drafts(1))
        spine.raw.xadd(spine.keys.kind(b"other"), {"": ""}, id="9-0")
        receipts = await replica.append(drafts(1))
        assert receipts[0].event.event_id == 2
        assert spine.keys.kind(b"other").decode() in replica.index_trouble


async def test_commit_time_does_not_run_back_when_the_clock_does(spine: Chain) -> None:
    seconds, _ = spine.raw.time()
    future_ms = (int(seconds) + 3600) * 1000
    async with spine.stream(Stream) as stream, spine.replica(stream) as replica:
        await replica.append(drafts(1))
        spine.raw.delete(spine.keys.time)
        spine.raw.xadd(spine.keys.time, {"": ""}, id=f"{future_ms}-1")
        receipts = [*await replica.append(drafts(2)), *await replica.append(drafts(1))]
        assert replica.index_trouble == ""
        entries = await stream.indexes.times(b"0-0", count=10)
        assert entries == [(b"%d-%d" % (future_ms, event_id), event_id) for event_id in (1, 2, 3, 4)]
        assert [receipt.event.event_id for receipt in receipts] == [2, 3, 4]
        assert list((await select(stream, Filter())).event_ids) == [1, 2, 3, 4]
        assert await stream.indexes.first_at(future_ms) == 1
        assert await stream.indexes.last_before(future_ms) is None
    await spine.stored()


async def test_a_believed_head_of_another_id_is_no_head_even_under_the_same_hash(spine: Chain) -> None:
    async with spine.replica() as replica:
        (receipt,) = await replica.append([drafted("a")])
        replica._head = Head(7, receipt.event.hash)  # what it was told while the chain was tampered with
        (following,) = await replica.append([drafted("b")])
    await spine.assert_is_made_of([receipt, following])
