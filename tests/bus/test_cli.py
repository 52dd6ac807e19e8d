"""audit-stream bus …, as it is typed."""

import json
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit_stream.bus import BusWriter, generate_secret, verify
from tests.bus.typed import Typing
from tests.client.front import front_of
from tests.e2e.terminal import command, on_terminal, running
from tests.harness import ServerProcess, clean_environ

Events = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def bus(path: Path) -> BusWriter:
    """Six messages, an hour apart."""
    found = BusWriter(path, fsync="never")
    for number in range(6):
        type_ = "DENIED" if number == 4 else "STATUS"
        time = f"2026-03-20T0{number}:00:00Z"
        found.post(f"agent-{number % 2}", "all", type_, f"step {number}\n🎉", timestamp=time)
    return found


# --- verify


def test_verify_ends_with_0_on_an_intact_bus_and_tells_its_head(bus: BusWriter, typed: Typing) -> None:
    done = typed("bus", "verify", bus.bus_path)
    head = bus.head()
    assert done.code == 0
    assert done.json()["head"] == {"seq": 6, "hash": head.hash.decode()}
    assert (done.json()["valid"], done.json()["checked"], done.json()["signatures"]) == (True, 6, "not checked")
    held = typed("bus", "verify", bus.bus_path, "--expect", f"6:{head.hash.decode()}")
    assert (held.code, held.json()["expected"]["holds"]) == (0, True)


def test_verify_ends_with_1_on_a_tampered_bus_and_names_the_line(bus: BusWriter, typed: Typing) -> None:
    bus.bus_path.write_bytes(bus.bus_path.read_bytes().replace(b"step 3", b"step 9"))
    done = typed("bus", "verify", bus.bus_path)
    assert done.code == 1
    body = done.json()
    assert (body["valid"], body["line"], body["checked"]) == (False, 4, 3)
    assert body["reason"] == "line 4: hash mismatch"


def test_a_pin_finds_lines_that_were_cut_off_at_the_end(bus: BusWriter, typed: Typing, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    assert typed("bus", "verify", bus.bus_path, "--pin", pin).code == 0
    bus.post("agent-1", "all", "STATUS", "more")
    assert typed("bus", "verify", bus.bus_path, "--pin", pin).code == 0
    assert pin.read_text().startswith("7:")
    whole = bus.bus_path.read_bytes().splitlines(keepends=True)
    bus.bus_path.write_bytes(b"".join(whole[:5]))
    done = typed("bus", "verify", bus.bus_path, "--pin", pin)
    assert (done.code, done.json()["valid"]) == (1, True)
    assert done.json()["pin"]["reason"] == (
        "chain is shorter than the pinned head: it ends at line #5, and #7 is pinned"
    )
    assert pin.read_text().startswith("7:")


def test_of_a_rotated_bus_the_files_are_given_in_order(bus: BusWriter, typed: Typing) -> None:
    first = f"1:{next(bus.messages()).hash}"
    aside = bus.rotate()
    assert typed("bus", "verify", aside, bus.bus_path).json()["checked"] == 7
    assert typed("bus", "verify", bus.bus_path, "--expect", f"6:{verify([aside]).head.hash.decode()}").code == 0
    done = typed("bus", "verify", bus.bus_path, "--expect", first)
    assert done.code == 2
    assert "the file begins behind line #6, and #1 is pinned: give the files before it as well" in done.err
    assert typed("bus", "verify", aside, bus.bus_path, "--expect", first).code == 0


def test_with_a_key_signatures_are_checked_and_missing_ones_do_not_hold(path: Path, typed: Typing) -> None:
    keys = path.with_name("keys")
    assert typed("bus", "keygen", keys, "--id", "k1").code == 0
    assert typed("bus", "post", path, "signed", "--from", "a", "--key", keys).code == 0
    assert typed("bus", "keygen", keys, "--id", "k2").code == 0
    assert typed("bus", "post", path, "signed", "--from", "a", "--key", keys).code == 0
    body = typed("bus", "verify", path, "--key", keys).json()
    assert (body["signatures"], body["keys"], body["unsigned"]) == ("checked", {"k1": 1, "k2": 1}, 0)
    typed("bus", "post", path, "unsigned", "--from", "a")
    assert typed("bus", "verify", path).code == 0
    assert typed("bus", "verify", path, "--policy", "strict").code == 1
    assert typed("bus", "verify", path, "--key", keys).json()["reason"] == "line 3: it is not signed"
    assert typed("bus", "verify", path, "--key", keys, "--policy", "warn").code == 0
    again = typed("bus", "keygen", keys, "--id", "k2")
    assert (again.code, "has a key 'k2' already" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "cannot tell: nowhere cannot be read: No such file"),
        (["."], "cannot tell: . cannot be read: Is a directory"),
        (["FILE", "--key", "nowhere"], "cannot tell: key: nowhere cannot be read"),
        (["FILE", "--expect", "6"], "write it as ID:HASH"),
        (["FILE", "--policy", "lax"], "lax"),
        ([], "FILE"),
    ],
)
def test_what_cannot_be_told_ends_with_2(bus: BusWriter, typed: Typing, arguments: list[str], said: str) -> None:
    done = typed("bus", "verify", *(bus.bus_path if word == "FILE" else word for word in arguments))
    assert (done.code, done.out) == (2, b"")
    assert said in done.err


