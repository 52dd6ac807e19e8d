"""export, verify FILE, import and --pin, as they are typed."""

import csv
import gzip
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.terminal import command, on_terminal, run
from tests.harness import ServerProcess, clean_environ, running_server
from tests.tamper.stored import Entry, Stored, link, put
from tests.tamper.test_tamper import EVENTS, requests

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def receipts(server: ServerProcess) -> list[dict[str, Any]]:
    """What the producers of a chain of twelve were given."""
    given: list[dict[str, Any]] = server.post_batch(requests(EVENTS)).raise_for_status().json()
    return given


@pytest.fixture
def stored(redis_url: str, chain: str) -> Iterator[Stored]:
    opened = Stored(redis_url, chain)
    yield opened
    opened.close()


@pytest.fixture
def other(redis_url: str, chain: str) -> Iterator[ServerProcess]:
    """A server on an empty chain."""
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=f"{chain}.other") as process:
        yield process


def where(how: str, server: ServerProcess, redis_url: str, chain: str) -> tuple[str, ...]:
    return ("--url", server.url) if how == "url" else ("--redis-url", redis_url, "--chain", chain)


def exported(server: ServerProcess, path: Path, *flags: str) -> Path:
    done = run("export", "--out", str(path), *flags, url=server.url)
    assert done.returncode == 0, done.stderr
    return path


def untimed(line: bytes) -> bytes:
    """A line of an export as it was before exports had commit times."""
    return re.sub(rb',"committed_at":"[^"]*"}$', b"}", line)


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def spoil(path: Path, event_id: int) -> None:
    path.write_bytes(path.read_bytes().replace(b'"n":%d}' % event_id, b'"n":0}'))


def rewrite(stored: Stored, event_id: int) -> None:
    """Write the chain anew from an event on, all links right."""

    def change(entries: list[Entry]) -> None:
        put(entries[event_id - 1], b"payload", b'{"n":"never happened"}')
        link(entries, start=event_id - 1)

    stored.change(change)


# --- export


@pytest.mark.parametrize(("how", "name"), [("url", "audit.jsonl"), ("redis", "audit.jsonl.gz")])
def test_an_export_is_the_chain_byte_for_byte_and_verifies_without_a_server(
    server: ServerProcess,
    receipts: list[dict[str, Any]],
    redis_url: str,
    chain: str,
    tmp_path: Path,
    how: str,
    name: str,
) -> None:
    path = tmp_path / name
    done = run("export", "--out", str(path), *where(how, server, redis_url, chain))
    assert done.returncode == 0, done.stderr
    head = {"event_id": EVENTS, "hash": receipts[-1]["hash"]}
    assert json.loads(done.stdout) == {"exported": EVENTS, "head": head, "file": str(path)}
    data = path.read_bytes()
    lines = (gzip.decompress(data) if name.endswith(".gz") else data).splitlines()
    assert [untimed(line) for line in lines] == [server.get(f"/events/{n}").content for n in range(1, EVENTS + 1)]
    assert lines == server.get("/events?committed=true", Accept="application/x-ndjson").content.splitlines()
    assert list(tmp_path.iterdir()) == [path]
    for jobs in ("1", "2"):
        checked = run("verify", str(path), "--jobs", jobs, url=NOWHERE)
        assert checked.returncode == 0, checked.stderr
        verdict = json.loads(checked.stdout)
        assert (verdict["valid"], verdict["checked"], verdict["head"]) == (True, EVENTS, head)


def test_an_export_of_many_pages_is_whole(server: ServerProcess, redis_url: str, chain: str, tmp_path: Path) -> None:
    for _ in range(3):
        server.post_batch(requests(900)).raise_for_status()
    for how in ("url", "redis"):
        path = tmp_path / how
        assert run("export", "--out", str(path), *where(how, server, redis_url, chain)).returncode == 0
        assert json.loads(run("verify", str(path)).stdout)["checked"] == 2700
    assert (tmp_path / "url").read_bytes() == (tmp_path / "redis").read_bytes()


