"""audit-stream accept-loss: the loss is on the chain, the pins are moved, and what was lost can be sent again."""

import json
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audit_stream.pin import Pin, Pinned
from tests.e2e.terminal import on_terminal, run
from tests.harness import ServerProcess, clean_environ, running_server
from tests.integration.test_lifecycle import start_that_is_refused
from tests.tamper.stored import Stored

EMPTY = f"0:{'0' * 64}"
PATIENCE_S = 30.0


def event(n: int) -> dict[str, Any]:
    kind = ("other", "request_denied")[n % 2]
    return {"kind": kind, "source": f"s{n % 3}", "payload": {"n": n}, "idempotency_key": f"key-{n}"}


def append(server: ServerProcess, *numbers: int) -> list[dict[str, Any]]:
    return [server.post(event(n)).raise_for_status().json() for n in numbers]


def pin_of(receipt: dict[str, Any]) -> Pin:
    return Pin(receipt["event_id"], receipt["hash"])


def text_of(receipt: dict[str, Any]) -> str:
    return str(pin_of(receipt))


def incidents(server: ServerProcess) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = server.get("/events?source=audit-stream&kind=incident_filed&after=0").json()
    return events


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


class Site:
    """One chain on the shared Redis, and the pin file of its servers."""

    def __init__(self, redis_url: str, chain: str, folder: Path) -> None:
        self.redis_url, self.chain, self.pin = redis_url, chain, folder / "pin"
        self.stored = Stored(redis_url, chain)
        self.settings: dict[str, Any] = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain}

    def accept(self, to: str, *options: str, pin: Path | None = None) -> "subprocess.CompletedProcess[bytes]":
        pin = pin or self.pin
        return run("accept-loss", "--to", to, "--pin", str(pin), "--yes", *options, **self.settings)

    def cut(self, first: int) -> None:
        """Remove the events from this one on, and leave what Redis knows of them."""
        self.stored.delete(*range(first, len(self.stored.entries()) + 1))

    def fill(self, count: int = 6) -> list[dict[str, Any]]:
        with running_server(**self.settings, AUDIT_STREAM_PIN=str(self.pin)) as server:
            return append(server, *range(1, count + 1))


