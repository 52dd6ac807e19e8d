"""The file under crashes, a full disk, rotation and many writers."""

import errno
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audit_stream.bus import BusWriter, verify
from audit_stream.bus.reading import read_lines
from audit_stream.errors import ChainBroken, Misconfigured
from tests.harness import ROOT, clean_environ


def quick(path: Path) -> BusWriter:
    return BusWriter(path, fsync="never")


def filled(path: Path, count: int = 3) -> BusWriter:
    bus = quick(path)
    for number in range(count):
        bus.post("a", "b", "c", str(number))
    return bus


def said(path: Path) -> list[str]:
    return [message.message for message in quick(path).read_all()]


# --- what a crash leaves


@pytest.mark.parametrize("cut", [1, 20, 150, -2])
@pytest.mark.parametrize("before", [0, 2])
def test_a_torn_last_line_hides_no_neighbour_and_is_kept_as_text(path: Path, cut: int, before: int) -> None:
    filled(path, before + 1)
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[-1][:cut]
    path.write_bytes(b"".join(lines[:-1]) + torn)
    assert not verify([path]).valid
    assert said(path) == [str(number) for number in range(before)]
    quick(path).post("a", "b", "c", "after")
    assert said(path) == [*(str(number) for number in range(before)), "after"]
    verdict = verify([path])
    assert (verdict.valid, verdict.torn, verdict.checked) == (True, 1, before + 2)
    assert list(read_lines(path))[before].content.message == torn.decode()


@pytest.mark.parametrize("torn", [bytes(100), b"\xff\xfe\0", b"\xe2\x82"])
def test_what_a_power_cut_leaves_is_taken_out_and_kept_as_text(path: Path, torn: bytes) -> None:
    filled(path)
    with path.open("ab") as file:
        file.write(torn)
    quick(path).post("a", "b", "c", "after")
    assert said(path) == ["0", "1", "2", "after"]
    assert verify([path]).valid
    assert list(read_lines(path))[3].content.message == torn.decode(errors="backslashreplace")


def test_a_last_line_that_lacks_only_its_end_is_a_message(path: Path) -> None:
    filled(path)
    path.write_bytes(path.read_bytes()[:-1])
    quick(path).post("a", "b", "c", "after")
    assert said(path) == ["0", "1", "2", "after"]
    verdict = verify([path])
    assert (verdict.valid, verdict.torn) == (True, 0)


