import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import redis as redis_py

from audit_stream import reindex as reindexing
from audit_stream.chain import Event
from audit_stream.connection import connect
from audit_stream.errors import ChainBroken, Pushback
from audit_stream.rebuilding import Rebuilding, Swap
from audit_stream.reindex import CommitTimes, Rebuilt, reindex
from audit_stream.stream import Stream
from tests.harness import ServerProcess


class Interrupted(Rebuilding):
    """Has the chain appended to before and in the middle of each swap, `times` times over."""

    append: Callable[..., Any]
    times = 3

    async def swap(
        self,
        after: int,
        times_after: bytes | None,
        count: int,
        finish: Callable[[list[Event], list[tuple[bytes, int]]], Swap | None],
    ) -> bool:
        if not self.times:
            return await super().swap(after, times_after, count, finish)
        self.times -= 1
        self.append()

        def interrupted(events: list[Event], times: list[tuple[bytes, int]]) -> Swap | None:
            self.append()
            return finish(events, times)

        return await super().swap(after, times_after, count, interrupted)


def rebuild(redis_url: str, chain: str, append: Callable[[], Any] | None = None, times: int = 0) -> Rebuilt:
    async def run() -> Rebuilt:
        clients = connect(redis_url, chain)
        stream = Stream(clients, chain)
        stream.rebuilding = interrupted = Interrupted(clients.write, stream.keys)
        interrupted.times = times
        if append:
            interrupted.append = append
        try:
            return await reindex(stream)
        finally:
            await stream.close()

    return asyncio.run(run())


class Indexes:
    """The keys of one chain, as someone with redis-cli sees them."""

    def __init__(self, redis_url: str, chain: str) -> None:
        self.redis = redis_py.Redis.from_url(redis_url)
        self.prefix = f"{{{chain}}}:"

    def key(self, name: str) -> str:
        return self.prefix + name

    def ids(self, name: str) -> list[bytes]:
        entries: Any = self.redis.xrange(self.key(name))
        return [entry_id for entry_id, _ in entries]

    def all(self) -> dict[bytes, Any]:
        """The chain and its indexes; what servers note of their verifying are not streams."""
        keys: Any = self.redis.scan_iter(f"{self.prefix}*", count=10_000, _type="stream")
        return {key: (self.redis.ttl(key), self.redis.xrange(key)) for key in keys}


def fill(server: ServerProcess, count: int = 12) -> None:
    for n in range(1, count + 1):
        kind, source = ("other", "flag_swapped")[n % 2], f"s{n % 3}"
        server.post({"kind": kind, "source": source, "payload": {"n": n}}).raise_for_status()


def append_one(server: ServerProcess) -> httpx.Response:
    event = {"kind": "watch_created", "source": "late"}
    # Not the server's own client: this runs inside an event loop that it does not belong to.
    return httpx.post(f"{server.url}/events", json=event).raise_for_status()


def test_indexes_that_agree_are_rebuilt_as_they_were(server: ServerProcess, redis_url: str, chain: str) -> None:
    fill(server)
    indexes = Indexes(redis_url, chain)
    before = indexes.all()
    assert rebuild(redis_url, chain) == Rebuilt(events=12, indexes=6, estimated=0)
    assert indexes.all() == before


def test_what_is_appended_in_the_middle_of_a_swap_is_in_the_indexes(
    server: ServerProcess, redis_url: str, chain: str
) -> None:
    fill(server)
    rebuilt = rebuild(redis_url, chain, lambda: append_one(server), times=3)
    assert rebuilt == Rebuilt(events=18, indexes=8, estimated=0)
    assert server.verify()["indexes"] == "agree"
    assert Indexes(redis_url, chain).ids("source:late") == [b"%d-0" % n for n in range(13, 19)]