def test_a_person_is_told_the_verdict_in_words(bus: BusWriter) -> None:
    code, shown = on_terminal("bus", "verify", str(bus.bus_path))
    assert code == 0
    assert "intact" in shown
    assert "6 lines" in shown
    assert f"--expect 6:{bus.head().hash.decode()}" in shown
    bus.bus_path.write_bytes(bus.bus_path.read_bytes().replace(b"step 3", b"step 9"))
    code, shown = on_terminal("bus", "verify", str(bus.bus_path))
    assert code == 1
    assert "broken at line 4" in shown


# --- reading


def said(lines: list[Any]) -> list[str]:
    return [line["message"].partition("\n")[0] for line in lines]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ([], ["step 0", "step 1", "step 2", "step 3", "step 4", "step 5"]),
        (["--actor", "agent-1"], ["step 1", "step 3", "step 5"]),
        (["--type", "DENIED"], ["step 4"]),
        (["--to", "nobody"], []),
        (["--since", "2026-03-20T04:00:00+01:00", "--until", "2026-03-20T05:00:00Z"], ["step 3", "step 4"]),
        (["--actor", "agent-0", "--limit", "2"], ["step 2", "step 4"]),
    ],
)
def test_query_finds_the_messages_for_which_every_filter_holds(
    bus: BusWriter, typed: Typing, filters: list[str], found: list[str]
) -> None:
    done = typed("bus", "query", bus.bus_path, *filters)
    assert done.code == 0
    assert said(done.lines()) == found
    assert done.out in bus.bus_path.read_bytes() or filters


def test_a_line_that_does_not_hold_is_left_out_and_named(bus: BusWriter, typed: Typing) -> None:
    bus.bus_path.write_bytes(bus.bus_path.read_bytes().replace(b"step 3", b"step 9"))
    done = typed("bus", "query", bus.bus_path)
    assert len(done.lines()) == 5
    assert "line 4 is left out: hash mismatch" in done.err


def test_stats_counts_by_type_and_actor(bus: BusWriter, typed: Typing) -> None:
    bus.rotate()
    BusWriter(bus.bus_path, key=generate_secret()).post("agent-7", "all", "NEW", "x")
    body = typed("bus", "stats", bus.bus_path.with_name("bus.jsonl.1")).json()
    assert (body["messages"], body["types"], body["actors"]) == (
        6,
        {"STATUS": 5, "DENIED": 1},
        {"agent-0": 3, "agent-1": 3},
    )
    assert (body["first"], body["last"]) == ("2026-03-20T00:00:00Z", "2026-03-20T05:00:00Z")
    body = typed("bus", "stats", bus.bus_path).json()
    assert (body["messages"], body["own_lines"], sum(body["keys"].values())) == (1, 1, 1)
    assert body["head"] == {"seq": 8, "hash": bus.head().hash.decode()}
    assert typed("bus", "stats", bus.bus_path, "--type", "OLD").json()["messages"] == 0


