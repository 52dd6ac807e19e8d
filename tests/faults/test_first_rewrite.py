"""The append-only file was switched on a moment ago: until its first rewrite is done, Redis keeps nothing."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit_stream.appender import Appender
from audit_stream.errors import Unreachable
from audit_stream.event import Draft, PublishRequest, draft
from audit_stream.kinds import BUILT_IN
from audit_stream.settings import Ack
from audit_stream.stream import Stream
from tests.faults.campaign.valkey import Valkey
from tests.faults.processes import children, needs_linux
from tests.harness import running_server

EVENT = {"kind": "other", "source": "s"}
KEYS = 200
KEY_SAVE_DELAY_US = 50_000
"""With so many keys, a rewrite takes ten seconds, unless it is ended."""

pytestmark = needs_linux


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def rewriting(tmp_path: Path) -> Iterator[Valkey]:
    """It says `appendonly yes`, and would lose everything that is written now."""
    with Valkey(tmp_path / "own") as valkey:
        rewrite_slowly(valkey)
        switch_on_again(valkey)
        yield valkey


def rewrite_slowly(valkey: Valkey) -> None:
    valkey.client.mset({f"key-{n}": os.urandom(20) for n in range(KEYS)})
    valkey.client.config_set("rdb-key-save-delay", KEY_SAVE_DELAY_US)


def rewrite_at_once(valkey: Valkey) -> None:
    """End the rewrite that is under way, and wait until another one is done."""
    valkey.client.config_set("rdb-key-save-delay", 0)
    valkey.until(lambda: len(children(valkey.process.pid)) == 1)
    os.kill(children(valkey.process.pid)[0], signal.SIGKILL)
    valkey.until(lambda: not is_rewriting(valkey) and valkey.client.info("persistence")["aof_rewrites"] > 1)


def switch_on_again(valkey: Valkey) -> None:
    valkey.client.config_set("appendonly", "no")
    valkey.client.config_set("appendonly", "yes")


def is_rewriting(valkey: Valkey) -> bool:
    return bool(valkey.client.info("persistence")["aof_rewrite_in_progress"])


def test_no_append_is_taken_until_redis_keeps_it_and_then_it_survives_a_crash(rewriting: Valkey, chain: str) -> None:
    with running_server(AUDIT_STREAM_REDIS_URL=rewriting.url, AUDIT_STREAM_CHAIN=chain) as server:
        refused = server.post(EVENT)
        assert is_rewriting(rewriting)
        assert refused.status_code == 503, refused.text
        for answer in (refused, server.get("/readyz")):
            assert answer.status_code == 503
            assert "appendonly is yes but not in effect yet" in answer.text
        rewrite_at_once(rewriting)
        rewriting.until(lambda: server.post(EVENT).status_code == 201)
        rewriting.kill()
        rewriting.start()
        assert rewriting.client.xlen(f"{{{chain}}}:events") == 1


def test_a_rewrite_of_a_file_that_is_in_effect_holds_up_no_append(rewriting: Valkey, chain: str) -> None:
    rewrite_at_once(rewriting)
    rewrite_slowly(rewriting)
    rewriting.client.bgrewriteaof()
    with running_server(AUDIT_STREAM_REDIS_URL=rewriting.url, AUDIT_STREAM_CHAIN=chain) as server:
        assert server.post(EVENT).status_code == 201
        assert server.get("/readyz").status_code == 200
        assert is_rewriting(rewriting)


@pytest.mark.anyio
async def test_a_replica_that_has_it_is_no_substitute_for_the_primarys_disk(tmp_path: Path, chain: str) -> None:
    with (
        Valkey(tmp_path / "primary") as primary,
        Valkey(tmp_path / "replica", replica_of=primary),
    ):
        rewrite_slowly(primary)
        stream = Stream.at(primary.url, chain)
        try:
            async with Appender(stream, ack=Ack(fsync=True, replicas=1)) as appender:
                await appender.append([an_event()])
                switch_on_again(primary)
                with pytest.raises(Unreachable, match="has not synced it to its own disk"):
                    await appender.append([an_event()])
                assert is_rewriting(primary)
        finally:
            await stream.close()


def an_event() -> Draft:
    return draft(PublishRequest(kind="other", source="s"), frozenset(BUILT_IN))
