"""AUDIT_STREAM_PIN: what a server sees of an older backup, a cut end and a rewritten chain that Redis cannot show."""

import asyncio
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from audit_stream.appender import Appender
from audit_stream.chain import Event, Head
from audit_stream.embedded import EmbeddedValkey
from audit_stream.keeper import contradiction
from audit_stream.pin import Pin, Pinned
from audit_stream.stream import Stream
from audit_stream.tally import Tally
from audit_stream.verdicts import Verdicts
from audit_stream.verifier import Verifier
from tests.conformance.stores import drafts
from tests.e2e.test_evidence import rewrite
from tests.harness import ServerProcess, running_server
from tests.integration.test_lifecycle import start_that_is_refused
from tests.tamper.stored import Stored, put

PIN = "AUDIT_STREAM_PIN"


def body(number: int) -> dict[str, Any]:
    return {"kind": "other", "source": "s", "payload": {"n": number}}


def pin_of(event: Event | dict[str, Any]) -> Pin:
    if isinstance(event, Event):
        return Pin(event.event_id, event.hash.decode())
    return Pin(event["event_id"], event["hash"])


async def write(redis_url: str, chain: str, count: int) -> list[Event]:
    """Append so many events past every server, as another host would that keeps no pin."""
    stream = Stream.at(redis_url, chain)
    try:
        async with Appender(stream) as appender:
            return [receipt.event for receipt in await appender.append(drafts(count))]
    finally:
        await stream.close()


def written(redis_url: str, chain: str, count: int) -> list[Event]:
    return asyncio.run(write(redis_url, chain, count))


def pinned(path: Path) -> Pin:
    pin = Pinned.parse(path.read_text()).pin
    assert pin
    return pin


def append(server: ServerProcess, count: int) -> list[dict[str, Any]]:
    """Append so many events and return their receipts."""
    receipts: list[dict[str, Any]] = server.post_batch([body(n) for n in range(count)]).raise_for_status().json()
    return receipts