@pytest.mark.parametrize("how", ["url", "redis"])
def test_a_range_is_exported_and_says_where_it_begins(
    server: ServerProcess, receipts: list[dict[str, Any]], redis_url: str, chain: str, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "x"
    flags = where(how, server, redis_url, chain)
    assert run("export", "--out", str(path), "--from", "5", "--to", "8", *flags).returncode == 0
    verdict = json.loads(run("verify", str(path)).stdout)
    assert (verdict["first"], verdict["checked"], verdict["head"]["event_id"]) == (5, 4, 8)
    assert run("verify", str(path), "--expect", f"4:{receipts[3]['hash']}").returncode == 0
    assert run("verify", str(path), "--expect", f"3:{receipts[2]['hash']}").returncode == 2
    beyond = run("export", "--out", str(path), "--to", "13", *flags)
    assert beyond.returncode == 1
    assert b"the chain ends at event #12" in beyond.stderr


@pytest.mark.parametrize("how", ["url", "redis"])
def test_a_broken_chain_is_not_exported_and_what_was_there_stays(
    server: ServerProcess,
    receipts: list[dict[str, Any]],
    stored: Stored,
    redis_url: str,
    chain: str,
    tmp_path: Path,
    how: str,
) -> None:
    path = tmp_path / "x"
    path.write_text("as it was")
    stored.change(lambda entries: put(entries[5], b"payload", b'{"n":0}'))
    done = run("export", "--out", str(path), *where(how, server, redis_url, chain))
    assert done.returncode == 1
    assert b"hash mismatch at event #6" in done.stderr
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_an_export_to_standard_output_is_the_lines_alone(
    server: ServerProcess, receipts: list[dict[str, Any]], tmp_path: Path
) -> None:
    done = run("export", "--out", "-", url=server.url)
    assert done.stdout == exported(server, tmp_path / "x").read_bytes()
    assert receipts[-1]["hash"].encode() in done.stderr


def test_a_place_that_cannot_be_written_is_named_with_exit_code_2(server: ServerProcess, tmp_path: Path) -> None:
    for place in (tmp_path / "no" / "x", tmp_path):
        done = run("export", "--out", str(place), url=server.url)
        assert done.returncode == 2
        assert str(place).encode() in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["jsonl", "csv", "bus"])
