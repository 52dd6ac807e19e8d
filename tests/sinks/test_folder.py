"""The sinks of files: days, sizes, packing, crashes at each step, full disks, and the one who may write."""

import errno
import gzip
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from audit_stream.chain import START
from audit_stream.evidence import check_file
from audit_stream.sinks import folder as folder_module
from audit_stream.sinks.cursor import SIZE_BYTES, standing
from audit_stream.sinks.folder import FolderSink
from audit_stream.sinks.sink import SinkFailed
from tests.sinks.chains import chained, done, fill, folder_sink, head_of, ids_in, lines_in, numbered

DAYS = ("2026-05-14", "2026-05-15", "2026-05-16")
EVENTS = numbered(9)


@pytest.fixture(params=["purview", "trust", "jsonl"])
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def sink(tmp_path: Path, name: str) -> FolderSink:
    return folder_sink(name, tmp_path)


def file_of(path: Path, name: str, day: str = "20260515") -> Path:
    return path / name / f"{ {'purview': 'audit', 'trust': 'trust', 'jsonl': 'events'}[name] }_{day}.jsonl"


def cursor_of(path: Path) -> Path:
    (found,) = path.rglob("*.cursor")
    return found


def ids(path: Path) -> list[int]:
    """All event_ids, file by file."""
    return [event_id for found in ids_in(path).values() for event_id in found]


# --- days and sizes


def test_each_event_is_in_the_file_of_its_day_in_utc(tmp_path: Path, name: str, sink: FolderSink) -> None:
    at = ["2026-05-15T23:59:59.999+00:00", "2026-05-16T00:00:00+00:00", "2026-05-15T23:30:00-01:00"]
    at += ["2026-05-16T00:30:00+01:00"]
    fill(sink, chained([({}, "other", "s", time) for time in at]))
    first, second = (file_of(tmp_path, name, day).name for day in ("20260515", "20260516"))
    assert ids_in(tmp_path) == {first: [1, 4], second: [2, 3]}


def test_what_comes_late_goes_to_its_own_day_and_more_days_than_files_may_be_open(
    tmp_path: Path, sink: FolderSink
) -> None:
    days = [f"2026-05-{day:02d}" for day in range(1, 20)]
    fill(sink, numbered(60, days=days))
    assert [len(found) for found in ids_in(tmp_path).values()] == [4] * 3 + [3] * 16
    assert all(found == sorted(found) for found in ids_in(tmp_path).values())


def test_by_size_a_new_file_begins_when_one_is_full_and_each_is_evidence(tmp_path: Path) -> None:
    sink = folder_sink("jsonl", tmp_path, JSONL_ROTATE="1K")
    fill(sink, EVENTS[:5], EVENTS[5:7])
    fill(folder_sink("jsonl", tmp_path, JSONL_ROTATE="1K"), EVENTS[7:])
    found = ids_in(tmp_path)
    assert ids(tmp_path) == list(range(1, 10))
    assert list(found) == [f"events_{first[0]:012d}.jsonl" for first in found.values()]
    assert len(found) == 3
    for path in tmp_path.rglob("*.jsonl"):
        assert check_file(path, lambda _: None).verdict.valid


# --- crashes


def test_it_goes_on_behind_its_cursor(tmp_path: Path, sink: FolderSink) -> None:
    assert fill(sink, EVENTS[:4]).behind == START
    assert fill(sink, EVENTS[4:]) == (head_of(EVENTS[3]), head_of(EVENTS[3]))
    assert ids(tmp_path) == list(range(1, 10))
    assert standing(cursor_of(tmp_path))[:2] == (9, EVENTS[8].hash.decode())


