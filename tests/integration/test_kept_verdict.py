"""The last verdict in Redis: seen by every replica, and still there after a restart of all of them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from audit_stream.embedded import EmbeddedValkey
from audit_stream.stream import Stream
from audit_stream.tally import Tally
from audit_stream.verdict_store import VerdictStore
from audit_stream.verdicts import Verdicts, parse_verdict
from audit_stream.verifier import Verifier
from tests.harness import ServerProcess, running_server
from tests.tamper.stored import Stored, put

SILENT = {"AUDIT_STREAM_VERIFY_EVERY": "off"}


@pytest.fixture
def stored(redis_url: str, chain: str) -> Iterator[Stored]:
    opened = Stored(redis_url, chain)
    yield opened
    opened.close()


def restarted(redis_url: str, chain: str) -> Any:
    return running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, **SILENT)


def test_a_known_break_outlives_a_restart_of_all_servers_until_a_whole_walk_holds(
    server: ServerProcess, stored: Stored, redis_url: str, chain: str
) -> None:
    server.post_batch([{"kind": "other", "source": "s", "payload": {"n": n}} for n in range(5)]).raise_for_status()
    assert server.get("/readyz").json()["chain"] == {
        "verdict": "never verified",
        "summary": "never verified",
        "event_id": None,
        "first_break_at": None,
        "at": None,
    }
    stored.change(lambda entries: put(entries[2], b"payload", b'{"n":99}'))
    found = server.verify()
    assert found["first_break_at"] == 3
    before = server.get("/stats").json()["last_verdict"]
    server.stop()
    with restarted(redis_url, chain) as next_one:
        assert next_one.get("/stats").json()["last_verdict"] == before
        ready = next_one.get("/readyz")
        assert ready.status_code == 200  # appends go on after a break
        told = ready.json()["chain"]
        assert told.pop("summary").startswith("BROKEN at #3, found ")
        assert told == {"verdict": "broken", "event_id": 2, "first_break_at": 3, "at": before["at"]}
        metrics = next_one.get("/metrics").text
        assert "audit_stream_chain_valid 0.0" in metrics
        # Nothing that is kept in Redis makes it look as if this server had walked.
        assert "\naudit_stream_verify_timestamp_seconds " not in metrics
        assert next_one.client.get("/verify", params={"to": 2}).json()["valid"]
        assert next_one.get("/readyz").json()["chain"]["verdict"] == "broken"
        stored.change(lambda entries: put(entries[2], b"payload", b'{"n":2}'))
        assert next_one.verify()["valid"]
        assert next_one.get("/readyz").json()["chain"]["verdict"] == "intact"
    with restarted(redis_url, chain) as last_one:
        shown = last_one.get("/readyz").json()["chain"]
        assert (shown["verdict"], shown["event_id"]) == ("intact", 5)
        assert "audit_stream_chain_valid 1.0" in last_one.get("/metrics").text


def test_readiness_names_the_verdict_when_it_is_refused_too(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey, running_server(AUDIT_STREAM_REDIS_URL=valkey.url, **SILENT) as server:
        server.verify()
        with redis.Redis.from_url(valkey.url) as client:
            client.config_set("appendfsync", "everysec")
        short = server.get("/readyz")
        assert (short.status_code, short.json()["chain"]["verdict"]) == (503, "intact")
        assert short.json()["reasons"]
        valkey.stop()
        away = server.get("/readyz")
        assert (away.status_code, away.json()["chain"]["verdict"]) == (503, "intact")
        assert int(away.headers["retry-after"]) > 0


# --- one replica's part in it


class Replica:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.verdicts = Verdicts(Tally())
        self.store = VerdictStore(stream, self.verdicts)

    async def verify(self) -> None:
        await Verifier(self.stream, self.verdicts.asked_for).verify(deep=True)


@asynccontextmanager
async def replicas(redis_url: str, chain: str, count: int) -> AsyncIterator[list[Replica]]:
    opened = [Replica(Stream.at(redis_url, chain)) for _ in range(count)]
    try:
        yield opened
    finally:
        for replica in opened:
            await replica.stream.close()


def run(redis_url: str, chain: str, count: int, scenario: Callable[..., Awaitable[None]]) -> None:
    async def opened() -> None:
        async with replicas(redis_url, chain, count) as made:
            await scenario(*made)

    asyncio.run(opened())


def test_a_replica_that_never_verifies_shows_what_another_found(redis_url: str, chain: str, stored: Stored) -> None:
    async def scenario(one: Replica, other: Replica) -> None:
        stored.client.xadd(stored.events, {"surprise": 1}, id="1-0")
        await one.verify()
        async with one.store:
            await other.store.agree()
            assert other.verdicts.last == one.verdicts.last
            assert other.verdicts.own is None
            stored.client.delete(stored.events)
            await one.verify()
            assert one.verdicts.last
            assert one.verdicts.last.valid
        await other.store.agree()
        assert other.verdicts.last == one.verdicts.last

    run(redis_url, chain, 2, scenario)


@pytest.mark.parametrize("make", ["text", "list", "huge"])
def test_what_is_no_verdict_is_ignored_with_one_warning_and_overwritten(
    redis_url: str, chain: str, stored: Stored, caplog: pytest.LogCaptureFixture, make: str
) -> None:
    key = stored.key("verdict")
    if make == "list":
        stored.client.rpush(key, "x")
    else:
        stored.client.set(key, b"x" if make == "text" else b'{"valid":true,"at":1}' + b" " * 1_000_000)

    async def scenario(replica: Replica) -> None:
        for _ in range(3):
            await replica.store.agree()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert key.decode() in caplog.text
        assert replica.verdicts.last is None
        await replica.verify()
        await replica.store.agree()
        assert parse_verdict(await replica.stream.kept_verdict.text()) == replica.verdicts.own

    run(redis_url, chain, 1, scenario)


def test_a_redis_that_refuses_the_write_is_logged_once_and_gets_the_verdict_when_it_takes_it(
    tmp_path: Path, chain: str, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedValkey(tmp_path) as valkey, redis.Redis.from_url(valkey.url) as client:

        async def scenario(replica: Replica) -> None:
            client.config_set("maxmemory", 1)
            async with replica.store:
                await replica.verify()
                for _ in range(3):
                    await replica.store.agree()
                assert replica.verdicts.last
                assert [record.getMessage()[:40] for record in caplog.records if record.levelno >= logging.WARNING] == [
                    "the last verdict cannot be kept in Redis"
                ]
                client.config_set("maxmemory", 0)
                await replica.store.agree()
            assert parse_verdict(await replica.stream.kept_verdict.text()) == replica.verdicts.own

        run(valkey.url, chain, 1, scenario)


def test_neither_a_deep_verify_nor_reindex_takes_it_for_an_index(redis_url: str, chain: str) -> None:
    async def scenario(replica: Replica) -> None:
        async with replica.store:
            await replica.verify()
        assert await replica.stream.kept_verdict.text()
        assert await replica.stream.indexes.find_keys() == []
        await replica.verify()
        assert replica.verdicts.last
        assert replica.verdicts.last.valid

    run(redis_url, chain, 1, scenario)
