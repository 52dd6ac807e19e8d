"""Verifying in the background: what it finds, what it says, and whose turn it is."""

import asyncio
import json
import logging
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from time import time
from typing import Any

import pytest
import redis

from audit_stream import watch
from audit_stream.appender import Appender
from audit_stream.errors import Unreachable
from audit_stream.event import PublishRequest, draft
from audit_stream.kinds import BUILT_IN
from audit_stream.stream import Stream
from audit_stream.tally import Tally
from audit_stream.verdicts import LastVerdict, Verdicts
from audit_stream.verifier import Verifier
from audit_stream.watch import Watch
from tests.harness import ServerProcess, clean_environ, serve_command, url_in

DAY = timedelta(days=1)
ANOTHER = "event #6 is not the one that was verified"


class Replica:
    """What of a replica has to do with verifying."""

    def __init__(self, stream: Stream, tally: Tally, *, every: timedelta = DAY, whole_every: timedelta = DAY) -> None:
        self.stream, self.tally = stream, tally
        self.verdicts = Verdicts(tally)
        self.watch = Watch(stream, self.verdicts, token=tally.board.token, every=every, whole_every=whole_every)

    @property
    def last(self) -> LastVerdict:
        last = self.verdicts.last
        assert last
        return last

    async def append(self, count: int) -> None:
        requests = [PublishRequest("other", "watch", payload={"n": number}) for number in range(count)]
        async with Appender(self.stream) as appender:
            await appender.append([draft(request, frozenset(BUILT_IN)) for request in requests])

    async def verify(self) -> LastVerdict:
        await self.watch.verify_once()
        return self.last


Run = Callable[[Callable[[Replica], Awaitable[None]]], None]


@asynccontextmanager
async def a_replica(redis_url: str, chain: str, **options: Any) -> AsyncIterator[Replica]:
    tally = Tally()
    stream = Stream.at(redis_url, chain, tally)
    try:
        yield Replica(stream, tally, **options)
    finally:
        await stream.close()


@pytest.fixture
def on_a_chain(redis_url: str, chain: str) -> Run:
    def run(scenario: Callable[[Replica], Awaitable[None]]) -> None:
        async def opened() -> None:
            async with a_replica(redis_url, chain) as replica:
                await replica.append(6)
                await scenario(replica)

        asyncio.run(opened())

    return run


@pytest.fixture
def raw(redis_url: str) -> Any:
    return redis.Redis.from_url(redis_url)


def rewrite(raw: Any, chain: str, event_id: int, changed: dict[bytes, Any]) -> None:
    """Change an event in its place, as whoever may write to Redis can: by writing the stream anew."""
    key = f"{{{chain}}}:events"
    entries = raw.xrange(key)
    raw.delete(key)
    for entry_id, fields in entries:
        raw.xadd(key, fields | changed if entry_id == b"%d-0" % event_id else fields, id=entry_id)


def test_only_what_is_new_is_walked_after_the_whole_chain_was(on_a_chain: Run) -> None:
    async def scenario(replica: Replica) -> None:
        first = await replica.verify()
        assert (first.valid, first.checked, first.head[0], first.whole_at) == (True, 6, 6, first.at)
        await replica.append(3)
        second = await replica.verify()
        assert (second.valid, second.checked, second.head[0]) == (True, 3, 9)
        assert second.whole_at == first.at < second.at
        third = await replica.verify()
        assert (third.valid, third.checked, third.head) == (True, 0, second.head)

    on_a_chain(scenario)


@pytest.mark.parametrize(
    ("tampering", "at", "reason"),
    [
        (lambda raw, chain: rewrite(raw, chain, 8, {b"source": "x"}), 8, "hash mismatch at event #8"),
        (lambda raw, chain: rewrite(raw, chain, 6, {b"source": "x"}), 6, "hash mismatch at event #6"),
        (
            lambda raw, chain: rewrite(raw, chain, 6, {b"hash": "0" * 64}),
            6,
            "event #6 is not the one that was verified",
        ),
        (lambda raw, chain: raw.xdel(f"{{{chain}}}:events", "6-0"), 6, "event #6 is not the one that was verified"),
        (lambda raw, chain: raw.delete(f"{{{chain}}}:events"), 1, "chain ends at event #0, but #6 was verified"),
        (lambda raw, chain: raw.xdel(f"{{{chain}}}:events", "8-0"), 8, "chain ends at event #7, but #8 was written"),
    ],
)
def test_tampering_at_or_behind_the_last_verdict_is_found_by_the_next(
    on_a_chain: Run,
    raw: Any,
    chain: str,
    caplog: pytest.LogCaptureFixture,
    tampering: Callable[[Any, str], None],
    at: int,
    reason: str,
) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.verify()
        await replica.append(2)
        tampering(raw, chain)
        found = await replica.verify()
        assert (found.valid, found.first_break_at, found.reason) == (False, at, reason)
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert [record.getMessage() for record in errors] == [f"the chain is broken at event #{at}: {reason}"]
        await replica.verify()
        again = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len({record.getMessage() for record in again}) == len(again)  # each evidence is logged once

    on_a_chain(scenario)


def test_a_break_stays_one_until_a_walk_over_the_whole_chain_holds(on_a_chain: Run, raw: Any, chain: str) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.verify()
        before = raw.xrange(f"{{{chain}}}:events", 2, 2)[0][1]
        rewrite(raw, chain, 2, {b"source": "x"})
        # Behind the last verdict, and so only the daily walk over all of it sees it.
        assert (await replica.verify()).valid is True
        await Verifier(replica.stream, replica.verdicts.asked_for).verify()
        assert (replica.last.valid, replica.last.first_break_at) == (False, 2)
        # A part that holds does not mend it, nor does an attempt that cannot tell.
        await Verifier(replica.stream, replica.verdicts.asked_for).verify(4)
        assert replica.last.valid is False
        replica.verdicts.cannot_tell(Unreachable("Redis is away"))
        assert replica.last.valid is False
        assert (await replica.verify()).first_break_at == 2
        rewrite(raw, chain, 2, before)
        mended = await replica.verify()
        assert (mended.valid, mended.first_break_at, mended.checked) == (True, None, 6)

    on_a_chain(scenario)