@pytest.mark.parametrize("days", [DAYS[:1], DAYS], ids=["one day", "three days"])
@pytest.mark.parametrize("upto", range(4, 10))
def test_lines_that_the_cursor_does_not_count_yet_are_not_written_twice(
    tmp_path: Path, sink: FolderSink, days: tuple[str, ...], upto: int
) -> None:
    events = numbered(9, days=days)
    fill(sink, events[:4])
    before = cursor_of(tmp_path).read_bytes()
    fill(sink, events[4:upto])
    cursor_of(tmp_path).write_bytes(before)
    position = fill(sink, events[4:7], events[7:])
    assert (position.behind, position.newest) == (head_of(events[3]), head_of(events[upto - 1]))
    assert sorted(ids(tmp_path)) == list(range(1, 10))
    assert all(found == sorted(found) for found in ids_in(tmp_path).values())


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", range(8))
def test_a_crash_at_any_step_of_a_write_leaves_no_gap_and_no_duplicate(
    tmp_path: Path, sink: FolderSink, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = numbered(9, days=DAYS)
    fill(sink, events[:3])
    steps = iter(range(100))
    real_write, real_fsync, real_pwrite = os.write, os.fsync, os.pwrite

    def write(fd: int, text: bytes) -> int:
        if next(steps) == step:
            real_write(fd, bytes(text)[: len(text) // 2])
            raise Killed
        return real_write(fd, text)

    def fsync(fd: int) -> None:
        if next(steps) == step:
            raise Killed
        real_fsync(fd)

    def pwrite(fd: int, text: bytes, offset: int) -> int:
        if next(steps) == step:
            raise Killed
        return real_pwrite(fd, text, offset)

    for function in (write, fsync, pwrite):
        monkeypatch.setattr(os, function.__name__, function)
    try:
        fill(sink, events[3:])
        assert next(steps) <= step
    except Killed:
        pass
    monkeypatch.undo()
    position = fill(sink)
    fill(sink, events[position.behind.event_id :])
    assert sorted(ids(tmp_path)) == list(range(1, 10))
    assert all(found == sorted(found) for found in ids_in(tmp_path).values())


def test_a_torn_line_that_the_cursor_counts_is_written_again(tmp_path: Path, name: str, sink: FolderSink) -> None:
    fill(sink, EVENTS)
    path = file_of(tmp_path, name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    position = fill(sink)
    assert position.behind == head_of(EVENTS[7])
    fill(sink, EVENTS[8:])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"", b"{", bytes(SIZE_BYTES), b'{"event_id":"x"}'])
def test_without_a_cursor_the_files_tell_what_they_hold(tmp_path: Path, sink: FolderSink, damage: bytes) -> None:
    fill(sink, EVENTS[:5])
    cursor_of(tmp_path).write_bytes(damage)
    position = fill(sink, EVENTS)
    assert (position.behind, position.newest) == (START, head_of(EVENTS[4]))
    assert ids(tmp_path) == list(range(1, 10))


def test_lines_of_another_program_in_the_same_file_stay(tmp_path: Path, name: str, sink: FolderSink) -> None:
    theirs = b'{"time":"2026-05-15T00:00:00Z","operationName":"before us"}\n'
    path = file_of(tmp_path, name)
    path.parent.mkdir()
    path.write_bytes(theirs)
    fill(sink, EVENTS[:2])
    fill(sink, EVENTS[2:])
    assert path.read_bytes().startswith(theirs)
    assert len(lines_in(tmp_path)[path.name]) == 10


# --- full disks, and files that somebody takes away


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_whole_lines_and_loses_nothing(tmp_path: Path, name: str, sink: FolderSink) -> None:
    fill(sink, EVENTS[:3])
    path = file_of(tmp_path, name)
    before = path.read_bytes()
    with files_up_to(len(before) + 50), pytest.raises(OSError, match="File too large"):
        fill(sink, EVENTS[3:])
    assert path.read_bytes() == before
    position = fill(sink)
    assert position.behind == head_of(EVENTS[2])
    fill(sink, EVENTS[3:])
    assert ids(tmp_path) == list(range(1, 10))


def test_what_a_failed_sync_may_have_lost_is_written_again(
    tmp_path: Path, name: str, sink: FolderSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sink, EVENTS[:3])
    before = file_of(tmp_path, name).read_bytes()

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        fill(sink, EVENTS[3:])
    monkeypatch.undo()
    assert file_of(tmp_path, name).read_bytes() == before
    assert fill(sink).behind == head_of(EVENTS[2])


def test_a_file_that_was_moved_away_is_begun_anew_and_not_filled_again(
    tmp_path: Path, name: str, sink: FolderSink
) -> None:
    async def moved() -> None:
        await sink.open()
        await sink.write(EVENTS[:5])
        file_of(tmp_path, name).rename(tmp_path / "archived")
        await sink.write(EVENTS[5:7])
        await sink.close()

    done(moved())
    file_of(tmp_path, name).rename(tmp_path / "archived too")
    fill(sink, EVENTS[7:])
    assert ids(tmp_path) == [8, 9]
    assert (tmp_path / "archived").read_bytes().count(b"\n") == 5
    assert (tmp_path / "archived too").read_bytes().count(b"\n") == 2


def test_only_one_writes_at_a_time(tmp_path: Path, sink: FolderSink) -> None:
    async def both() -> None:
        await sink.open()
        assert (await sink.standing()).at_work
        other = folder_sink(sink.name, tmp_path)
        with pytest.raises(SinkFailed, match="another projection writes to"):
            await other.open()
        await other.close()
        await sink.close()
        assert not (await sink.standing()).at_work
        await other.open()
        await other.close()

    done(both())


# --- packing


def packed(tmp_path: Path, name: str) -> FolderSink:
    return folder_sink(name, tmp_path, LOG_GZIP="on")


def unpacked(path: Path) -> list[int]:
    with gzip.open(path) as lines:
        return [found.get("event_id") or found["properties"]["event_id"] for found in map(json.loads, lines)]


def test_files_of_past_days_are_packed_and_today_s_is_not(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_today", lambda: "20260516")
    fill(packed(tmp_path, name), numbered(9, days=DAYS))
    assert ids_in(tmp_path) == {file_of(tmp_path, name, "20260516").name: [3, 6, 9]}
    assert unpacked(file_of(tmp_path, name, "20260514").with_suffix(".jsonl.gz")) == [1, 4, 7]


def test_what_comes_late_for_a_packed_day_is_added_to_it_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_today", lambda: "20260516")
    plain = file_of(tmp_path, name)
    gz = plain.with_suffix(".jsonl.gz")
    fill(packed(tmp_path, name), EVENTS[:4])
    cursor_of(tmp_path).unlink()
    fill(folder_sink(name, tmp_path), EVENTS[:7])
    assert (unpacked(gz), ids(tmp_path)) == ([1, 2, 3, 4], [5, 6, 7])
    left = plain.read_bytes()
    fill(packed(tmp_path, name), EVENTS[7:])
    assert (unpacked(gz), ids(tmp_path)) == (list(range(1, 10)), [])
    # A crash came between the packing and the removal of what is packed.
    plain.write_bytes(left)
    fill(packed(tmp_path, name))
    assert (unpacked(gz), ids(tmp_path)) == (list(range(1, 10)), [])


def test_full_files_are_packed_and_the_one_that_is_added_to_is_not(tmp_path: Path) -> None:
    sink = folder_sink("jsonl", tmp_path, JSONL_ROTATE="1K", LOG_GZIP="on")
    fill(sink, EVENTS)
    assert len(list(tmp_path.rglob("*.gz"))) == 2
    assert ids(tmp_path)[-1] == 9
    fill(sink, numbered(3, behind=head_of(EVENTS[-1])))
    kept = [event_id for path in sorted(tmp_path.rglob("*.gz")) for event_id in unpacked(path)]
    assert kept + ids(tmp_path) == list(range(1, 13))
