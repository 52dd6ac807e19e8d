import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit_stream import chain
from audit_stream.chain import GENESIS, START, Event, Head, Verdict, link_hash, parse, verify
from audit_stream.event import to_json
from tests.unit.drafts import AT, drafted, linked

TEN = linked(drafted(f'{{"n":{n}}}', timestamp=AT) for n in range(10))


def changed(number: int, **fields: Any) -> list[Event]:
    """The ten events, one of them edited."""
    return [event._replace(**fields) if event.event_id == number else event for event in TEN]


def rehashed(number: int, **fields: Any) -> list[Event]:
    """The ten events, one of them edited and given the hash that fits it."""
    edited = TEN[number - 1]._replace(**fields)
    return changed(number, **fields, hash=link_hash(*edited[:6]))


def swapped(first: int) -> list[Event]:
    events = TEN.copy()
    events[first - 1], events[first] = events[first], events[first - 1]
    return events


BREAKS: dict[str, tuple[list[Event], int, str]] = {
    "payload edited": (changed(6, payload=b'{"n":99}'), 6, "hash mismatch at event #6"),
    "kind edited": (changed(6, kind=b"flag_swapped"), 6, "hash mismatch at event #6"),
    "source edited": (changed(6, source=b"unis"), 6, "hash mismatch at event #6"),
    "timestamp edited": (changed(6, timestamp=b"2026-05-15T03:14:16+00:00"), 6, "hash mismatch at event #6"),
    "hash edited": (changed(6, hash=b"f" * 64), 6, "hash mismatch at event #6"),
    "hash in capitals": (changed(6, hash=TEN[5].hash.upper()), 6, "hash mismatch at event #6"),
    "hash missing": (changed(6, hash=b""), 6, "hash mismatch at event #6"),
    "white space in the payload": (changed(6, payload=b'{"n": 5}'), 6, "hash mismatch at event #6"),
    "payload edited and rehashed": (rehashed(6, payload=b"{}"), 7, "prev_hash mismatch at event #7"),
    "the last one edited": (changed(10, payload=b"{}"), 10, "hash mismatch at event #10"),
    "the first one edited": (changed(1, payload=b"{}"), 1, "hash mismatch at event #1"),
    "prev_hash edited": (changed(6, prev_hash=b"f" * 64), 6, "prev_hash mismatch at event #6"),
    "prev_hash edited and rehashed": (rehashed(6, prev_hash=b"f" * 64), 6, "prev_hash mismatch at event #6"),
    "first not linked to genesis": (rehashed(1, prev_hash=b"1" * 64), 1, "prev_hash mismatch at event #1"),
    "one deleted": ([e for e in TEN if e.event_id != 6], 6, "event_id should be 6, got 7"),
    "the first deleted": (TEN[1:], 1, "event_id should be 1, got 2"),
    "one twice": ([*TEN[:6], *TEN[5:]], 7, "event_id should be 7, got 6"),
    "two swapped": (swapped(6), 6, "event_id should be 6, got 7"),
    "renumbered": (changed(6, event_id=60), 6, "event_id should be 6, got 60"),
    "numbered zero": (changed(6, event_id=0), 6, "event_id should be 6, got 0"),
    "source no UTF-8": (changed(6, source=b"\xff"), 6, "hash mismatch at event #6"),
    "kind no UTF-8": (changed(6, kind=b"\xff"), 6, "hash mismatch at event #6"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_found_where_it_is_and_named(name: str) -> None:
    events, at, reason = BREAKS[name]
    head = Head(events[at - 2].event_id, events[at - 2].hash) if at > 1 else START
    assert verify(events) == Verdict(False, at - 1, at, reason, head)


def test_an_intact_chain_is_valid_and_its_head_is_the_last_event() -> None:
    assert verify(TEN) == Verdict(True, 10, None, None, Head(10, TEN[9].hash))


def test_an_empty_chain_is_valid_and_ends_where_it_starts() -> None:
    assert verify([]) == Verdict(True, 0, None, None, START)
    assert verify([], start=Head(7, b"a" * 64)).head == Head(7, b"a" * 64)


def test_a_part_verifies_from_the_head_before_it() -> None:
    assert verify(TEN[4:], start=Head(4, TEN[3].hash)) == Verdict(True, 6, None, None, Head(10, TEN[9].hash))


def test_a_part_does_not_verify_from_a_head_that_is_not_before_it() -> None:
    assert verify(TEN[4:], start=Head(4, TEN[2].hash)).reason == "prev_hash mismatch at event #5"
    assert verify(TEN[4:], start=Head(3, TEN[2].hash)).reason == "event_id should be 4, got 5"
    assert verify(TEN[4:]).first_break_at == 1


def test_a_chain_whose_newest_events_are_gone_verifies_with_an_older_head() -> None:
    # The limit that the docstring states: only a checkpoint kept elsewhere shows it.
    assert verify(TEN[:7]) == Verdict(True, 7, None, None, Head(7, TEN[6].hash))


def test_it_reads_a_chain_once_and_keeps_none_of_it() -> None:
    assert verify(iter(TEN)).checked == 10


# --- bytes moved between neighbouring fields


def naive_preimage(event: Event) -> bytes:
    """What would be hashed if no field were quoted or checked."""
    head = b'{"event_id":%d,"kind":"%b","payload":%b,' % (event.event_id, event.kind, event.payload)
    return head + b'"prev_hash":"%b","source":"%b","timestamp":"%b"}' % (event.prev_hash, event.source, event.timestamp)


PLAIN = Event(1, AT.encode(), b"other", b"s", b"{}", GENESIS, b"")
MOVES: dict[str, tuple[Event, Event]] = {
    "between source and timestamp": (
        PLAIN._replace(source=b's","timestamp":"x', timestamp=b"y"),
        PLAIN._replace(source=b"s", timestamp=b'x","timestamp":"y'),
    ),
    "between kind and payload": (
        PLAIN._replace(kind=b'other","payload":"x', payload=b"{}"),
        PLAIN._replace(kind=b"other", payload=b'"x","payload":{}'),
    ),
    "between payload and source": (
        PLAIN._replace(payload=b"{}", source=b's","prev_hash":"%b","source":"t' % GENESIS),
        PLAIN._replace(payload=b'{},"prev_hash":"%b","source":"s"' % GENESIS, source=b"t"),
    ),
}


def hash_of(event: Event) -> bytes:
    try:
        return link_hash(*event[:6])
    except ValueError:
        return b"none"


@pytest.mark.parametrize("name", MOVES)
def test_moving_bytes_to_the_neighbouring_field_changes_the_hash(name: str) -> None:
    one, other = MOVES[name]
    assert one != other
    assert naive_preimage(one) == naive_preimage(other)
    assert hash_of(one) != hash_of(other)


@pytest.mark.parametrize("name", MOVES)
def test_the_hash_of_an_event_does_not_cover_one_with_moved_bytes(name: str) -> None:
    for honest, forged in (MOVES[name], MOVES[name][::-1]):
        assert not verify([forged._replace(hash=hash_of(honest))]).valid
    honest = MOVES[name][0]
    assert verify([honest._replace(hash=hash_of(honest))]).valid


@pytest.mark.parametrize("timestamp", [b'a"b', b"a\\b", b'"', b"\\"])
def test_a_timestamp_that_json_would_escape_is_never_hashed(timestamp: bytes) -> None:
    with pytest.raises(ValueError, match="timestamp"):
        link_hash(1, timestamp, b"other", b"s", b"{}", GENESIS)


# --- parse


@pytest.mark.parametrize("source", ["unit", 'quo"te\\', "é😀", "\u2028", "\x00"])
def test_parse_reads_back_what_to_json_wrote(source: str) -> None:
    (event,) = linked([drafted('{"é":[1.0,-0.0,1e16,null,"\\u0000"]}', source=source)])
    assert parse(to_json(event)) == event
    assert parse(to_json(event).decode()) == event
    assert verify([parse(to_json(event))]).valid


def test_parse_reads_an_event_whose_json_was_written_again() -> None:
    rewritten = json.dumps(json.loads(to_json(TEN[0])), indent=2, sort_keys=True, ensure_ascii=False)
    assert parse(rewritten) == TEN[0]


def edited(**fields: object) -> str:
    return json.dumps(json.loads(to_json(TEN[0])) | fields)


NO_EVENTS: dict[str, str] = {
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "no JSON": "{",
    "nothing": "",
    "event_id a text": edited(event_id="1"),
    "event_id a float": edited(event_id=1.5),
    "event_id true": edited(event_id=True),
    "event_id null": edited(event_id=None),
    "event_id infinite": edited(event_id=float("inf")),
    "timestamp a number": edited(timestamp=1),
    "kind null": edited(kind=None),
    "source a list": edited(source=["s"]),
    "source a lone surrogate": edited(source="\ud800"),
    "hash a number": edited(hash=1),
    "prev_hash null": edited(prev_hash=None),
}


@pytest.mark.parametrize("name", NO_EVENTS)
def test_parse_raises_value_error_for_what_is_no_event(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 the docstring promises no more than the type
        parse(NO_EVENTS[name])


@pytest.mark.parametrize("field", ["event_id", "timestamp", "kind", "source", "payload", "prev_hash", "hash"])
def test_parse_raises_value_error_for_a_missing_field(field: str) -> None:
    body = json.loads(to_json(TEN[0]))
    del body[field]
    with pytest.raises(ValueError, match=field):
        parse(json.dumps(body))


# --- chain.py alone


def on_an_auditors_machine(folder: Path, program: str) -> "subprocess.CompletedProcess[str]":
    """Run a program beside a copy of chain.py, with nothing else of ours and no installed package."""
    assert chain.__file__
    shutil.copy(chain.__file__, folder / "chain.py")
    # -I leaves out this folder too, so the program names it itself.
    start = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + program],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


VERIFY_FILE = """
import chain
with open("events.ndjson", "rb") as lines:
    print(chain.verify(map(chain.parse, lines)))
print(sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names - {"chain", "__main__"}))
"""


@pytest.mark.parametrize(
    ("events", "says"),
    [(TEN, str(verify(TEN))), (changed(6, payload=b"{}"), "reason='hash mismatch at event #6'")],
    ids=["intact", "edited"],
)
def test_chain_py_alone_verifies_an_export(tmp_path: Path, events: list[Event], says: str) -> None:
    (tmp_path / "events.ndjson").write_bytes(b"".join(to_json(event) + b"\n" for event in events))
    found = on_an_auditors_machine(tmp_path, VERIFY_FILE)
    assert found.returncode == 0, found.stderr
    verdict, others = found.stdout.splitlines()
    assert says in verdict
    assert others == "[]", "chain.py loaded more than the standard library"


def test_the_program_in_the_docstring_is_the_one_that_ran() -> None:
    assert chain.__doc__
    shown = [line.strip() for line in chain.__doc__.splitlines()]
    assert all(line.strip() in shown for line in VERIFY_FILE.splitlines()[1:4])