def test_an_export_is_for_its_owner_alone_also_where_it_replaces_a_file(
    server: ServerProcess, receipts: list[dict[str, Any]], tmp_path: Path, form: str
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.touch()
    old.chmod(0o644)
    for path in (new, old):
        assert exported(server, path, "--format", form).stat().st_size
        assert path.stat().st_mode & 0o777 == 0o600


def test_no_cell_of_a_csv_is_a_formula(server: ServerProcess, tmp_path: Path) -> None:
    sources = ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "\r=1", "＝1", 'a"b,c\nd', "plain"]
    server.post_batch(
        [{"kind": "other", "source": source, "payload": {"=x": "=y"}} for source in sources]
    ).raise_for_status()
    path = exported(server, tmp_path / "x.csv", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert [row["source"].replace("'", "") for row in rows] == sources
    assert [row["source"][0] == "'" for row in rows] == [True] * 8 + [False] * 2
    assert rows[0]["hash"] == server.get("/events/1").json()["hash"]
    assert not any(cell.lstrip().startswith(tuple("=+-@＝")) for row in rows for cell in row.values())


# --- verify FILE


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_edited_file_says_at_which_line_and_event(
    server: ServerProcess, receipts: list[dict[str, Any]], tmp_path: Path, jobs: str
) -> None:
    path = exported(server, tmp_path / "x")
    spoil(path, 6)
    done = run("verify", str(path), "--jobs", jobs, url=NOWHERE)
    assert done.returncode == 1
    verdict = json.loads(done.stdout)
    assert (verdict["line"], verdict["first_break_at"]) == (6, 6)
    assert verdict["reason"] == "line 6: hash mismatch at event #6"
    code, shown = on_terminal("verify", str(path))
    assert code == 1
    assert "broken at event #6: line 6: hash mismatch at event #6" in plain(shown)


def test_a_file_that_is_not_there_or_a_flag_that_is_not_for_files_ends_with_2(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert b"cannot be read" in run("verify", str(path)).stderr
    assert run("verify", str(path)).returncode == 2
    assert run("verify", str(tmp_path)).returncode == 2
    path.touch()
    for flags in (("--from", "3"), ("--to", "3"), ("--deep",), ("--redis-url", "redis://127.0.0.1:1")):
        done = run("verify", str(path), *flags)
        assert done.returncode == 2
        assert flags[0].encode() in done.stderr


def test_a_pinned_event_behind_a_break_was_not_reached(
    server: ServerProcess, receipts: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = exported(server, tmp_path / "x")
    spoil(path, 6)
    done = run("verify", str(path), "--expect", f"9:{receipts[8]['hash']}")
    assert done.returncode == 1
    assert json.loads(done.stdout)["checkpoint"]["reason"] == "event #9 was not reached"


# --- pins


def test_a_pin_finds_a_cut_end_a_rewritten_chain_and_an_older_backup(
    server: ServerProcess, stored: Stored, redis_url: str, chain: str, tmp_path: Path
) -> None:
    server.post_batch(requests(EVENTS - 2)).raise_for_status()
    backup = stored.dump()
    server.post_batch(requests(2)).raise_for_status()
    for how in ("url", "redis"):
        flags = ("verify", "--pin", str(tmp_path / how), *where(how, server, redis_url, chain))
        assert run(*flags).returncode == 0
        pinned = (tmp_path / how).read_text()
        assert pinned == f"{EVENTS}:{server.verify()['head']['hash']}\n"
        whole = stored.dump()

        stored.restore(backup)
        done = run(*flags)
        assert (done.returncode, json.loads(done.stdout)["valid"]) == (1, True)
        assert "chain is shorter than the pinned head" in json.loads(done.stdout)["pin"]["reason"]

        stored.restore(whole)
        rewrite(stored, 3)
        done = run(*flags)
        assert (done.returncode, json.loads(done.stdout)["valid"]) == (1, True)
        assert f"event #{EVENTS} is not the pinned one" in json.loads(done.stdout)["pin"]["reason"]

        assert (tmp_path / how).read_text() == pinned
        stored.restore(whole)
        assert run(*flags).returncode == 0


def test_a_pin_moves_on_with_the_chain_and_holds_for_its_exports(server: ServerProcess, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    for count in (3, 5):
        server.post_batch(requests(count)).raise_for_status()
        assert run("verify", "--pin", str(pin), url=server.url).returncode == 0
    assert pin.read_text().startswith("8:")
    path = exported(server, tmp_path / "x")
    assert run("verify", str(path), "--pin", str(pin)).returncode == 0
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]))
    done = run("verify", str(path), "--pin", str(pin))
    assert (done.returncode, json.loads(done.stdout)["valid"]) == (1, True)
    assert "chain is shorter than the pinned head" in json.loads(done.stdout)["pin"]["reason"]
    code, shown = on_terminal("verify", str(path), "--pin", str(pin), width=200)
    assert code == 1
    assert "the pin does not hold: chain is shorter than the pinned head" in plain(shown)


def test_a_broken_chain_moves_no_pin(server: ServerProcess, stored: Stored, tmp_path: Path) -> None:
    server.post_batch(requests(EVENTS)).raise_for_status()
    stored.change(lambda entries: put(entries[5], b"payload", b'{"n":0}'))
    assert run("verify", "--pin", str(tmp_path / "pin"), url=server.url).returncode == 1
    assert not (tmp_path / "pin").exists()


def test_a_pin_that_cannot_be_written_is_said_before_anything_is_checked(tmp_path: Path) -> None:
    done = run("verify", "--pin", str(tmp_path / "no" / "pin"), url=NOWHERE)
    assert done.returncode == 2
    assert b"cannot be written" in done.stderr
    assert b"cannot tell" not in done.stderr
    assert done.stdout == b""


def test_a_pin_is_for_the_whole_chain(tmp_path: Path) -> None:
    assert run("verify", "--pin", str(tmp_path / "pin"), "--to", "3", url=NOWHERE).returncode == 2


# --- import


@pytest.mark.parametrize("how", ["url", "redis"])
def test_an_import_ends_at_the_same_head_every_byte_the_same(
    server: ServerProcess, other: ServerProcess, redis_url: str, chain: str, tmp_path: Path, how: str
) -> None:
    payload = {"ü": ["\u2028", 1.50, 1e300, 10**20, -0.0, None], "n": {"": "\x00"}}
    odd = [{"kind": "other", "source": 'ü \\ " \n', "payload": payload, "timestamp": "2016-12-31t23:59:60.5+05:30"}]
    server.post_batch(odd + requests(1200)).raise_for_status()
    path = exported(server, tmp_path / "x.gz")
    done = run("import", str(path), *where(how, other, redis_url, f"{chain}.other"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["head"] == server.verify()["head"] == other.verify()["head"]
    theirs, ours = (gzip.decompress(file.read_bytes()) for file in (exported(other, tmp_path / "y.gz"), path))
    if how == "redis":
        assert theirs == ours
    else:  # by URL no producer may claim a commit time
        assert [untimed(line) for line in theirs.splitlines()] == [untimed(line) for line in ours.splitlines()]
        assert b"commit times are not carried over" in done.stderr
        assert b"--redis-url" in done.stderr


@pytest.mark.parametrize("how", ["url", "redis"])
def test_only_a_whole_and_sound_export_goes_into_only_an_empty_chain(
    server: ServerProcess,
    receipts: list[dict[str, Any]],
    other: ServerProcess,
    redis_url: str,
    chain: str,
    tmp_path: Path,
    how: str,
) -> None:
    sound, spoiled, part = (tmp_path / name for name in ("sound", "spoiled", "part"))
    exported(server, sound)
    spoil(exported(server, spoiled), 6)
    exported(server, part, "--from", "3")
    flags = where(how, other, redis_url, f"{chain}.other")
    for path, says in (
        (spoiled, b"line 6: hash mismatch at event #6"),
        (part, b"begins with event #3"),
        (tmp_path / "absent", b"cannot be read"),
    ):
        done = run("import", str(path), *flags)
        assert done.returncode in (1, 2)
        assert says in done.stderr
        assert other.get("/stats").json()["count"] == 0
    assert run("import", str(sound), *flags).returncode == 0
    again = run("import", str(sound), *flags)
    assert (again.returncode, json.loads(again.stdout)["imported"]) == (0, 0)
    assert other.get("/stats").json()["count"] == EVENTS


@pytest.mark.parametrize("how", ["url", "redis"])
def test_kinds_that_are_unknown_are_named_before_the_first_event_is_written(
    other: ServerProcess, redis_url: str, chain: str, tmp_path: Path, how: str
) -> None:
    with running_server(
        AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, AUDIT_STREAM_KINDS="ours"
    ) as server:
        server.post_batch([*requests(3), {"kind": "ours", "source": "s"}]).raise_for_status()
        path = exported(server, tmp_path / "x")
    flags = ("import", str(path), *where(how, other, redis_url, f"{chain}.other"))
    done = run(*flags)
    assert done.returncode == 1
    assert b"AUDIT_STREAM_KINDS=ours" in done.stderr
    assert other.get("/stats").json()["count"] == 0
    if how == "redis":
        assert run(*flags, AUDIT_STREAM_KINDS="ours").returncode == 0


def test_the_readers_end_of_an_export_is_a_quiet_one(server: ServerProcess) -> None:
    for _ in range(3):
        server.post_batch(requests(1000)).raise_for_status()
    read, write = os.pipe()
    environ = clean_environ(AUDIT_STREAM_URL=server.url)
    with subprocess.Popen(
        command("export", "--out", "-"), env=environ, stdout=write, stderr=subprocess.PIPE
    ) as process:
        os.close(write)
        assert os.read(read, 10)
        os.close(read)
        assert process.wait(60) == 0
        assert process.stderr
        assert b"Traceback" not in process.stderr.read()