def test_the_whole_chain_is_walked_again_when_that_is_due(redis_url: str, chain: str, raw: Any) -> None:
    async def scenario() -> None:
        async with a_replica(redis_url, chain, whole_every=timedelta(0)) as replica:
            await replica.append(6)
            await replica.verify()
            rewrite(raw, chain, 2, {b"source": "x"})
            assert (await replica.verify()).first_break_at == 2

    asyncio.run(scenario())


def test_an_attempt_that_cannot_tell_is_neither_intact_nor_broken_and_the_next_goes_on(
    on_a_chain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(replica: Replica) -> None:
        sure = await replica.verify()

        async def away(*_: Any, **__: Any) -> None:
            raise Unreachable("Redis is away")

        with monkeypatch.context() as patch:
            patch.setattr(replica.stream, "end", away)
            unsure = await replica.verify()
        assert (unsure.valid, unsure.head, unsure.at) == (None, sure.head, sure.at)
        assert replica.tally.board.total("verified unknown") == 1
        await replica.append(1)
        assert ((await replica.verify()).valid, replica.last.checked) == (True, 1)

    on_a_chain(scenario)


def test_a_part_that_was_asked_for_and_holds_says_nothing_of_the_chain(on_a_chain: Run) -> None:
    async def scenario(replica: Replica) -> None:
        await Verifier(replica.stream, replica.verdicts.asked_for).verify(3, 5)
        assert replica.verdicts.last is None

    on_a_chain(scenario)


def test_one_replica_verifies_at_a_time_and_another_takes_over_when_it_stops(
    redis_url: str, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LEASE_S", 0.3)
    monkeypatch.setattr(watch, "FIRST_WALK_AFTER_S", 0.0)

    async def until(holds: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - it is Redis' clock that we wait for
                await asyncio.sleep(0.01)

    async def scenario() -> None:
        async with a_replica(redis_url, chain) as one, a_replica(redis_url, chain) as other:
            await one.append(4)
            async with one.watch:
                await until(lambda: one.verdicts.last)
                async with other.watch:
                    assert not await other.stream.lease.take(other.tally.board.token, 300)
                    assert other.verdicts.last is None
                    await one.watch.__aexit__()
                    await until(lambda: other.verdicts.last)
                    assert other.last.checked == 4

    asyncio.run(scenario())


def test_a_replica_that_lost_the_lease_no_longer_speaks_for_the_chain(
    redis_url: str, chain: str, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LEASE_S", 0.3)
    monkeypatch.setattr(watch, "FIRST_WALK_AFTER_S", 0.0)

    async def scenario() -> None:
        async with a_replica(redis_url, chain, every=timedelta(milliseconds=50)) as replica:
            await replica.append(1)
            async with replica.watch, asyncio.timeout(20):
                while replica.verdicts.last is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                raw.set(replica.stream.keys.verifier, b"someone else")
                while replica.verdicts.last:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert raw.get(replica.stream.keys.verifier) == b"someone else"

    asyncio.run(scenario())


def test_a_replica_walks_the_whole_chain_itself_when_another_calls_its_break_mended(
    redis_url: str, chain: str, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LEASE_S", 0.3)

    async def scenario() -> None:
        async with a_replica(redis_url, chain) as replica:
            await replica.append(6)
            before = raw.xrange(f"{{{chain}}}:events", 2, 2)[0][1]
            rewrite(raw, chain, 2, {b"source": "x"})
            broken = await replica.verify()
            raw.set(replica.stream.keys.verifier, b"someone else")
            # No walk of this server has found it whole, whatever is kept in Redis: it looks, and finds it broken still.
            replica.verdicts.hear(LastVerdict(valid=True, head=(6, "a" * 64), at=broken.at + 1, whole_at=broken.at + 1))
            assert replica.last == broken
            async with replica.watch, asyncio.timeout(20):
                while replica.last == broken:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert (replica.last.valid, replica.last.first_break_at) == (False, 2)
                rewrite(raw, chain, 2, before)
                now = time() + 1
                replica.verdicts.hear(LastVerdict(valid=True, head=(6, "a" * 64), at=now, whole_at=now))
                while replica.last.valid is False:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_server_tells_of_a_break_in_its_log_its_metrics_and_its_stats(redis_url: str, chain: str, raw: Any) -> None:
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, "AUDIT_STREAM_VERIFY_EVERY": "1s"}
    process = subprocess.Popen(
        serve_command(), env=clean_environ(**settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stderr
        url = url_in(process.stdout.readline())
        with ServerProcess(process, url, "").client as client:
            for number in range(3):
                client.post("/events", json={"kind": "other", "source": "s", "payload": {"n": number}})
            assert client.get("/verify").json()["checked"] == 3
            assert "audit_stream_chain_valid 1.0" in client.get("/metrics").text
            rewrite(raw, chain, 3, {b"hash": "0" * 64})
            error = next(json.loads(line) for line in process.stderr if '"audit_stream.verdicts"' in line)
            assert "audit_stream_chain_valid 0.0" in client.get("/metrics").text
            last = client.get("/stats").json()["last_verdict"]
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert (last["valid"], last["first_break_at"]) == (False, 3)
    assert (error["level"], error["logger"]) == ("error", "audit_stream.verdicts")
    assert error["event_id"] == 3
    assert "event #3" in error["reason"]
