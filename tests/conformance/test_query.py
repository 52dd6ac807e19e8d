"""Every combination of filters against the same question asked of the whole chain, one event after the other."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit_stream import query
from audit_stream.appender import Appender
from audit_stream.chain import Event
from audit_stream.query import Filter, Selection
from audit_stream.stream import Stream
from tests.conformance.stores import Chain, drafted, fake_store, real_store

COUNT = 300
KINDS = ["other", "watch_drifted", "flag_swapped", "incident_filed"]
SOURCES = ["api", "café", 'quo"te\\', "api:kind", "once"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class History(NamedTuple):
    """A chain that no longer changes, and what it must answer."""

    runner: asyncio.Runner
    stream: Stream
    events: list[Event]
    committed_ms: dict[int, int]

    def moments_us(self) -> list[int]:
        """Around each commit time: before it, at it, within its millisecond, after it; and far away."""
        steps = (-1000, -1, 0, 1, 999, 1000)
        times = {ms * 1000 + step for ms in self.committed_ms.values() for step in steps}
        return [0, *sorted(times), 4_000_000_000_000_000]

    def asked_one_by_one(self, wanted: Filter) -> Selection:
        ids = [event.event_id for event in self.events if self.matches(event, wanted)]
        turned = wanted.after is not None
        page = ids[: wanted.limit] if turned else ids[-wanted.limit :]
        return Selection(page, more=len(ids) > wanted.limit)

    def matches(self, event: Event, wanted: Filter) -> bool:
        committed = EPOCH + timedelta(milliseconds=self.committed_ms[event.event_id])
        return (
            (wanted.kind is None or wanted.kind.encode() == event.kind)
            and (wanted.source is None or wanted.source.encode() == event.source)
            and (wanted.since is None or committed >= wanted.since)
            and (wanted.until is None or committed < wanted.until)
            and (wanted.after is None or event.event_id > wanted.after)
            and (wanted.before is None or event.event_id < wanted.before)
        )


async def write_history(chain: Chain, stream: Stream) -> None:
    async with chain.replica() as replica:
        for first in range(0, COUNT, 5):
            # Some kinds and sources are rare, and some never meet.
            await replica.append(
                [
                    drafted(str(n), kind=KINDS[min(n % 7, n % 5, 3)], source=SOURCES[n * n % 11 % 5])
                    for n in range(first, first + 5)
                ]
            )


@pytest.fixture(scope="module", params=["redis", "fakeredis"])
def history(request: pytest.FixtureRequest) -> Iterator[History]:
    redis = request.param == "redis"
    store = real_store(request.getfixturevalue("redis_url")) if redis else fake_store()
    chain = Chain(store, f"query.{id(store)}", "checked")
    stream = Stream(store.clients(), chain.name)
    with asyncio.Runner() as runner, store.raw, pytest.MonkeyPatch.context() as small:
        small.setattr(query, "INDEX_PAGE", 9)
        small.setattr(query, "PICK_PAGE", 7)
        runner.run(write_history(chain, stream))
        events = runner.run(stream.page(0, count=COUNT)).unbroken()
        entries = runner.run(stream.indexes.times(b"0-0", count=COUNT))
        times = {event_id: int(entry_id.partition(b"-")[0]) for entry_id, event_id in entries}
        assert len(events) == len(times) == COUNT
        yield History(runner, stream, events, times)
        runner.run(stream.close())


cursors = st.none() | st.integers(0, COUNT + 2)
filters = st.fixed_dictionaries(
    {
        "kind": st.none() | st.sampled_from([*KINDS, "contract_promoted"]),
        "source": st.none() | st.sampled_from([*SOURCES, "nobody"]),
        "since": st.none() | st.floats(0, 1),
        "until": st.none() | st.floats(0, 1),
        "after": cursors,
        "before": cursors,
        "limit": st.integers(1, COUNT + 2),
    }
)
EVERYTHING = {"kind": None, "source": None, "since": None, "until": None, "after": None, "before": None, "limit": COUNT}


@settings(deadline=None, max_examples=80)
@given(filters)
@example(EVERYTHING)
@example(EVERYTHING | {"limit": COUNT - 1})
@example(EVERYTHING | {"after": 0, "limit": COUNT - 1})
@example(EVERYTHING | {"after": COUNT})
@example(EVERYTHING | {"before": 1})
@example(EVERYTHING | {"before": 0})
@example(EVERYTHING | {"after": 10, "before": 11})
@example(EVERYTHING | {"since": 0.5, "until": 0.5})
@example(EVERYTHING | {"since": 0.6, "until": 0.4})
@example(EVERYTHING | {"since": 1.0})
@example(EVERYTHING | {"until": 0.0})
@example(EVERYTHING | {"kind": "other", "source": "api", "limit": 1})
@example(EVERYTHING | {"kind": "other", "source": "api", "after": 0, "limit": 10})
def test_a_selection_is_what_asking_every_event_gives(history: History, parts: dict[str, Any]) -> None:
    moments = history.moments_us()
    for name in ("since", "until"):
        place = parts[name]
        if isinstance(place, float):
            parts = parts | {name: EPOCH + timedelta(microseconds=moments[int(place * (len(moments) - 1))])}
    wanted = Filter(**parts)
    found = history.runner.run(query.select(history.stream, wanted))
    expected = history.asked_one_by_one(wanted)
    assert (list(found.event_ids), found.more) == (expected.event_ids, expected.more)


stretches = st.builds(lambda a, b: set(range(a, b)), *[st.integers(1, COUNT)] * 2)
some_ids = st.sets(st.integers(1, COUNT))
with_gaps = st.builds(set.difference, stretches, some_ids)


@settings(deadline=None, max_examples=80)
@given(some_ids | stretches | with_gaps)
@example({1, 3})
@example(set(range(1, COUNT, 3)))
@example(set(range(1, COUNT)) - {7, 8, 150})
def test_fetching_ids_gives_their_events_in_order(history: History, ids: set[int]) -> None:
    async def fetched() -> list[Event]:
        return [event async for page in query.fetch(history.stream, sorted(ids)) for event in page]

    assert history.runner.run(fetched()) == [history.events[event_id - 1] for event_id in sorted(ids)]


@settings(deadline=None, max_examples=60)
@given(some_ids | stretches | with_gaps)
@example(set())
@example({1})
@example({COUNT})
@example(set(range(1, COUNT + 3)))
def test_the_commit_times_of_events_are_those_of_the_time_index(history: History, ids: set[int]) -> None:
    found = history.runner.run(history.stream.commit_times.of(sorted(ids)))
    assert found == [history.committed_ms.get(event_id) for event_id in sorted(ids)]


def test_reading_on_goes_on_where_the_last_commit_time_was_read(history: History) -> None:
    times = [
        ms
        for first in range(1, COUNT, 7)
        for ms in history.runner.run(history.stream.commit_times.of(range(first, min(first + 7, COUNT + 1))))
    ]
    assert times == [history.committed_ms[event_id] for event_id in range(1, COUNT + 1)]


@settings(deadline=None, max_examples=25)
@given(st.none() | st.sampled_from(KINDS), st.none() | st.sampled_from(SOURCES), st.integers(1, 60), st.booleans())
def test_following_the_pages_shows_each_event_once(
    history: History, kind: str | None, source: str | None, limit: int, forwards: bool
) -> None:
    wanted = Filter(kind, source, after=0 if forwards else None, limit=limit)
    seen: list[int] = []
    more = True
    while more:
        ids, more = history.runner.run(query.select(history.stream, wanted))
        assert len(ids) == limit or not more
        if forwards:
            seen += ids
            wanted = wanted._replace(after=seen[-1] if seen else 0)
        else:
            seen = [*ids, *seen]
            wanted = wanted._replace(before=seen[0] if seen else 1)
    assert seen == [event.event_id for event in history.events if history.matches(event, Filter(kind, source))]


ids_around_the_chain = st.lists(st.integers(1, COUNT + 20), min_size=1, unique=True)


@settings(deadline=None, max_examples=40)
@given(ids_around_the_chain)
@example([COUNT + 1])
@example([5, COUNT + 1, COUNT + 2])
@example([9, 3, COUNT])
def test_picking_leaves_out_what_is_not_there(history: History, ids: list[int]) -> None:
    picked = history.runner.run(history.stream.pick(ids))
    assert picked == [history.events[event_id - 1] for event_id in ids if event_id <= COUNT]


def test_an_event_taken_out_of_the_chain_is_not_replaced_by_the_one_behind_it(redis_url: str) -> None:
    chain = Chain(real_store(redis_url), "query.taken_out", "checked")

    async def test() -> None:
        stream = Stream(chain.store.clients(), chain.name)
        async with chain.replica() as replica:
            await replica.append([drafted(str(n)) for n in range(9)])
        chain.raw.xdel(chain.keys.events, "4-0")
        assert [event.event_id for event in await stream.pick([1, 4, 5, 9])] == [1, 5, 9]
        assert [event.event_id for event in await stream.pick([1, 4, 9])] == [1, 9]
        chain.forget_everything()
        await stream.close()

    asyncio.run(test())
    chain.raw.close()


@pytest.mark.parametrize("step", [1, 3], ids=["all", "every third"])
def test_a_page_ends_where_its_bytes_do_whatever_came_before(
    redis_url: str, chain: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small events first, so that the next page would hold many: of large ones, it must not."""
    monkeypatch.setattr(query, "PICK_PAGE", 500)  # the other tests of this module make it small
    on = Chain(real_store(redis_url), chain, "checked")
    sizes = [10] * 100 + [100_000] * 30 + [300_000] * 3 + [10] * 30
    ids = range(1, len(sizes) + 1, step)

    async def test() -> None:
        async with on.stream(Stream) as stream, Appender(stream) as appender:
            await appender.append([drafted("x" * size) for size in sizes])
            pages = [[(e.event_id, len(e.payload)) for e in page] async for page in query.fetch(stream, ids)]
        assert [event_id for page in pages for event_id, _ in page] == list(ids)
        assert all(len(page) == 1 or sum(size for _, size in page) <= query.PAGE_BYTES for page in pages)
        assert max(map(len, pages)) > 16

    asyncio.run(test())
    on.raw.close()


def test_an_empty_chain_answers_every_question_with_nothing(redis_url: str, chain: str) -> None:
    async def ask() -> None:
        stream = Stream.at(redis_url, chain)
        try:
            for wanted in (Filter(), Filter(after=0), Filter(kind="other"), Filter(since=EPOCH), Filter(before=5)):
                assert (list((await query.select(stream, wanted)).event_ids), False) == ([], False)
        finally:
            await stream.close()

    asyncio.run(ask())