@pytest.mark.parametrize("verb", ["query", "stats"])
def test_a_file_that_is_not_there_and_a_wrong_time_end_with_2(bus: BusWriter, typed: Typing, verb: str) -> None:
    done = typed("bus", verb, "nowhere")
    assert (done.code, "nowhere cannot be read: No such file" in done.err) == (2, True)
    done = typed("bus", verb, bus.bus_path, "--since", "yesterday")
    assert (done.code, "--since: 'yesterday' is not an RFC 3339" in done.err) == (2, True)


def test_tail_follows_through_rotation_and_ends_at_its_limit(bus: BusWriter) -> None:
    arguments = ["bus", "tail", str(bus.bus_path), "--from-start", "--actor", "agent-0", "--limit", "5"]
    with running(*arguments, url="") as tail:
        assert tail.stdout
        shown = [json.loads(tail.stdout.readline()) for _ in range(3)]
        bus.rotate()
        bus.post("agent-0", "all", "STATUS", "behind it")
        bus.post("agent-1", "all", "STATUS", "of no interest")
        bus.rotate()
        bus.post("agent-0", "all", "STATUS", "and behind that")
        shown += [json.loads(line) for line in tail.stdout]
        assert tail.wait(30) == 0
    assert said(shown) == ["step 0", "step 2", "step 4", "behind it", "and behind that"]


# --- .tsv


TSV = b"2026-03-20T00:00:00Z\ta\tall\tSTATUS\tone\\ntwo\nno row at all\n\n"
TSV += b"2026-03-20T00:00:01Z\tb\tall\tLOG\tx\ty\xc3\xa9\n"


@pytest.mark.parametrize("command", [("relay", "--once", "--url", "http://127.0.0.1:1"), ("tail",), ("verify",)])
def test_a_tsv_is_not_followed_relayed_or_verified_and_the_error_says_what_to_do(
    path: Path, typed: Typing, command: tuple[str, ...]
) -> None:
    tsv = path.with_name("messages.tsv")
    tsv.write_bytes(TSV)
    done = typed("bus", command[0], tsv, *command[1:])
    assert (done.code, done.out) == (2, b"")
    assert "is a .tsv file of the published bus, which has no chain" in done.err
    assert f"`audit-stream bus convert {tsv} OUT`" in done.err
    assert [file.name for file in path.parent.iterdir()] == [tsv.name]


def test_a_tsv_of_the_published_bus_is_read_and_converted_with_nothing_lost(path: Path, typed: Typing) -> None:
    tsv = path.with_name("messages.tsv")
    tsv.write_bytes(TSV)
    done = typed("bus", "query", tsv, "--actor", "b")
    assert [line["message"] for line in done.lines()] == ["x\tyé"]
    done = typed("bus", "verify", tsv)
    assert (done.code, "which has no chain; make a bus of it with `audit-stream bus convert" in done.err) == (2, True)
    done = typed("bus", "post", tsv, "x", "--from", "a")
    assert (done.code, "`audit-stream bus convert` makes one of a .tsv file" in done.err) == (2, True)
    assert typed("bus", "stats", tsv).json()["types"] == {"STATUS": 1, "LOG": 1}
    done = typed("bus", "convert", tsv, path)
    assert (done.code, done.json()["messages"], done.json()["torn"]) == (0, 2, 1)
    assert [message[:5] for message in BusWriter(path).read_all()] == [
        ("2026-03-20T00:00:00Z", "a", "all", "STATUS", "one\\ntwo"),
        ("2026-03-20T00:00:01Z", "b", "all", "LOG", "x\tyé"),
    ]
    assert verify([path]).valid
    assert b'"message":"no row at all"' in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tsv.read_bytes() == TSV