def test_half_a_line_that_a_full_disk_took_is_taken_back(path: Path) -> None:
    bus = filled(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            bus.post("a", "b", "c", "lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    bus.post("a", "b", "c", "3")
    assert said(path) == ["0", "1", "2", "3"]
    assert verify([path]).valid


def test_a_line_that_did_not_reach_the_disk_is_not_said_to_be_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bus = BusWriter(path)
    bus.post("a", "b", "c", "0")
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        bus.post("a", "b", "c", "1")
    monkeypatch.undo()
    assert path.read_bytes() == before
    bus.post("a", "b", "c", "1")
    assert said(path) == ["0", "1"]


@pytest.mark.parametrize(("fsync", "syncs"), [("always", 3), ("never", 0)])
def test_always_syncs_each_post_and_never_none(
    path: Path, fsync: str, syncs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", seen.append)
    bus = BusWriter(path, fsync=fsync)  # type: ignore[arg-type]
    bus.post("a", "b", "c", "0")
    bus.post("a", "b", "c", "1")
    assert len(seen) == syncs  # two lines, and the directory that got a new name


# --- what somebody did


@pytest.mark.parametrize("text", ["my thesis\n", "my thesis", '{"a":1}\n', "\n", "a\tb\tc\td\te\n"])
def test_a_file_that_is_something_else_stays_as_it_is(path: Path, text: str) -> None:
    path.write_text(text)
    bus = quick(path)
    for _ in range(2):
        with pytest.raises(Misconfigured, match=r"bus\.jsonl is no bus and stays as it is"):
            bus.post("a", "b", "c", "d")
    assert path.read_text() == text


def test_nothing_is_appended_to_a_file_that_was_cut_while_it_was_written_to(path: Path) -> None:
    bus = filled(path)
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:2])
    os.truncate(path, len(kept))
    for _ in range(2):
        with pytest.raises(ChainBroken, match=r"was cut: it ended with line 3"):
            bus.post("a", "b", "c", "d")
    assert path.read_bytes() == kept


def test_nothing_is_appended_to_a_file_that_was_cut_and_filled_again(path: Path) -> None:
    bus = filled(path)
    os.truncate(path, len(b"".join(path.read_bytes().splitlines(keepends=True)[:1])))
    quick(path).post("a", "b", "c", "x" * 1_000)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(ChainBroken, match=r"was cut: it ended with line 3 .* and was written anew there"):
            bus.post("a", "b", "c", "d")
    assert path.read_bytes() == before


def test_nothing_is_appended_to_another_bus_whose_lines_are_as_long(path: Path) -> None:
    bus, other = filled(path), filled(path.with_name("other"), 4)
    assert path.stat().st_size == path.with_name("other").read_bytes().rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(path.with_name("other").read_bytes())
    for _ in range(2):
        with pytest.raises(ChainBroken, match=r"was cut: it ended with line 3 .*, and was written anew there"):
            bus.post("a", "b", "c", "d")
    assert path.read_bytes() == other.bus_path.read_bytes()


def test_nothing_is_appended_behind_a_last_line_that_was_changed(path: Path) -> None:
    filled(path)
    path.write_bytes(path.read_bytes().replace(b'"message":"2"', b'"message":"7"'))
    before = path.read_bytes()
    bus = quick(path)
    for _ in range(2):
        with pytest.raises(ChainBroken, match="its last line is not what was written: its hash"):
            bus.post("a", "b", "c", "d")
    assert path.read_bytes() == before


def test_a_line_that_does_not_hold_is_left_out_and_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(path, 5)
    path.write_bytes(path.read_bytes().replace(b'"message":"2"', b'"message":"7"'))
    assert said(path) == ["0", "1", "3", "4"]
    assert "line 3 is left out: hash mismatch" in caplog.text


# --- rotation


def test_rotation_keeps_the_chain_and_takes_the_next_free_name(path: Path) -> None:
    bus = filled(path)
    other = quick(path)
    other.post("a", "b", "c", "3")
    files = [bus.rotate(), bus.rotate()]
    other.post("a", "b", "c", "4")
    assert [file.name for file in files] == ["bus.jsonl.1", "bus.jsonl.2"]
    assert said(files[0]) == ["0", "1", "2", "3"]
    assert said(path) == ["4"]
    assert verify([*files, path]).valid
    assert {path.name for path in path.parent.iterdir()} == {"bus.jsonl", "bus.jsonl.1", "bus.jsonl.2"}


def test_a_file_moved_away_by_another_tool_is_gone_on_behind_once(path: Path) -> None:
    writers = [filled(path), quick(path)]
    writers[1].post("a", "b", "c", "3")
    path.rename(path.with_name("elsewhere"))
    for number, bus in enumerate(writers, start=4):
        bus.post("a", "b", "c", str(number))
    assert said(path) == ["4", "5"]
    assert verify([path.with_name("elsewhere"), path]).valid
    assert {path.name for path in path.parent.iterdir()} == {"bus.jsonl", "elsewhere"}


def test_a_crash_between_the_two_steps_of_a_rotation_loses_nothing(path: Path) -> None:
    filled(path)
    path.with_name("bus.jsonl.1").hardlink_to(path)
    bus = quick(path)
    bus.post("a", "b", "c", "3")
    assert bus.rotate().name == "bus.jsonl.1"
    bus.post("a", "b", "c", "4")
    assert verify([path.with_name("bus.jsonl.1"), path]).checked == 6


# --- many writers


def test_threads_share_a_writer_and_lose_nothing(path: Path) -> None:
    bus = quick(path)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: bus.post("a", "b", "c", str(number)), range(400)))
    assert sorted(map(int, said(path))) == list(range(400))
    assert verify([path]).valid


