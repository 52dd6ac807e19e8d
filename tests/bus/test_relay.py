"""The relay: every line of a log becomes one event, through kills, rotation, and days without a server."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit_stream.bus import BusWriter, verify
from audit_stream.bus.backlog import Backlog
from audit_stream.bus.line import Line, from_object
from audit_stream.chain import GENESIS
from audit_stream.client import Drained
from audit_stream.errors import ChainBroken, Misconfigured
from audit_stream.sources import bus as sources_bus
from audit_stream.sources.bus import Mapped, Relay
from tests.client.front import front_of
from tests.harness import ServerProcess, clean_environ

Events = Callable[[], list[dict[str, Any]]]
NOWHERE = "http://127.0.0.1:1"


def quick(path: Path) -> BusWriter:
    return BusWriter(path, fsync="never")


def post(path: Path, *numbers: int) -> None:
    bus = quick(path)
    for number in numbers:
        bus.post(f"agent-{number % 2}", "all", "STATUS", str(number))


def relay(path: Path, url: str, mapped: Mapped | None = None) -> Drained:
    relaying = Relay(path, url, mapped=(mapped or Mapped()).request_of)
    try:
        return relaying.once()
    finally:
        relaying.close()


def lines_in(events: list[dict[str, Any]]) -> list[bytes]:
    return [from_object(event["payload"]).text() for event in events]


def cursor_of(path: Path) -> Path:
    return path.with_name(path.name + ".cursor")


def aged(path: Path, hours: float) -> None:
    """As if what is in doubt had been sent that long ago."""
    kept = json.loads(cursor_of(path).read_text())
    cursor_of(path).write_text(json.dumps({**kept, "asked_at": time.time() - hours * 3600}))


def test_each_line_is_an_event_whose_payload_is_the_whole_line(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    post(path, 1, 2, 3)
    quick(path).post("agent-é", "all", "DENIED", "🎉\n\t", timestamp="2026-03-20T00:00:00Z")
    drained = relay(path, spine.url, Mapped({"DENIED": "request_denied"}))
    assert (drained.stored, drained.refused, drained.left) == (4, 0, 0)
    events = new_events()
    assert b"".join(line + b"\n" for line in lines_in(events)) == path.read_bytes()
    assert [event["source"] for event in events] == ["agent-1", "agent-0", "agent-1", "agent-é"]
    assert [event["kind"] for event in events] == ["other", "other", "other", "request_denied"]
    assert events[-1]["timestamp"] == "2026-03-20T00:00:00Z"
    assert events[-1]["payload"]["hash"] == verify([path]).head.hash.decode()


def test_source_and_kind_can_be_fixed(spine: ServerProcess, new_events: Events, path: Path) -> None:
    post(path, 1)
    relay(path, spine.url, Mapped({}, "flag_swapped", "laptop-7"))
    assert [(event["kind"], event["source"]) for event in new_events()] == [("flag_swapped", "laptop-7")]


def test_what_was_relayed_is_not_relayed_again_and_what_comes_later_is(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    for number in range(3):
        post(path, number)
        assert relay(path, spine.url).stored == 1
        assert relay(path, spine.url).stored == 0
    assert [event["payload"]["message"] for event in new_events()] == ["0", "1", "2"]


def test_a_copy_of_the_log_that_is_relayed_too_adds_nothing(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    post(path, 1, 2)
    copy = path.with_name("copied")
    copy.write_bytes(path.read_bytes())
    relay(path, spine.url)
    relay(copy, spine.url)
    assert len(new_events()) == 2


def test_while_the_server_is_away_everything_waits(spine: ServerProcess, new_events: Events, path: Path) -> None:
    post(path, 1, 2)
    drained = relay(path, NOWHERE)
    assert (drained.stored, drained.left) == (0, 2)
    assert "no server" in str(drained.reason)
    assert "asked_at" not in cursor_of(path).read_text()  # nothing can have come of it
    assert relay(path, spine.url).stored == 2
    assert len(new_events()) == 2


@pytest.mark.parametrize("hours", [0, 100])
def test_lines_whose_answer_was_lost_days_ago_are_not_stored_twice(
    spine: ServerProcess, new_events: Events, path: Path, hours: int
) -> None:
    post(path, 1, 2, 3)
    with front_of(spine.url, "cut after") as front:
        assert relay(path, front.url).stored == 0
    assert len(new_events()) == 3
    post(path, 4)
    if hours:
        aged(path, hours)
        with front_of(spine.url) as front:
            assert relay(path, front.url).stored == 1
            posted = [seen.body for seen in front.seen if seen.body]
            # They were found in the chain, so that no key had to be remembered.
            assert len(posted) == 1
            assert posted[0].count(b"bus:") == 1
    else:
        assert relay(path, spine.url).stored == 4
    assert [event["payload"]["message"] for event in new_events()] == ["1", "2", "3", "4"]


def test_lines_that_never_arrived_days_ago_are_stored_once(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    post(path, 1, 2)
    with front_of(spine.url, "cut before") as front:
        assert relay(path, front.url).stored == 0
    aged(path, 100)
    assert relay(path, spine.url).stored == 2
    assert len(new_events()) == 2


RELAY = "import sys; from audit_stream.sources.bus import *; Relay(*sys.argv[1:], mapped=Mapped().request_of).once()"


def test_a_relay_that_is_killed_before_its_cursor_moves_stores_nothing_twice(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    post(path, *range(10))
    with front_of(spine.url, "hang") as front:
        process = subprocess.Popen([sys.executable, "-c", RELAY, path, front.url], env=clean_environ())
        assert front.hanging.wait(60)
        process.kill()
        process.wait()
    assert len(new_events()) == 10
    post(path, 10)
    relay(path, spine.url)
    assert [event["payload"]["message"] for event in new_events()] == list(map(str, range(11)))


def test_a_full_disk_is_waited_out_and_nothing_is_stored_twice(
    spine: ServerProcess, new_events: Events, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def told(drained: Drained) -> None:
        seen.append(drained)
        monkeypatch.undo()  # somebody made room
        if drained.stored:
            relaying.stop()

    seen: list[Drained] = []
    post(path, 1, 2)
    monkeypatch.setattr(sources_bus, "STUCK_S", 0)
    relaying = Relay(path, spine.url, mapped=Mapped().request_of)
    monkeypatch.setattr(os, "fsync", full)
    relaying.run(told)
    relaying.close()
    assert ["No space left" in str(drained.reason) for drained in seen] == [True, False]
    assert (seen[0].left, seen[1].stored) == (2, 2)
    assert len(new_events()) == 2


def test_what_waits_is_counted_on_and_not_from_the_start_again(path: Path) -> None:
    read: list[int] = []

    def count(line: Line) -> bytes:
        read.append(line.seq)
        return b"{}"

    backlog = Backlog(path, count)
    post(path, 1, 2)
    assert backlog.left() == 2
    post(path, 3)
    assert backlog.left() == backlog.left() == 3
    assert read == [1, 2, 3]
    backlog.advance(backlog.peek(count=1, size_bytes=1)[0])
    assert backlog.left() == 2
    quick(path).rotate()
    assert backlog.left() == 3


# --- rotation


def test_a_log_that_is_rotated_while_it_is_relayed_loses_no_line(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    bus = quick(path)
    post(path, 1, 2)
    relay(path, spine.url)
    post(path, 3)
    files = [bus.rotate()]
    post(path, 4)
    files.append(bus.rotate())
    post(path, 5)
    relay(path, spine.url)
    whole = b"".join(file.read_bytes() for file in [*files, path])
    assert b"".join(line + b"\n" for line in lines_in(new_events())) == whole
    assert relay(path, spine.url).stored == 0


def test_a_relay_that_comes_late_begins_with_the_oldest_file_there_is(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    post(path, 1)
    quick(path).rotate()
    post(path, 2)
    quick(path).rotate()
    post(path, 3)
    relay(path, spine.url)
    lines = lines_in(new_events())
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3, 4, 5]
    assert json.loads(lines[0])["prev_hash"] == GENESIS.decode()


def test_a_rotated_file_that_is_gone_is_told_unless_all_of_it_was_relayed(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    post(path, 1)
    relay(path, spine.url)
    quick(path).rotate().unlink()
    post(path, 2)
    assert relay(path, spine.url).stored == 2  # what the file begins with, and 2
    post(path, 3)
    quick(path).rotate().unlink()
    with pytest.raises(ChainBroken, match=r"does not go on behind line 3.*the file between is missing"):
        relay(path, spine.url)
    assert len(new_events()) == 3


def test_a_log_that_was_cut_behind_the_cursor_is_told(spine: ServerProcess, path: Path) -> None:
    post(path, 1, 2, 3)
    relay(path, spine.url)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with pytest.raises(ChainBroken, match="was cut: line 3 was read from it"):
        relay(path, spine.url)


# --- what cannot be relayed


def test_a_line_that_does_not_hold_is_put_aside_and_its_neighbours_are_relayed(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    post(path, 1, 2, 3)
    path.write_bytes(path.read_bytes().replace(b'"message":"2"', b'"message":"7"'))
    drained = relay(path, spine.url)
    assert (drained.stored, drained.refused) == (2, 1)
    (entry,) = [json.loads(line) for line in path.with_name("bus.jsonl.refused").read_text().splitlines()]
    assert entry["reason"] == "hash mismatch"
    assert json.loads(entry["event"])["message"] == "7"
    # The gap shows in the chain as well.
    first, third = lines_in(new_events())
    assert json.loads(third)["prev_hash"] != json.loads(first)["hash"]


def test_a_kind_the_server_does_not_know_is_put_aside_with_its_words(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    post(path, 1)
    assert relay(path, spine.url, Mapped({"STATUS": "nonsense"})).refused == 1
    assert "'nonsense' is not a kind" in path.with_name("bus.jsonl.refused").read_text()
    assert new_events() == []


def test_what_was_posted_without_validation_is_relayed_as_well(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    quick(path).post("", "", "", "", timestamp="whenever", validate=False)
    quick(path).post("x" * 300, "b", "c", "d", validate=False)
    assert relay(path, spine.url).stored == 2
    assert [event["source"] for event in new_events()] == ["unknown", "x" * 256]


def test_a_torn_last_line_waits_until_somebody_has_mended_it(
    spine: ServerProcess, new_events: Events, path: Path
) -> None:
    post(path, 1)
    with path.open("ab") as file:
        file.write(b'{"v":1,"seq":2,"time')
    assert relay(path, spine.url).stored == 1
    post(path, 2)
    assert relay(path, spine.url).stored == 2
    assert [event["payload"]["type"] for event in new_events()] == ["STATUS", "bus.torn", "STATUS"]


def test_a_damaged_cursor_is_told_at_start(path: Path) -> None:
    post(path, 1)
    cursor_of(path).write_text("[")
    with pytest.raises(Misconfigured, match=r"bus\.jsonl\.cursor is damaged"):
        relay(path, NOWHERE)


def test_nothing_is_there_yet_and_that_is_no_error(spine: ServerProcess, path: Path) -> None:
    assert relay(path, spine.url) == Drained(stored=0, refused=0, left=0, reason=None)
    assert not path.exists()