def test_convert_writes_over_nothing_and_leaves_nothing_half_written(bus: BusWriter, typed: Typing) -> None:
    tsv = bus.bus_path.with_name("messages.tsv")
    tsv.write_bytes(TSV)
    before = bus.bus_path.read_bytes()
    done = typed("bus", "convert", tsv, bus.bus_path)
    assert (done.code, "is there already" in done.err) == (2, True)
    assert bus.bus_path.read_bytes() == before
    done = typed("bus", "convert", bus.bus_path, bus.bus_path.with_name("new"))
    assert (done.code, "is no five-column .tsv" in done.err) == (2, True)
    assert not bus.bus_path.with_name("new").exists()


def test_post_reads_the_message_from_standard_input(path: Path) -> None:
    subprocess.run(
        command("bus", "post", str(path), "-", "--from", "a"), env=clean_environ(), input=b"one\ntwo", check=True
    )
    assert BusWriter(path).read_all()[0].message == "one\ntwo"


def test_post_refuses_by_field_and_in_one_line(path: Path, typed: Typing) -> None:
    done = typed("bus", "post", path, "", "--from", "a")
    assert (done.code, done.err) == (1, "audit-stream: message: it is empty")
    path.write_text("my thesis\n")
    done = typed("bus", "post", path, "x", "--from", "a")
    assert (done.code, "is no bus and stays as it is" in done.err) == (2, True)


# --- relay


def test_relay_once_says_what_it_did_and_what_waits(
    spine: ServerProcess, new_events: Events, bus: BusWriter, typed: Typing
) -> None:
    mapping = ["--map", "DENIED=request_denied", "--source", "laptop"]
    done = typed("bus", "relay", bus.bus_path, "--url", "http://127.0.0.1:1", "--once", *mapping)
    assert (done.code, done.json()["left"]) == (1, 6)
    done = typed("bus", "relay", bus.bus_path, "--url", spine.url, "--once", *mapping)
    assert (done.code, done.json()) == (0, {"stored": 6, "refused": 0, "left": 0, "reason": None})
    assert [event["kind"] for event in new_events()] == ["other"] * 4 + ["request_denied", "other"]
    assert {event["source"] for event in new_events()} == {"laptop"}
    done = typed("bus", "relay", bus.bus_path, "--map", "STATUS", "--once")
    assert (done.code, "--map: 'STATUS' is not written like" in done.err) == (2, True)


def test_relay_follows_the_bus_until_sigterm(spine: ServerProcess, new_events: Events, path: Path) -> None:
    bus = BusWriter(path, fsync="never")
    bus.post("agent-0", "all", "STATUS", "first")
    with running("bus", "relay", str(path), url=spine.url) as relay:
        assert relay.stdout
        assert json.loads(relay.stdout.readline())["stored"] == 1
        bus.rotate()
        bus.post("agent-0", "all", "STATUS", "later")
        stored = 0
        while stored < 2:
            stored += json.loads(relay.stdout.readline())["stored"]
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(30) == 0
    assert [event["payload"]["seq"] for event in new_events()] == [1, 2, 3]


def test_a_token_that_is_given_goes_along(spine: ServerProcess, bus: BusWriter, typed: Typing) -> None:
    with front_of(spine.url) as front:
        typed("bus", "relay", bus.bus_path, "--url", front.url, "--once", "--token", "abc")
        assert {seen.headers["authorization"] for seen in front.seen} == {"Bearer abc"}


def test_the_help_of_bus_names_every_command(typed: Typing) -> None:
    from audit_stream.cli.bus import bus as group

    shown = typed("bus", "--help").out.decode()
    assert all(name in shown for name in group.commands)
