"""Many sources: the verdict on the links stands whatever becomes of the indexes, and a limit keeps them few."""

from collections.abc import Sequence
from typing import Any

import pytest

from audit_stream import comparing
from audit_stream.errors import Refused, Unreachable
from audit_stream.event import Draft
from audit_stream.indexes import Indexes, Stretch
from audit_stream.source_limit import SourceLimit
from audit_stream.stream import End, Stream
from audit_stream.verifier import Report, Walk
from tests.conformance.stores import Chain, drafted

pytestmark = pytest.mark.anyio
SOURCES = 7


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "PAGE_KEYS", 3)
    monkeypatch.setattr(comparing, "PAGE_ENTRIES", 6)
    monkeypatch.setattr(comparing, "STRETCH_ENTRIES", 4)
    monkeypatch.setattr(comparing, "WINDOW", 5)


def of_sources(*numbers: int) -> list[Draft]:
    return [drafted(source=f"s{number}") for number in numbers]


async def filled(chain: Chain) -> None:
    """Events 1 to 14: s0 … s6, and the same again."""
    async with chain.replica() as replica:
        await replica.append(of_sources(*range(SOURCES), *range(SOURCES)))


async def walked(chain: Chain, kind: type[Stream] = Stream, *, deep: bool = False) -> Report:
    async with chain.stream(kind) as stream:
        return await Walk(stream, 1, None, deep=deep).run()


class Slow(Stream):
    """A Redis that answers in time only when it is asked about few indexes."""

    async def end(self, after: int, *, count: int, indexes: Sequence[bytes] = ()) -> End:
        if len(indexes) > 1:
            raise Unreachable("Redis is away: it did not answer within 1.5 s")
        return await super().end(after, count=count, indexes=indexes)


async def test_the_verdict_on_the_links_stands_when_the_indexes_cannot_be_compared(spine: Chain) -> None:
    await filled(spine)
    report = await walked(spine, Slow)
    assert (report.verdict.valid, report.verdict.checked) == (True, 14)
    assert (report.indexes, report.unchecked) == ("not checked", "Redis is away: it did not answer within 1.5 s")


class Counted(Stream):
    """Counts the most indexes that one step asks about, and has events appended in between."""

    most = 0
    between: Any = None

    async def end(self, after: int, *, count: int, indexes: Sequence[bytes] = ()) -> End:
        if indexes and self.between:
            await self.between()
        Counted.most = max(Counted.most, len(indexes))
        return await super().end(after, count=count, indexes=indexes)


@pytest.mark.parametrize("deep", [False, True])
async def test_indexes_are_compared_some_at_a_time_while_appends_go_on(spine: Chain, deep: bool) -> None:
    await filled(spine)
    Counted.most = 0
    async with spine.stream(Counted) as stream, spine.replica() as replica:
        further = iter(range(100))

        async def append() -> None:
            if (number := next(further)) < 8:
                await replica.append(of_sources(number, 50 + number))  # a known source and a new one

        stream.between = append
        report = await Walk(stream, 1, None, deep=deep).run()
    assert (report.verdict.reason, report.indexes) == (None, "agree")
    assert report.verdict.checked == 30
    assert Counted.most == comparing.PAGE_KEYS


def exchange(chain: Chain) -> None:
    """#5 and #6 stand under each other's source, and each index is as long as before."""
    for number, ids in ((4, (6, 12)), (5, (5, 13))):
        key = chain.keys.source(b"s%d" % number)
        chain.raw.delete(key)
        for event_id in ids:
            chain.raw.xadd(key, {"": ""}, id=f"{event_id}-0")


def lose(chain: Chain) -> None:
    chain.raw.xdel(chain.keys.kind(b"other"), "9-0")


def add_beyond(chain: Chain) -> None:
    chain.raw.xadd(chain.keys.source(b"s0"), {"": ""}, id="99-0")


def add_foreign(chain: Chain) -> None:
    key = chain.keys.source(b"s3")
    chain.raw.delete(key)
    for event_id in ("4-0", "6-0", "11-0"):
        chain.raw.xadd(key, {"": ""}, id=event_id)


def add_index(chain: Chain) -> None:
    chain.raw.xadd(chain.keys.source(b"nobody"), {"": ""}, id="3-0")


def no_stream(chain: Chain) -> None:
    chain.raw.delete(chain.keys.source(b"s2"))
    chain.raw.set(chain.keys.source(b"s2"), "mine")


def time_out_of_order(chain: Chain) -> None:
    chain.raw.delete(chain.keys.time)
    for ms, event_id in enumerate([1, 2, 4, 3, *range(5, 15)], start=1):
        chain.raw.xadd(chain.keys.time, {"": ""}, id=f"{ms}-{event_id}")