def test_a_chain_that_never_rests_keeps_its_old_indexes(
    server: ServerProcess, redis_url: str, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(server)
    indexes = Indexes(redis_url, chain)
    indexes.redis.delete(indexes.key("kind:other"))
    monkeypatch.setattr(reindexing, "ATTEMPTS", 3)
    with pytest.raises(Pushback, match="nothing was changed"):
        rebuild(redis_url, chain, lambda: append_one(server), times=99)
    assert not indexes.redis.exists(indexes.key("kind:other"))
    assert indexes.redis.keys(indexes.key("rebuilt:*")) == []


def test_damaged_indexes_are_replaced_and_those_of_nothing_dropped(
    server: ServerProcess, redis_url: str, chain: str
) -> None:
    fill(server)
    indexes = Indexes(redis_url, chain)
    before = indexes.all()
    indexes.redis.xdel(indexes.key("kind:other"), "4-0")
    indexes.redis.xadd(indexes.key("source:s1"), {b"": b""}, id="99-0")
    indexes.redis.delete(indexes.key("source:s2"))
    indexes.redis.set(indexes.key("kind:flag_swapped"), "not a stream")
    indexes.redis.xadd(indexes.key("source:nobody"), {b"": b""}, id="3-0")
    rebuild(redis_url, chain)
    assert indexes.all() == before


def test_commit_times_that_are_there_are_kept_and_lost_ones_lie_between_them(
    server: ServerProcess, redis_url: str, chain: str
) -> None:
    fill(server)
    indexes = Indexes(redis_url, chain)
    before = indexes.ids("time")
    indexes.redis.xdel(indexes.key("time"), *(before[place] for place in (0, 4, 5, 11)))
    assert rebuild(redis_url, chain).estimated == 4
    after = indexes.ids("time")
    kept = [place for place in range(12) if place not in (0, 4, 5, 11)]
    assert [after[place] for place in kept] == [before[place] for place in kept]
    times = [int(entry_id.partition(b"-")[0]) for entry_id in after]
    assert times == sorted(times)
    assert server.verify()["indexes"] == "agree"


@pytest.mark.parametrize("how", ["deleted", "another type", "entries ahead of time"])
def test_a_time_index_that_says_nothing_is_built_from_the_timestamps(
    server: ServerProcess, redis_url: str, chain: str, how: str
) -> None:
    fill(server)
    indexes = Indexes(redis_url, chain)
    before = indexes.ids("time")
    if how == "entries ahead of time":
        indexes.redis.xadd(indexes.key("time"), {b"": b""}, id="99999999999999-5")
        server.post({"kind": "other", "source": "s1"}).raise_for_status()
    else:
        indexes.redis.delete(indexes.key("time"))
        if how == "another type":
            indexes.redis.set(indexes.key("time"), "not a stream")
    rebuild(redis_url, chain)
    after = indexes.ids("time")
    assert server.verify()["indexes"] == "agree"
    for old, new in zip(before, after, strict=False):
        # The replica's clock gave the timestamp a moment before the commit.
        assert abs(int(old.partition(b"-")[0]) - int(new.partition(b"-")[0])) < 60_000
    assert int(after[-1].partition(b"-")[0]) < 99999999999999
    # And appending goes on behind it.
    server.post({"kind": "other", "source": "s1"}).raise_for_status()
    assert server.verify()["indexes"] == "agree"


def test_the_events_are_not_touched_even_when_one_is_not_ours(
    server: ServerProcess, redis_url: str, chain: str
) -> None:
    fill(server)
    indexes = Indexes(redis_url, chain)
    indexes.redis.xadd(indexes.key("events"), {b"foreign": b"entry"}, id="13-0")
    before = indexes.all()
    with pytest.raises(ChainBroken, match="13-0"):
        rebuild(redis_url, chain)
    assert indexes.all() == before


def test_an_empty_chain_has_no_indexes(redis_url: str, chain: str) -> None:
    indexes = Indexes(redis_url, chain)
    indexes.redis.xadd(indexes.key("kind:other"), {b"": b""}, id="3-0")
    assert rebuild(redis_url, chain) == Rebuilt(events=0, indexes=0, estimated=0)
    assert indexes.all() == {}


# --- commit times

NOW = 1_800_000_000_000


def event(event_id: int, ms: int | str) -> Event:
    stamp = ms if isinstance(ms, str) else datetime.fromtimestamp(ms / 1000, UTC).isoformat()
    return Event(event_id, stamp.encode(), b"other", b"s", b"{}", b"", b"")


def times_of(known: list[tuple[int, int]], events: list[Event]) -> list[int]:
    times = CommitTimes(NOW)
    times.learn([(b"%d-%d" % entry, entry[1]) for entry in known])
    return [times.of(each) for each in events]


def test_a_lost_commit_time_is_the_timestamp_where_that_lies_between_its_neighbours() -> None:
    known = [(NOW - 900, 1), (NOW - 500, 4)]
    events = [event(1, 0), event(2, NOW - 700), event(3, NOW - 100), event(4, 0), event(5, NOW + 10**7)]
    assert times_of(known, events) == [NOW - 900, NOW - 700, NOW - 700, NOW - 500, NOW - 500]


def test_a_first_event_without_a_usable_timestamp_takes_the_time_of_the_next() -> None:
    assert times_of([(NOW - 500, 2)], [event(1, NOW), event(2, 0)]) == [NOW - 500, NOW - 500]


def test_commit_times_never_run_back() -> None:
    known = [(NOW - 900, 1), (NOW - 800, 9), (NOW - 700, 2), (NOW - 600, 3), (NOW + 10**7, 4)]
    events = [event(n, "1970-01-01T00:00:00Z") for n in range(1, 6)]
    assert times_of(known, events) == [NOW - 900, NOW - 700, NOW - 600, NOW - 600, NOW - 600]


def test_what_a_killed_reindex_leaves_is_forgotten_by_redis(
    server: ServerProcess, redis_url: str, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(server)

    class Killed(Exception):
        """Ends it where SIGKILL would: what cleans up behind it does not run either."""

    async def nothing(_: Any) -> None:
        pass

    def killed(done: int, expected: int) -> None:
        raise Killed

    async def run() -> None:
        stream = Stream.at(redis_url, chain)
        try:
            await reindex(stream, killed)
        finally:
            await stream.close()

    monkeypatch.setattr(reindexing._Rebuild, "forget", nothing)
    with pytest.raises(Killed):
        asyncio.run(run())
    left = {key: ttl for key, (ttl, _) in Indexes(redis_url, chain).all().items() if b":rebuilt:" in key}
    assert len(left) == 6
    assert all(0 < ttl <= reindexing.KEPT_S for ttl in left.values()), left
    assert server.verify()["indexes"] == "agree"


def test_new_indexes_and_their_time_to_live_are_written_in_one_step(redis_url: str, chain: str) -> None:
    # So a process that is killed while it sends them leaves none without.
    sent: list[bool] = []

    async def run() -> None:
        stream = Stream.at(redis_url, chain)
        plain = stream._clients.write.pipeline

        def pipeline(transaction: bool = True) -> Any:
            sent.append(transaction)
            return plain(transaction=transaction)

        stream._clients.write.pipeline = pipeline  # type: ignore[method-assign, assignment]
        try:
            await stream.rebuilding.fill([(stream.keys.rebuilt(b"t", stream.keys.time), b"1-1")], kept_s=60)
        finally:
            await stream.close()

    asyncio.run(run())
    assert sent == [True]