@contextmanager
def nobody_moves(path: Path) -> Iterator[None]:
    """Hold what whoever moves the pin has to wait for."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def put_in_place(valkey: EmbeddedValkey, backup: Path) -> None:
    """Restart the Redis on older data."""
    valkey.stop()
    shutil.rmtree(valkey.data_dir)
    shutil.copytree(backup, valkey.data_dir)
    valkey.start()


def test_the_pin_is_the_newest_promise_of_several_workers(redis_url: str, chain: str, tmp_path: Path) -> None:
    path = tmp_path / "pin"
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, PIN: str(path)}
    with running_server("--workers", "2", **settings) as server:
        receipts = [append(server, 1)[0] for _ in range(20)]
    assert pinned(path) == pin_of(receipts[-1])
    assert list(tmp_path.iterdir()) == [path]


def test_a_chain_that_was_verified_whole_is_pinned(redis_url: str, chain: str, tmp_path: Path) -> None:
    path = tmp_path / "pin"
    events = written(redis_url, chain, 3)
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, PIN: str(path)}
    with running_server(**settings) as server:
        assert server.get("/stats").json()["pin"] == {"event_id": None, "hash": None, "trouble": ""}
        assert server.verify()["valid"]
    assert pinned(path) == pin_of(events[-1])


def test_a_server_killed_between_an_append_and_its_pin_starts_again(redis_url: str, chain: str, tmp_path: Path) -> None:
    path = tmp_path / "pin"
    older = written(redis_url, chain, 2)[-1]
    path.write_text(f"{pin_of(older)}\n")
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, PIN: str(path)}
    with running_server(**settings) as server:
        assert server.get("/stats").json()["pin"] == {**pin_of(older)._asdict(), "trouble": ""}
        with nobody_moves(path):
            newer = append(server, 3)[-1]
            server.stop(signal.SIGKILL)
        assert pinned(path) == pin_of(older)
    with running_server(**settings) as server:
        assert server.get("/readyz").status_code == 200
        assert append(server, 1)[0]["prev_hash"] == newer["hash"]
    assert pinned(path).event_id == 6


def test_an_older_backup_is_refused_while_running_and_at_the_next_start(tmp_path: Path) -> None:
    path, backup = tmp_path / "pin", tmp_path / "backup"
    with EmbeddedValkey(tmp_path / "data") as valkey:
        settings = {"AUDIT_STREAM_REDIS_URL": valkey.url, PIN: str(path)}
        second = pin_of(written(valkey.url, "audit", 2)[-1]).hash
        # The socket is no file to copy, and the locks are of the folder that is in use.
        shutil.copytree(valkey.data_dir, backup, ignore=shutil.ignore_patterns("*.sock", "*lock"))
        with running_server(**settings) as server:
            newest = append(server, 2)[-1]
            put_in_place(valkey, backup)
            refused = server.post(body(9))
            assert refused.status_code == 409, refused.text
            assert "chain ends at event #2, but #4 was written" in refused.json()["detail"]
            written(valkey.url, "audit", 3)  # and now the chain is longer than the pinned one ever was
            refused = server.post(body(9))
            assert refused.status_code == 409, refused.text
            assert "event #4 is not the one that was written" in refused.json()["detail"]
            assert server.get("/stats").json()["count"] == 5
        assert pinned(path) == pin_of(newest), "a pin does not follow a chain that has lost it"
        put_in_place(valkey, backup)
        refusal = start_that_is_refused(**settings)
    assert f"{PIN}: chain is shorter than the pinned head: it ends at event #2, and #4 is pinned" in refusal
    assert str(path) in refusal
    assert "Restore the newest backup" in refusal
    assert f"audit-stream accept-loss --to 2:{second}" in refusal
    assert "remove" not in refusal


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_what_a_chain_can_have_against_its_pin(redis_url: str, chain: str, tmp_path: Path) -> None:
    path = tmp_path / "pin"
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, PIN: str(path)}
    pin = pin_of((await write(redis_url, chain, 6))[3])  # two events are behind it
    path.write_text(f"{pin}\n")
    stored, stream = Stored(redis_url, chain), Stream.at(redis_url, chain)
    try:
        assert await contradiction(stream, pin) is None
        with running_server(**settings) as server:
            key = f"{{{chain}}}:events"
            whole = stored.client.dump(key)
            assert whole
            for damage, words in {
                "nothing": "",
                "one event": "event #4 is not the pinned one: it is not there",
                "the end": "chain is shorter than the pinned head: it ends at event #3, and #4 is pinned",
                "everything": "chain is shorter than the pinned head: it ends at event #0, and #4 is pinned",
                "history": "event #4 is not the pinned one: its hash is",
                "content": "event #4 is not the pinned one: its content does not give its hash",
            }.items():
                stored.client.restore(key, 0, whole, replace=True)
                match damage:
                    case "one event":
                        stored.client.xdel(key, "4-0")
                    case "the end":
                        stored.client.xdel(key, "4-0", "5-0", "6-0")
                    case "everything":
                        stored.client.delete(key)
                    case "history":
                        rewrite(stored, 3)
                    case "content":
                        stored.change(lambda entries: put(entries[3], b"payload", b'{"n":0}'))
                assert (await contradiction(stream, pin) or "").startswith(words), damage
                ready = server.get("/readyz")
                assert ready.status_code == (503 if words else 200), damage
                assert words in ready.text, damage
    finally:
        await stream.close()
        stored.close()


@pytest.mark.anyio
async def test_only_a_walk_over_the_whole_chain_tells_its_head(redis_url: str, chain: str) -> None:
    events = await write(redis_url, chain, 5)
    told: list[Head] = []
    stream = Stream.at(redis_url, chain)
    try:
        verifier = Verifier(stream, Verdicts(Tally(), on_intact=told.append).asked_for)
        for first, last in ((2, None), (1, 4), (1, 5)):
            await verifier.verify(first, last)
        assert told == []
        await verifier.verify()
        assert told == [Head(5, events[-1].hash)]
        stored = Stored(redis_url, chain)
        stored.delete(5)
        stored.close()
        assert not (await verifier.verify()).verdict.valid
        assert len(told) == 1
    finally:
        await stream.close()