@pytest.fixture
def site(redis_url: str, chain: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(redis_url, chain, tmp_path)
    yield site
    site.stored.close()


# --- all of it, with servers that run


@pytest.mark.parametrize("how", ["XDEL", "XTRIM", "DEL", "older backup"])
def test_servers_go_on_and_the_lost_events_are_stored_once_when_they_are_sent_again(site: Site, how: str) -> None:
    settings = {**site.settings, "AUDIT_STREAM_PIN": str(site.pin)}
    with running_server(**settings) as one, running_server(**settings) as other:
        kept = append(one, 1, 2, 3)
        backup = site.stored.dump()
        lost = append(one, 4, 5) + append(other, 6)
        until(lambda: site.pin.exists() and Pinned.parse(site.pin.read_text()).pin == pin_of(lost[-1]))
        match how:
            case "XDEL":
                site.cut(4)
            case "XTRIM":
                site.stored.client.xtrim(site.stored.events, maxlen=0, approximate=False)
            case "DEL":
                site.stored.client.delete(site.stored.events)
            case _:
                site.stored.restore(backup)
        if how in ("XTRIM", "DEL"):
            kept, lost = [], kept + lost
        assert one.post(event(9)).status_code == other.post(event(9)).status_code == 409
        done = site.accept(text_of(kept[-1]) if kept else EMPTY, "--reason", "the disk of redis-1")
        assert done.returncode == 0, done.stderr
        first, last = lost[0]["event_id"], lost[-1]["event_id"]
        recorded = json.loads(done.stdout)
        assert recorded["event_id"] == first
        assert recorded["incident"] == {
            "incident": "chain_truncated",
            "lost_from": first,
            "lost_to": last,
            "old_head": text_of(lost[-1]),
            "new_head": text_of(kept[-1]) if kept else EMPTY,
            "reason": "the disk of redis-1",
        }
        assert site.pin.read_text() == f"{first}:{recorded['hash']}\nlost {text_of(lost[-1])}\n"
        for server, n in ((one, 9), (other, 10)):
            until(lambda server=server, n=n: server.post(event(n)).status_code in (200, 201))  # type: ignore[misc]
            assert server.get("/readyz").status_code == 200
        again = [(one if n % 2 else other).post(event(n)) for n in range(1, 7)]
        assert [answer.status_code for answer in again] == [200] * len(kept) + [201] * len(lost)
        assert all(one.post(event(n)).status_code == 200 for n in range(1, 7))
        stored = one.get("/events?after=0").json()
        assert sorted(e["payload"]["n"] for e in stored if "n" in e["payload"]) == [1, 2, 3, 4, 5, 6, 9, 10]
        assert [e["event_id"] for e in incidents(one)] == [first]
        assert one.client.get("/verify?deep=true").json()["valid"]
    assert Pinned.parse(site.pin.read_text()) == Pinned(pin_of(stored[-1]), pin_of(lost[-1]))
    with running_server(**settings) as server:
        assert append(server, 11)[0]["event_id"] == len(stored) + 1
    verified = run("verify", "--redis-url", site.redis_url, "--chain", site.chain, "--pin", str(site.pin))
    assert (verified.returncode, json.loads(verified.stdout)["pin"]["holds"]) == (0, True)
    assert site.pin.read_text().endswith(f"\nlost {text_of(lost[-1])}\n")


def test_a_history_that_has_grown_past_the_lost_head_is_recorded_as_a_fork(site: Site) -> None:
    settings = {**site.settings, "AUDIT_STREAM_PIN": str(site.pin)}
    with running_server(**settings) as pinned, running_server(**site.settings) as unpinned:
        backup = site.stored.dump()
        old = append(pinned, 1, 2)[-1]
        until(lambda: site.pin.exists() and str(pin_of(old)) in site.pin.read_text())
        site.stored.restore(backup)
        assert unpinned.post(event(3)).status_code == 201
        head = append(unpinned, 4, 5)[-1]
        refused = site.accept(text_of(old))
        assert (refused.returncode, b"and not with 2:" in refused.stderr) == (1, True)
        done = site.accept(text_of(head))
        incident = json.loads(done.stdout)["incident"]
        assert (incident["incident"], incident["lost_from"], incident["lost_to"]) == ("chain_forked", None, 2)
        assert incident["old_head"] == text_of(old)
        until(lambda: pinned.post(event(6)).status_code == 201)
        assert pinned.verify()["valid"]


def test_servers_on_other_hosts_follow_when_the_same_command_runs_there(site: Site, tmp_path: Path) -> None:
    receipts = site.fill()
    there, behind = tmp_path / "there", tmp_path / "behind"
    there.write_text(f"{text_of(receipts[5])}\n")
    behind.write_text(f"{text_of(receipts[4])}\n")
    site.cut(4)
    to = text_of(receipts[2])
    here = site.accept(to, "--pin", str(there))
    assert here.returncode == 0, here.stderr
    assert there.read_text() == site.pin.read_text()
    with running_server(**site.settings, AUDIT_STREAM_PIN=str(site.pin)) as server:
        append(server, 7, 8, 9)  # the chain does not stand still meanwhile
        for _ in range(2):
            site.accept(to, pin=behind)
        assert [e["payload"]["old_head"] for e in incidents(server)] == [text_of(receipts[5]), text_of(receipts[4])]
        assert [(e["payload"]["lost_from"], e["payload"]["lost_to"]) for e in incidents(server)] == [(4, 6), (4, 5)]
    with running_server(**site.settings, AUDIT_STREAM_PIN=str(behind)) as server:
        assert server.get("/readyz").status_code == 200


def test_a_cut_that_only_redis_knows_of_is_accepted_without_a_pin(site: Site) -> None:
    with running_server(**site.settings) as server:
        receipts = append(server, 1, 2, 3)
    site.cut(3)
    done = run("accept-loss", "--to", text_of(receipts[1]), "--yes", **site.settings)
    assert done.returncode == 0, done.stderr
    incident = json.loads(done.stdout)["incident"]
    assert (incident["old_head"], incident["lost_from"], incident["lost_to"]) == (None, 3, 3)
    with running_server(**site.settings) as server:
        assert server.post(event(3)).status_code == 201
        assert server.verify()["valid"]


# --- killed on the way

_KILLED = """
import os, signal, sys
from audit_stream import loss
from audit_stream.lost_end import LostEnd

def killed(owner, name, *, after):
    step, calls = getattr(owner, name), []
    def dying(*arguments, **options):
        calls.append(name)
        if not after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = step(*arguments, **options)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(owner, name, dying)

owner, name, after = sys.argv.pop(1).split()
killed({"loss": loss, "lost_end": LostEnd}[owner], name, after=int(after))
from audit_stream.cli import main
main()
"""


STEPS = (
    "loss reindex 0",
    "lost_end forget_keys 0",
    "lost_end end_at 0",
    "loss _record 0",
    "loss give_up 0",
    "loss give_up 1",
)


def test_killed_before_each_step_it_goes_on_when_it_is_run_again(site: Site, tmp_path: Path) -> None:
    receipts = site.fill()
    other = tmp_path / "other"
    shutil.copy(site.pin, other)
    site.cut(4)
    options = ["--to", text_of(receipts[2]), "--pin", str(site.pin), "--pin", str(other), "--yes"]
    for step in STEPS:
        killed = subprocess.run(
            [sys.executable, "-c", _KILLED, step, "accept-loss", *options],
            env=clean_environ(**site.settings),
            capture_output=True,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(site.stored.entries()) == (4 if "give_up" in step else 3), step
    assert [path.read_text().count("lost") for path in (site.pin, other)] == [1, 0]
    done = run("accept-loss", *options, **site.settings)
    assert done.returncode == 0, done.stderr
    assert len(site.stored.entries()) == 4
    moved = f"4:{json.loads(done.stdout)['hash']}\nlost {text_of(receipts[5])}\n"
    assert other.read_text() == site.pin.read_text() == moved
    with running_server(**site.settings, AUDIT_STREAM_PIN=str(site.pin)) as server:
        assert server.post(event(6)).status_code == 201, "its key no longer names the lost event"
        assert server.client.get("/verify?deep=true").json()["valid"]


# --- refused


def test_what_is_refused_changes_nothing(site: Site, tmp_path: Path) -> None:
    receipts = site.fill(4)
    third, fourth = map(text_of, receipts[2:])
    whole, pinned = site.stored.dump(), site.pin.read_text()

    def refused(to: str, words: str, *options: str, code: int = 1, pin: Path | None = None) -> None:
        before = site.stored.dump()
        done = site.accept(to, *options, pin=pin)
        assert words in done.stderr.decode(), done.stderr
        assert (done.returncode, done.stdout, site.pin.read_text()) == (code, b"", pinned)
        assert site.stored.dump() == before

    refused(fourth, f"nothing was lost: {site.pin} pins event #4, and the chain has it")
    refused("5", "write it as ID:HASH, an event_id and 64 hex digits; for an empty chain 0 and 64 zeros", code=2)
    site.cut(4)
    refused(fourth, f"--to: the chain ends with {third}, and not with {fourth}")
    refused(EMPTY, f"--to: the chain ends with {third}")
    refused(f"3:{'b' * 64}", f"--to: the chain ends with {third}")
    refused(third, "does not exist", pin=tmp_path / "elsewhere", code=2)
    (tmp_path / "damaged").write_text(third[:-3])
    refused(third, "holds no pin", "--pin", str(tmp_path / "damaged"), code=2)
    refused(third, "cannot be read: Is a directory", pin=tmp_path, code=2)
    asked = run("accept-loss", "--to", third, "--pin", str(site.pin), **site.settings)
    assert (asked.returncode, b"--yes is missing" in asked.stderr) == (2, True)
    site.stored.restore(whole)
    site.pin.write_text(pinned := f"{third}\n")
    site.stored.delete(3)
    refused(fourth, "event #3 is not there, and later ones are: the chain is damaged")


def test_it_shows_what_is_lost_and_asks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = site.fill(4)
    site.cut(3)
    options = ["accept-loss", "--to", text_of(receipts[1]), "--redis-url", site.redis_url, "--chain", site.chain]
    code, shown = on_terminal(*options, "--pin", str(site.pin), width=200, typed=b"n\n")
    assert code == 130
    for words in (text_of(receipts[3]), text_of(receipts[1]), "2 events, #3 to #4: their receipts are void", "[y/N]"):
        assert words in shown
    assert len(site.stored.entries()) == 2
    code, shown = on_terminal(*options, "--pin", str(site.pin), width=200, typed=b"y\n")
    assert code == 0
    assert "recorded" in shown
    assert "restart those without a pin" in shown


# --- where the pin is when nobody says


def test_an_embedded_valkey_that_starts_empty_is_refused_and_accepted_only_by_name(tmp_path: Path) -> None:
    data = tmp_path / "data"
    settings: dict[str, Any] = {"AUDIT_STREAM_DATA_DIR": str(data)}
    with running_server(**settings) as server:
        receipts = append(server, 1, 2)
        in_use = run("accept-loss", "--to", EMPTY, "--yes", **settings)
        assert (in_use.returncode, b"is in use by audit-stream process" in in_use.stderr) == (2, True)
    assert (data / "audit.pin").read_text() == f"{text_of(receipts[-1])}\n"
    shutil.rmtree(data / "appendonlydir")
    (data / "dump.rdb").touch()
    refusal = start_that_is_refused(**settings)
    assert "AUDIT_STREAM_PIN: chain is shorter than the pinned head: it ends at event #0, and #2 is pinned" in refusal
    assert "Redis with appendonly yes ignores that file" in refusal
    assert f"audit-stream accept-loss --to {EMPTY}" in refusal
    assert "docs/operators/lost-tail.md" in refusal
    done = run("accept-loss", "--to", EMPTY, "--data-dir", str(data), "--yes", "--reason", "a restore that was none")
    assert done.returncode == 0, done.stderr
    with running_server(**settings) as server:
        assert append(server, 1)[0]["event_id"] == 2
        assert incidents(server)[0]["payload"]["old_head"] == text_of(receipts[-1])


def test_a_given_redis_is_pinned_in_the_data_folder_and_else_the_start_says_that_it_is_not(
    site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "not" / "yet"
    with running_server(**site.settings, AUDIT_STREAM_DATA_DIR=str(data)) as server:
        receipt = append(server, 1)[0]
    assert (data / f"{site.chain}.pin").read_text() == f"{text_of(receipt)}\n"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert "no pin" not in capfd.readouterr().err
    said = "no pin: acknowledged events that Redis loses would go unnoticed after a restart"
    for settings, words in (({}, said), ({"AUDIT_STREAM_PIN": "off"}, ""), ({"AUDIT_STREAM_ACK": "memory"}, "")):
        with running_server(**site.settings, **settings):
            pass
        shown = capfd.readouterr().err
        assert (said in shown) == bool(words), settings
    site.stored.client.delete(site.stored.events)
    refusal = start_that_is_refused(**site.settings, AUDIT_STREAM_DATA_DIR=str(data))
    assert "it ends at event #0, and #1 is pinned" in refusal
