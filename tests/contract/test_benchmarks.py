"""The benchmark command runs and writes its table; what the numbers are is no matter of a test."""

import json
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contents import ROWS
from benchmarks.processes import Child
from benchmarks.table import Line, Target, as_json, as_markdown, as_text, summary
from tests.harness import ROOT, clean_environ


def run_quick(results: Path, *rows: str, generator: str = "") -> dict[str, Any]:
    """Run these rows and return what was written as JSON."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--results", str(results)]
    command += [word for row in rows for word in ("--row", row)]
    command += ["--generator", generator] if generator else []
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environ(), capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((results / "latest.json").read_text())
    for line in found["lines"]:
        assert line["row"] in done.stdout
    return found


@pytest.mark.parametrize(
    ("row", "unit", "generator"), [("no-storage", "requests/s", "bundled"), ("batch", "events/s", "")]
)
def test_one_command_measures_each_side_and_writes_the_table(
    tmp_path: Path, row: str, unit: str, generator: str
) -> None:
    found = run_quick(tmp_path, row, generator=generator)
    assert [line["unit"] for line in found["lines"]] == [unit]
    for line in found["lines"]:
        assert line["ours"][0] > 0
        assert line["theirs"][0] > 0
        assert line["ratio"]["median"] == line["ours"][0] / line["theirs"][0]
        assert line["generator_busy"][0] > 0
    written = (tmp_path / "latest.md").read_text()
    assert written.count("\n| ") == 3  # the columns, their rule, one line
    for fact in ("date", "machine", "python", "servers", "load generator"):
        assert re.search(rf"^- {fact}: .*\w", written, re.MULTILINE)


def test_the_rounds_of_both_sides_are_compared_one_with_one() -> None:
    line = Line("row", "events/s", [10, 30, 20], "peer", [10, 10, 10], Target("≥", 2))
    assert line.ratios == [1, 3, 2]
    assert line.reached
    assert "2× (1..3)" in as_text([line])
    about = json.loads(as_json({}, [line]))["lines"][0]
    assert about["ratio"] == {"median": 2, "min": 1, "max": 3}


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target("≥", 2.1), False),
        (Target("≤", 2.1), True),
        (Target("≤", 1.9), False),
        (Target("=", 20, "value"), True),
        (Target("=", 0, "value"), False),
    ],
)
def test_a_missed_target_stays_in_the_table_as_missed(target: Target, reached: bool) -> None:
    lines = [Line("row", "events/s", [20], "peer", [10], target)]
    assert lines[0].reached is reached
    assert f"| {target} | {'yes' if reached else '**no**'} |" in as_markdown({}, lines)
    assert summary(lines) == f"{int(reached)} of 1 targets reached"


def test_what_is_not_there_counts_as_not_reached() -> None:
    lines = [Line("verify --jobs 2", "events/s", [], "--jobs 1", [], Target("≥", 1.6))]
    assert "not there" in as_text(lines)
    assert summary(lines) == "0 of 1 targets reached"


@pytest.mark.parametrize(
    ("ids", "flaws"),
    [
        ([3, 4, 5, 6], set()),
        ([3, 4, 6], {"lost"}),
        ([3, 4, 5], {"lost"}),
        ([3, 4, 4, 5, 6], {"repeated"}),
        ([3, 5, 4, 6], {"lost", "repeated"}),  # which of the two depends on where it was cut
    ],
)
def test_a_subscriber_counts_what_it_was_not_sent_and_what_it_was_sent_twice(ids: list[int], flaws: set[str]) -> None:
    frames = b"".join(b"event: other\r\nid: %d\r\ndata: {}\r\n\r\n" % event_id for event_id in ids)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        starting = pool.submit(Child, sys.executable, "-m", "benchmarks.subscribers", url, "1", "1")
        stream, _ = server.accept()
        with stream:
            stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n: hello\n\n")
            subscriber = starting.result()
            for at in range(0, len(frames), 7):  # a frame may be cut anywhere
                stream.sendall(frames[at : at + 7])
            counts = subscriber.ask(reach=6, patience=0.5)
            subscriber.close()
    found = {flaw for flaw in ("lost", "repeated") if counts[flaw]}
    assert found <= flaws
    assert bool(found) == bool(flaws)
    assert counts["frames"] == len(ids)


def test_every_part_is_named_in_the_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in ROWS:
        assert name in done.stdout
