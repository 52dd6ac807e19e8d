"""Evidence files: every change is found at its line and event, by any number of processes."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from audit_stream.chain import START, Event, link_hash
from audit_stream.event import to_json
from audit_stream.evidence import Report, check_file
from audit_stream.exported import format_ms, parse_ms, read_line, to_line

EVENTS = 12


def chain_of(count: int) -> list[Event]:
    events, prev = [], START.hash
    for n in range(1, count + 1):
        fields = (b"2026-05-15T03:14:15Z", b"other", "gäte".encode(), b'{"f":1.0,"n":%d}' % n)
        events.append(Event(n, *fields, prev, link_hash(n, *fields, prev)))
        prev = events[-1].hash
    return events


def lines_of(events: list[Event]) -> list[bytes]:
    return [to_json(event) + b"\n" for event in events]


def nothing(done: int) -> None:
    pass


def checked(path: Path, data: bytes, jobs: int = 1, event_ids: tuple[int, ...] = ()) -> Report:
    path.write_bytes(data)
    return check_file(path, nothing, jobs=jobs, event_ids=event_ids)


def replaced(old: bytes, new: bytes, at: int = 6) -> Callable[[list[bytes]], None]:
    def change(lines: list[bytes]) -> None:
        assert old in lines[at - 1]
        lines[at - 1] = lines[at - 1].replace(old, new)

    return change


def swapped(lines: list[bytes]) -> None:
    lines[5], lines[6] = lines[6], lines[5]


def cut_short(lines: list[bytes]) -> None:
    lines[-1] = lines[-1][:-40]


CHANGES: dict[str, tuple[Callable[[list[bytes]], object], int, int, str]] = {
    "an edited payload": (replaced(b'"n":6', b'"n":7'), 6, 6, "hash mismatch at event #6"),
    "an edited first event": (replaced(b'"n":1}', b'"n":2}', 1), 1, 1, "hash mismatch at event #1"),
    "a line taken out": (lambda lines: lines.pop(5), 6, 6, "event_id should be 6, got 7"),
    "the last line of a half taken out": (lambda lines: lines.pop(6), 7, 7, "event_id should be 7, got 8"),
    "two lines swapped": (swapped, 6, 6, "event_id should be 6, got 7"),
    "a line said twice": (lambda lines: lines.insert(6, lines[5]), 7, 7, "event_id should be 7, got 6"),
    "a strange line": (lambda lines: lines.insert(5, b"hello\n"), 6, 6, "event #6 cannot be read"),
    "a strange field": (replaced(b'{"event_id"', b'{"x":1,"event_id"'), 6, 6, "its fields are not an event's: 'x'"),
    "a field named twice": (replaced(b'"payload":', b'"payload":{},"payload":'), 6, 6, "names a field twice"),
    "a payload that is no object": (replaced(b'{"f":1.0,"n":6}', b"6"), 6, 6, "no JSON object with a payload"),
    "an end cut within a line": (cut_short, 12, 12, "event #12 is cut off"),
    "deep nesting": (lambda lines: lines.insert(5, b"[" * 100_000 + b"\n"), 6, 6, "event #6 cannot be read"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_an_untouched_file_holds(tmp_path: Path, jobs: int, packed: bool) -> None:
    events = chain_of(EVENTS)
    data = b"".join(lines_of(events))
    report = checked(tmp_path / "x", gzip.compress(data) if packed else data, jobs, (0, 3, 11, 99))
    assert (report.verdict.valid, report.verdict.checked, report.first) == (True, EVENTS, 1)
    assert report.verdict.head == (EVENTS, events[-1].hash)
    assert report.hashes == {0: START.hash, 3: events[2].hash, 11: events[10].hash}
    assert report.kinds == {b"other"}


@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found_at_its_line_and_event(tmp_path: Path, name: str, jobs: int) -> None:
    change, line, event_id, says = CHANGES[name]
    lines = lines_of(chain_of(EVENTS))
    change(lines)
    report = checked(tmp_path / "x", b"".join(lines), jobs)
    assert (report.verdict.valid, report.verdict.first_break_at, report.line) == (False, event_id, line)
    assert str(report.verdict.reason).startswith(f"line {line}: ")
    assert says in str(report.verdict.reason)
    assert report.verdict.checked == report.verdict.head.event_id == event_id - 1


def test_every_event_is_found_when_it_is_edited_or_gone_wherever_the_parts_meet(tmp_path: Path) -> None:
    events = chain_of(4)
    for jobs in (2, 4):
        for n in range(1, 5):
            edited = lines_of(events)
            replaced(b'"n":%d' % n, b'"n":0', n)(edited)
            assert checked(tmp_path / "x", b"".join(edited), jobs).line == n
            gone = lines_of(events)
            del gone[n - 1]
            report = checked(tmp_path / "x", b"".join(gone), jobs)
            if n == 1:  # then it is a range, and says so
                assert (report.verdict.valid, report.first) == (True, 2)
            else:
                assert report.line == (n if n < 4 else None)


def test_a_range_is_linked_to_the_event_before_it(tmp_path: Path) -> None:
    events = chain_of(EVENTS)
    report = checked(tmp_path / "x", b"".join(lines_of(events[4:8])), event_ids=(4,))
    assert (report.verdict.valid, report.verdict.checked, report.first) == (True, 4, 5)
    assert report.hashes == {4: events[3].hash}


def test_a_chain_that_begins_with_another_link_than_none_does_not_hold(tmp_path: Path) -> None:
    lines = lines_of(chain_of(2))
    replaced(b"0" * 64, b"f" * 64, 1)(lines)
    assert "prev_hash mismatch at event #1" in str(checked(tmp_path / "x", b"".join(lines)).verdict.reason)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_packed_file_that_is_cut_or_damaged_says_where(tmp_path: Path, jobs: int) -> None:
    data = gzip.compress(b"".join(lines_of(chain_of(5000))), mtime=0)
    for damaged, says in ((data[: len(data) // 2], "is cut off"), (data[:-5], "is cut off")):
        report = checked(tmp_path / "x", damaged, jobs)
        assert not report.verdict.valid
        assert report.line == report.verdict.checked + 1 == report.verdict.first_break_at
        assert f"event #{report.line} {says}" in str(report.verdict.reason)
    middle = len(data) // 2
    assert not checked(tmp_path / "x", data[:middle] + b"\xff" * 9 + data[middle + 9 :], jobs).verdict.valid


def test_what_another_tool_wrote_anew_still_holds_when_it_says_the_same(tmp_path: Path) -> None:
    said = [json.loads(line) for line in lines_of(chain_of(3))]
    said[1]["payload"] = dict(reversed(said[1]["payload"].items()))
    again = [json.dumps(body, separators=(",", ":"), ensure_ascii=body["event_id"] == 2) for body in said]
    again[0] = json.dumps(said[0], sort_keys=True)
    report = checked(tmp_path / "x", "\r\n".join([*again, "", ""]).encode())
    assert (report.verdict.valid, report.verdict.checked) == (True, 3)


def test_an_empty_file_is_an_empty_chain(tmp_path: Path) -> None:
    report = checked(tmp_path / "x", b"")
    assert (report.verdict.valid, report.verdict.head) == (True, START)


def test_a_line_is_read_to_the_very_bytes_it_was_written_from() -> None:
    for event in chain_of(3):
        assert read_line(to_json(event) + b"\n") == (event, None)


# --- commit times


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_commit_times_are_read_the_same_by_any_number_of_processes(tmp_path: Path, jobs: int) -> None:
    events = chain_of(EVENTS)
    lines = [to_line(event, None if event.event_id == 1 else 1000 * event.event_id) + b"\n" for event in events]
    times = checked(tmp_path / "x", b"".join(lines), jobs).times
    assert (times.first_ms, times.last_ms, times.missing, times.problem) == (2000, 12_000, 1, "")
    for late in (4, 6, 8):  # after these the parts meet
        # Later than the next one, which is then the one that runs back.
        moved = [*lines[: late - 1], to_line(events[late - 1], 1000 * late + 1500) + b"\n", *lines[late:]]
        report = checked(tmp_path / "x", b"".join(moved), jobs)
        assert report.verdict.valid
        assert report.times.line == late + 1
        assert "is earlier than that of the line before" in report.times.problem
    mangled = b"".join(lines).replace(b"00:00:06.000Z", b"00:00:06.000+00:00").replace(b"00:00:09", b"00:00:01")
    times = checked(tmp_path / "x", mangled, jobs).times
    assert (times.line, "is not a UTC time" in times.problem) == (6, True)


def test_a_commit_time_is_written_and_read_to_the_millisecond() -> None:
    for ms in (0, 1, 999, 1_700_000_000_123, 253_402_300_799_999):
        assert parse_ms(format_ms(ms)) == ms
    assert format_ms(1_795_255_560_123) == "2026-11-21T10:06:00.123Z"


def test_a_line_with_its_commit_time_is_the_same_event_however_another_tool_wrote_it() -> None:
    for event in chain_of(3):
        line = to_line(event, 1_795_255_560_123)
        again = json.dumps(dict(reversed(json.loads(line).items()))).encode()
        assert read_line(line) == read_line(again) == (event, "2026-11-21T10:06:00.123Z")
    with pytest.raises(ValueError, match="names a field twice"):
        read_line(line[:-1] + b',"committed_at":"2026-11-21T10:06:00.123Z"}')
