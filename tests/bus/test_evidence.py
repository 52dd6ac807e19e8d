"""The evidence pack, checked in an empty interpreter; and the way from the chain back to a log."""

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from audit_stream.bus import BusWriter, verify
from audit_stream.chain import link_hash, parse
from audit_stream.event import to_json
from audit_stream.sources.bus import Mapped, Relay
from tests.bus.typed import Typing
from tests.harness import ROOT, ServerProcess

Events = Callable[[], list[dict[str, Any]]]
SECRET = "5e" * 32


def relay(path: Path, url: str) -> None:
    relaying = Relay(path, url, mapped=Mapped().request_of)
    relaying.once()
    relaying.close()


def write(path: Path, *texts: str, name: str = "agent-1", key: str | None = None) -> BusWriter:
    bus = BusWriter(path, fsync="never", key=key)
    for text in texts:
        bus.post(name, "all", "STATUS", text)
    return bus


def check(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the pack's script with nothing but the standard library."""
    command = [sys.executable, "-I", "-S", "check.py", *arguments]
    done = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def log(path: Path) -> BusWriter:
    return write(path, "one\n🎉", "two", "three", key=f"k:{SECRET}")


@pytest.fixture
def packed(spine: ServerProcess, new_events: Events, log: BusWriter, typed: Typing, tmp_path: Path) -> Path:
    """A pack of the events of this test and of two logs, one of them relayed, unpacked."""
    since = datetime.now(UTC).isoformat()
    relay(log.bus_path, spine.url)
    spine.post({"kind": "request_denied", "source": "gateway", "payload": {"f": 1e22, "é": "ü"}}).raise_for_status()
    local = write(tmp_path / "local.jsonl", "here only")
    head = new_events()[-1]
    done = typed(
        "evidence", "--since", since, "--out", tmp_path / "pack.zip", "--bus", local.bus_path,
        "--expect", f"{head['event_id']}:{head['hash']}", "--url", spine.url,
    )  # fmt: skip
    assert done.code == 0, done.err
    body = done.json()
    assert (body["events"], body["lines"], body["intact"]) == (4, 1, True)
    folder = tmp_path / "pack"
    with zipfile.ZipFile(tmp_path / "pack.zip") as archive:
        archive.extractall(folder)
    assert sha256((folder / "manifest.json").read_bytes()).hexdigest() == body["manifest_sha256"]
    return folder


def test_a_pack_is_checked_with_nothing_but_the_standard_library(packed: Path, log: BusWriter, tmp_path: Path) -> None:
    code, said = check(packed)
    assert code == 0, said
    assert "events.jsonl: 4 events" in said
    assert "bus/local.jsonl: lines to #1" in said
    assert "3 signed, signatures not checked" in said
    assert "\nconsistent, not compared  the pack of " in said
    assert (packed / "bus" / "relayed-1.jsonl").read_bytes() == log.bus_path.read_bytes()
    heads = json.loads((packed / "heads.json").read_text())
    assert [pin["holds"] for pin in heads["pins"]] == [True]
    assert heads["chain"]["event_id"] == heads["events"]["head"]["event_id"]
    verdict = json.loads((packed / "verdict.json").read_text())
    assert verdict["events"]["valid"]
    assert verdict["chain"]["valid"]
    # What was unpacked is what is still there: the check leaves nothing behind.
    assert check(packed)[0] == 0


def test_the_commands_of_verify_md_are_those_that_check_it(packed: Path) -> None:
    text = (packed / "VERIFY.md").read_text()
    assert "    python3 -I -S check.py\n" in text
    assert "    python3 -I -S check.py --expect ID:HASH --manifest SHA256\n" in text
    for name in ("events.jsonl", "heads.json", "verdict.json", "manifest.json", "check.py", "chain.py"):
        assert f"`{name}`" in text
        assert (packed / name).exists()
    assert (packed / "chain.py").read_bytes() == (ROOT / "src/audit_stream/chain.py").read_bytes()


def mend_manifest(folder: Path) -> None:
    """As whoever tampers would: the digests fit again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for part in manifest["parts"]:
        part["sha256"] = sha256((folder / part["name"]).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def without_line(folder: Path, name: str, number: int) -> None:
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    (folder / name).write_bytes(b"".join(lines[:number] + lines[number + 1 :]))


def replaced(folder: Path, name: str, old: bytes, new: bytes) -> None:
    before = (folder / name).read_bytes()
    assert old in before
    (folder / name).write_bytes(before.replace(old, new))


def test_every_tampering_with_a_pack_is_found(packed: Path, tmp_path: Path) -> None:
    tamperings: dict[str, tuple[Callable[[Path], object], str]] = {
        "an event is changed": (
            lambda f: replaced(f, "events.jsonl", b"gateway", b"gatevay"),
            "hash mismatch at event",
        ),
        "an event is removed": (lambda f: without_line(f, "events.jsonl", 1), "event_id should be"),
        "the last event is removed": (lambda f: without_line(f, "events.jsonl", 3), "events.jsonl ends with event"),
        "an event is no event": (lambda f: replaced(f, "events.jsonl", b'"kind"', b'"kand"'), "line 1: not an event"),
        "a line is changed": (lambda f: replaced(f, "bus/relayed-1.jsonl", b"two", b"ten"), "line 2: hash mismatch"),
        "a line is removed": (lambda f: without_line(f, "bus/relayed-1.jsonl", 0), "line 1: seq should be 1, got 2"),
        "the last line is removed": (lambda f: without_line(f, "bus/relayed-1.jsonl", 2), "ends with line #2"),
        "a line is no line": (lambda f: replaced(f, "bus/local.jsonl", b'{"v"', b'"v"'), "it is no line of a bus"),
    }
    for how, (tamper, why) in tamperings.items():
        for mended in (False, True):
            folder = tmp_path / f"{how}, {mended}"
            shutil.copytree(packed, folder)
            tamper(folder)
            if mended:
                mend_manifest(folder)
            code, said = check(folder)
            assert code == 1, (how, said)
            assert why in said, (how, said)
            assert ("another SHA-256" in said) != mended


def test_a_line_that_was_rehashed_no_longer_links_onto_the_one_before(packed: Path) -> None:
    path = packed / "bus/relayed-1.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    lines[1]["message"], lines[1]["prev_hash"] = "ten", "ab" * 32
    body = {name: value for name, value in lines[1].items() if name not in ("hash", "mac")}
    lines[1]["hash"] = lines[2]["prev_hash"] = sha256(
        json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
    body = {name: value for name, value in lines[2].items() if name not in ("hash", "mac")}
    lines[2]["hash"] = sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mend_manifest(packed)
    code, said = check(packed)
    assert (code, "bus/relayed-1.jsonl, line 2: prev_hash mismatch" in said) == (1, True), said


def rewritten(folder: Path, *, number: int) -> str:
    """Change an event, and link all after it anew; return the hash of the last."""
    path = folder / "events.jsonl"
    lines = path.read_bytes().splitlines()
    events = [parse(line) for line in lines]
    events[number] = events[number]._replace(source=b"somebody-else")
    for at in range(number, len(events)):
        prev = events[at - 1].hash if at else events[0].prev_hash
        linked = events[at]._replace(prev_hash=prev)
        events[at] = linked._replace(hash=link_hash(*linked[:6]))
    path.write_bytes(b"".join(to_json(event) + b"\n" for event in events))
    return events[-1].hash.decode()


def test_events_that_were_written_anew_as_a_whole_end_with_another_hash(packed: Path) -> None:
    head = json.loads((packed / "heads.json").read_text())["events"]["head"]
    hash_ = rewritten(packed, number=1)
    mend_manifest(packed)
    code, said = check(packed)
    assert code == 1
    assert f"events.jsonl ends with the hash {hash_}, and heads.json names {head['hash']}" in said


def test_a_pack_that_was_made_anew_as_a_whole_is_consistent_and_contradicts_what_was_noted(packed: Path) -> None:
    head = json.loads((packed / "heads.json").read_text())["events"]["head"]
    digest = sha256((packed / "manifest.json").read_bytes()).hexdigest()
    noted = ("--expect", f"{head['event_id']}:{head['hash']}", "--manifest", digest)
    code, said = check(packed, *noted)
    assert (code, "\nintact, and as noted  the pack of " in said) == (0, True), said
    assert f"\nhead      {head['event_id']}:{head['hash']}\nmanifest  {digest}\n" in said
    assert "It does not show who made the pack, or when" in said.splitlines()[-1]

    hash_ = rewritten(packed, number=1)
    replaced(packed, "heads.json", head["hash"].encode(), hash_.encode())
    mend_manifest(packed)
    code, said = check(packed)
    assert code == 0
    assert "consistent, not compared" in said
    assert "or that it was not made\nanew as a whole" in said
    for arguments in (noted[:2], noted[2:], noted):
        code, said = check(packed, *arguments)
        assert (code, "\nbroken  the pack of" in said, "was noted" in said) == (1, True, True), said


def test_what_cannot_be_compared_is_said_with_exit_code_2(packed: Path) -> None:
    first = json.loads((packed / "heads.json").read_text())["events"]["before"]["event_id"]
    for arguments, why in (
        (["--nonsense"], "unknown argument '--nonsense'"),
        (["more"], "unknown argument 'more'"),
        (["--expect"], "--expect needs a value"),
        (["--expect", "4417:deadbeef"], "is not ID:HASH"),
        (["--manifest", "dead"], "is not a SHA-256"),
        (["--key", "nowhere"], "nowhere"),
        (["--expect=1:" + "0" * 64], f"the pack begins with event #{first + 1}, after the noted #1"),
    ):
        if first < 2 and "after the noted" in why:
            continue
        code, said = check(packed, *arguments)
        assert (code, why in said) == (2, True), said
    code, said = check(packed, "--expect", f"{10**9}:" + "0" * 64)
    assert (code, "was noted, and the events end to" in said) == (1, True), said
    assert check(packed, "--help")[0] == 0


def test_an_old_python_is_told_what_the_check_needs() -> None:
    text = (ROOT / "src/audit_stream/pack/check.py").read_text()
    tree = ast.parse(text, feature_version=(3, 8))  # a newer form would be a SyntaxError there, before any sentence
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [alias.name for alias in imports[0].names] == ["sys"]
    guard = tree.body.index(imports[0]) + 1
    assert isinstance(tree.body[guard], ast.If)
    old = text.replace("sys.version_info < (3, 10)", "sys.version_info < (9, 0)")
    done = subprocess.run([sys.executable, "-I", "-S", "-"], input=old, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("check.py needs Python 3.10 or newer; this is Python 3.")


def test_a_pack_is_for_its_owner_alone(tmp_path: Path, typed: Typing) -> None:
    bus = write(tmp_path / "b.jsonl", "one")
    out = tmp_path / "p.zip"
    out.write_bytes(b"")
    out.chmod(0o644)
    assert typed("evidence", "--offline", "--bus", bus.bus_path, "--out", out).code == 0
    assert out.stat().st_mode & 0o777 == 0o600


def test_parts_that_are_missing_or_added_and_wrong_keys_are_found(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# comment\nk:{SECRET}\n")
    code, said = check(packed, "--key", str(tmp_path / "keys"))
    assert code == 1
    assert "bus/local.jsonl, line 1: it is not signed with one of the keys" in said
    assert "signatures checked" in said
    (tmp_path / "keys").write_text(f"k:{'00' * 32}\n")
    assert "says that it is signed with the key 'k', and it is not" in check(packed, "--key", str(tmp_path / "keys"))[1]
    (packed / "more.txt").write_text("x")
    (packed / "VERIFY.md").unlink()
    code, said = check(packed)
    assert code == 1
    assert "more.txt is not in the manifest" in said
    assert "VERIFY.md is missing" in said
    (packed / "manifest.json").unlink()
    assert check(packed)[0] == 2


def test_a_pack_of_a_local_log_needs_no_server_and_holds_the_time_asked_for(tmp_path: Path, typed: Typing) -> None:
    bus = BusWriter(tmp_path / "b.jsonl", fsync="never")
    for hour in (1, 2, 4, 3, 5):  # the clock was set back
        bus.post("a", "b", "c", str(hour), timestamp=f"2026-01-01T0{hour}:00:00Z")
    flags = ["--since", "2026-01-01T02:00:00Z", "--until", "2026-01-01T04:00:00Z"]
    out = tmp_path / "p.zip"
    done = typed("evidence", "--offline", "--bus", bus.bus_path, *flags, "--out", out)
    assert (done.code, done.json()["events"], done.json()["lines"]) == (0, 0, 2)
    shutil.unpack_archive(out, tmp_path / "p")
    assert [json.loads(line)["message"] for line in (tmp_path / "p/bus/b.jsonl").read_text().splitlines()] == [
        "2",
        "4",
        "3",
    ]
    assert check(tmp_path / "p")[0] == 0


def test_a_log_that_does_not_hold_is_packed_with_that_verdict(tmp_path: Path, typed: Typing) -> None:
    bus = write(tmp_path / "b.jsonl", "one", "two", "three")
    bus.bus_path.write_bytes(bus.bus_path.read_bytes().replace(b"two", b"ten"))
    done = typed("evidence", "--offline", "--bus", bus.bus_path, "--out", tmp_path / "p.zip")
    assert (done.code, done.json()["intact"]) == (1, False)
    shutil.unpack_archive(tmp_path / "p.zip", tmp_path / "p")
    verdict = json.loads((tmp_path / "p/verdict.json").read_text())
    assert verdict["bus"][0]["whole_log"]["reason"] == "line 2: hash mismatch"
    assert check(tmp_path / "p")[0] == 1


def test_what_cannot_be_packed_leaves_no_pack(spine: ServerProcess, tmp_path: Path, typed: Typing) -> None:
    out = tmp_path / "p.zip"
    for arguments, code, said in [
        (["--offline"], 2, "--offline needs a log"),
        (["--since", "soon"], 2, "--since: 'soon' is not a time; write it like -1h"),
        (["--since", "2099-01-01T00:00:00Z", "--url", spine.url], 1, "no event was committed in that time"),
        (["--url", "http://127.0.0.1:1"], 1, "no server at"),
        (["--offline", "--bus", "nowhere"], 2, "nowhere cannot be read"),
        (["--offline", "--bus", "nowhere", "--pin", "nowhere"], 2, "--pin: nowhere cannot be read"),
    ]:
        done = typed("evidence", "--out", out, *arguments)
        assert (done.code, said in done.err) == (code, True), done.err
        assert list(tmp_path.iterdir()) == []


# --- from the chain back to a log


def export(spine: ServerProcess, events: list[dict[str, Any]], out: Path, typed: Typing) -> None:
    first, last = events[0]["event_id"], events[-1]["event_id"]
    done = typed("export", "--format", "bus", "--from", first, "--to", last, "--out", out, "--url", spine.url)
    assert done.code == 0, done.err


def test_a_relayed_log_is_exported_byte_for_byte(
    spine: ServerProcess, new_events: Events, log: BusWriter, typed: Typing, tmp_path: Path
) -> None:
    aside = log.rotate()
    log.post("agent-1", "all", "STATUS", "four")
    relay(log.bus_path, spine.url)
    export(spine, new_events(), tmp_path / "back.jsonl", typed)
    assert (tmp_path / "back.jsonl").read_bytes() == aside.read_bytes() + log.bus_path.read_bytes()


def test_any_chain_becomes_a_bus_with_a_line_for_each_event(
    spine: ServerProcess, new_events: Events, tmp_path: Path, typed: Typing
) -> None:
    one, other = write(tmp_path / "1", "one", "two"), write(tmp_path / "2", "three", name="agent-2")
    relay(one.bus_path, spine.url)
    spine.post({"kind": "request_denied", "source": "gateway", "payload": {"a": "ü"}}).raise_for_status()
    relay(other.bus_path, spine.url)
    events = new_events()
    export(spine, events, tmp_path / "back.jsonl", typed)
    messages = BusWriter(tmp_path / "back.jsonl").read_all()
    assert [message.message for message in messages if message.from_id != "gateway"] == ["one", "two", "three"]
    assert messages[2][1:4] == ("gateway", "all", "request_denied")
    assert json.loads(messages[2].message) == events[2]
    assert verify([tmp_path / "back.jsonl"]).valid
    assert (tmp_path / "back.jsonl").read_bytes().startswith(one.bus_path.read_bytes())