def test_a_writer_that_is_forgotten_leaves_no_file_open(path: Path) -> None:
    bus = filled(path)
    fd = bus._log._fd
    assert os.fstat(fd).st_size
    del bus
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_forked_child_has_locks_of_its_own(path: Path) -> None:
    code = """
import os, sys, threading
from audit_stream.bus import BusWriter
bus = BusWriter(sys.argv[1], fsync="never")
bus.post("parent", "b", "c", "before")
bus._log._threads.acquire()          # as another thread of the parent would hold it at that moment
children = [os.fork() for _ in range(2)]
if 0 in children:
    for number in range(100):
        bus.post(f"child-{children.index(0)}", "b", "c", str(number))
    os._exit(0)
bus._log._threads.release()
for number in range(100):
    bus.post("parent", "b", "c", str(number))
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""
    subprocess.run([sys.executable, "-c", code, path], env=clean_environ(), check=True, timeout=60)
    assert len(said(path)) >= 301
    assert verify([path]).valid


WRITER = """
import sys
from audit_stream.bus import BusWriter
path, name, first, last = sys.argv[1:]
bus = BusWriter(path, fsync="never")
for number in range(int(first), int(last)):
    bus.post(name, "all", "STATUS", str(number))
    print(number, flush=True)
"""
PROCESSES = int(os.environ.get("AUDIT_STREAM_TEST_BUS_PROCESSES", "4"))
LINES = int(os.environ.get("AUDIT_STREAM_TEST_BUS_LINES", "150"))


@pytest.mark.timeout(120 + PROCESSES * LINES // 50)
def test_processes_that_are_killed_and_come_back_lose_and_double_nothing(path: Path) -> None:
    """`make bus` runs it with 8 processes of 2,000 lines."""

    def start(name: str, first: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", WRITER, str(path), name, str(first), str(LINES)]
        return subprocess.Popen(command, env=clean_environ(), cwd=ROOT, stdout=subprocess.PIPE, text=True)

    told = {f"agent-{number}": -1 for number in range(PROCESSES)}
    writers = {name: start(name, 0) for name in told}
    # Each is killed at a moment of its own, wherever it is then.
    for number, (name, writer) in enumerate(writers.items()):
        assert writer.stdout
        while told[name] < (number + 1) * LINES // (PROCESSES + 2):
            told[name] = int(writer.stdout.readline())
        writer.kill()
        rest, _ = writer.communicate()
        told[name] = max([told[name], *map(int, rest.split())])
    posted: dict[str, list[int]] = {name: [] for name in told}
    for message in quick(path).read_all():
        posted[message.from_id].append(int(message.message))
    for name, last in told.items():
        # One more than it said: the kill came between the two.
        assert posted[name] in (list(range(last + 1)), list(range(last + 2)))
    for name, writer in {name: start(name, len(posted[name])) for name in told}.items():
        writer.communicate(timeout=100 + LINES)
        assert writer.returncode == 0, name
    posted = {name: [] for name in told}
    for message in quick(path).read_all():
        posted[message.from_id].append(int(message.message))
    assert posted == {name: list(range(LINES)) for name in told}
    verdict = verify([path])
    assert verdict.valid
    assert verdict.checked == PROCESSES * LINES + verdict.torn
    assert all(json.loads(line) for line in path.read_text().splitlines())


MEGABYTES = int(os.environ.get("AUDIT_STREAM_TEST_BUS_MB", "12"))


@pytest.mark.timeout(120 + MEGABYTES)
def test_a_large_file_is_read_and_verified_in_constant_memory(path: Path) -> None:
    """`make bus` runs it with 2 GB."""
    from audit_stream.bus.line import Draft, link
    from audit_stream.chain import START, Head

    head = START
    drafts = [Draft("2026-01-01T00:00:00Z", "agent-1", "all", "STATUS", "x" * 4_000)] * 100
    with path.open("wb") as file:
        while file.tell() < MEGABYTES * 1_000_000:
            lines = link(drafts, head, None)
            file.write(b"".join(line.text() + b"\n" for line in lines))
            head = Head(lines[-1].seq, lines[-1].hash)
    code = """
import resource, sys
from audit_stream.bus import BusWriter
bus = BusWriter(sys.argv[1])
bus.post("a", "b", "c", "behind it all")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
verdict = bus.verify()
assert verdict.valid
assert verdict.checked == bus.message_count()
print(verdict.checked, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
"""
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, check=True)
    checked, grown_mb = done.stdout.split()
    assert int(checked) == head.event_id + 1
    assert float(grown_mb) < 8