DAMAGES = [
    (exchange, 5, "source:s4 lacks event #5"),
    (lose, 9, "kind:other lacks event #9"),
    (add_beyond, 99, "source:s0 holds #99, which does not belong there"),
    (add_foreign, 6, "source:s3 holds #6, which does not belong there"),
    (add_index, 3, "source:nobody holds #3, which does not belong there"),
    (no_stream, 3, "source:s2 is no stream"),
    (time_out_of_order, 3, "time lacks event #3"),
]


@pytest.mark.parametrize(("damage", "at", "says"), DAMAGES, ids=[damage.__name__ for damage, _, _ in DAMAGES])
async def test_a_deep_walk_finds_what_is_wrong_and_names_the_index_and_the_event(
    spine: Chain, damage: Any, at: int, says: str
) -> None:
    await filled(spine)
    damage(spine)
    report = await walked(spine, deep=True)
    assert (report.verdict.valid, report.indexes, report.unchecked) == (False, "disagree", None)
    assert report.verdict.first_break_at == at
    assert report.verdict.reason == f"index {{{spine.name}}}:{says}"


class CountsEvents(Stream):
    pages = 0

    async def page(self, after: int, *, upto: int | None = None, count: int) -> Any:
        CountsEvents.pages += 1
        return await super().page(after, upto=upto, count=count)


async def test_a_deep_walk_reads_the_chain_once(spine: Chain) -> None:
    await filled(spine)
    CountsEvents.pages = 0
    await walked(spine, CountsEvents)
    plain, CountsEvents.pages = CountsEvents.pages, 0
    assert (await walked(spine, CountsEvents, deep=True)).indexes == "agree"
    assert CountsEvents.pages == plain


class SlowIndexes(Indexes):
    async def entries(self, stretches: Sequence[Stretch]) -> list[bytes | None]:
        raise Unreachable("out of time")


class NoEntries(Stream):
    indexes_type = SlowIndexes


async def test_a_deep_walk_that_cannot_compare_entries_keeps_the_verdict_on_the_links(spine: Chain) -> None:
    await filled(spine)
    report = await walked(spine, NoEntries, deep=True)
    assert (report.verdict.valid, report.verdict.checked) == (True, 14)
    assert (report.indexes, report.unchecked) == ("not checked", "out of time")


# --- the limit


async def admit(limit: SourceLimit, *numbers: int, batch: bool = False) -> None:
    drafts = of_sources(*numbers)
    if unseen := limit.unseen(drafts):
        await limit.admit(unseen, drafts, batch=batch)


async def test_a_source_beyond_the_limit_is_refused_and_known_ones_go_on_in_every_replica(spine: Chain) -> None:
    async with (
        spine.stream(Stream) as one,
        spine.stream(Stream) as two,
        SourceLimit(one, 3) as here,
        SourceLimit(two, 3) as there,
    ):
        await admit(here, 1, 2, 1)
        await admit(there, 3, 2)
        for limit in (here, there):
            with pytest.raises(Refused, match=r"AUDIT_STREAM_MAX_SOURCES=3") as caught:
                await admit(limit, 1, 4, batch=True)
            assert (caught.value.field, caught.value.index) == ("source", 1)
            await admit(limit, 1, 2, 3)
    assert spine.raw.smembers(spine.keys.sources) - {b""} == {b"s1", b"s2", b"s3"}


async def test_a_known_source_asks_redis_nothing(spine: Chain) -> None:
    async with spine.stream(Stream) as stream, SourceLimit(stream, 3) as limit:
        await admit(limit, 1)
        assert limit.unseen(of_sources(1, 1)) == []


async def test_sources_of_the_time_before_the_limit_count_and_go_on(real_spine: Chain) -> None:
    spine = real_spine
    await filled(spine)
    async with spine.stream(Stream) as stream, SourceLimit(stream, SOURCES) as limit:
        await admit(limit, 0)
        assert limit._completing
        await limit._completing
        with pytest.raises(Refused):
            await admit(limit, 70)
        await admit(limit, *range(SOURCES))
    async with spine.stream(Stream) as stream, SourceLimit(stream, 1) as lowered:
        await admit(lowered, *range(SOURCES))
        with pytest.raises(Refused):
            await admit(lowered, 70)


async def test_a_limit_that_cannot_be_kept_stops_no_append(spine: Chain, caplog: pytest.LogCaptureFixture) -> None:
    spine.raw.set(spine.keys.sources, "mine")
    async with spine.stream(Stream) as stream, SourceLimit(stream, 1) as limit:
        await admit(limit, 1, 2)
        await admit(limit, 3)
    assert [record.message for record in caplog.records].count(
        "AUDIT_STREAM_MAX_SOURCES=1 is not kept: a key of the chain holds another type than a stream"
    ) == 1
