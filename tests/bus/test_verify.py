"""Every way to tamper with a bus is found, by line number."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audit_stream.bus import BusWriter, Keyring, PolicyLevel, verify
from audit_stream.bus.__main__ import main
from audit_stream.bus.keys import Key
from audit_stream.bus.line import Draft, Line, link, parse
from audit_stream.chain import START, Head

KEY = Key("k", bytes(range(32)))
OTHER = Key("k", bytes(32))
KEYS = Keyring([KEY])
LINES = 9

Lines = list[bytes]
Tampering = Callable[[Lines], Lines]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    bus = BusWriter(tmp_path / "bus.jsonl", key=KEY, fsync="never")
    for number in range(1, LINES + 1):
        bus.post("agent-1", "all", "STATUS", f"step {number}")
    return bus.bus_path


def tamper(path: Path, tampering: Tampering) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(tampering(lines)))


def anew(lines: Lines, start: int, key: Key | None) -> Lines:
    """Write the lines from `start` on anew, all links right, signed with this key."""
    kept = lines[:start]
    before = parse(kept[-1].rstrip(b"\n")) if kept else None
    head = Head(before.seq, before.hash) if before else START
    contents = [parse(line.rstrip(b"\n")).content for line in lines[start:]]
    return kept + [line.text() + b"\n" for line in link(contents, head, key)]


def edited(line: bytes, key: Key | None) -> bytes:
    """Another message in its place, with a hash that is right."""
    found: Line = parse(line.rstrip(b"\n"))
    (forged,) = link([found.content._replace(message="step 0")], Head(found.seq - 1, found.prev_hash), key)
    return forged.text() + b"\n"


FORGED = link([Draft("2026-01-01T00:00:00Z", "a", "b", "c", "d")], START, KEY)[0].text() + b"\n"

TAMPERINGS: dict[str, tuple[Tampering, int, str]] = {
    "edited": (lambda ls: [*ls[:3], ls[3].replace(b"step 4", b"step 0"), *ls[4:]], 4, "hash mismatch"),
    "edited, its time": (lambda ls: [*ls[:3], ls[3].replace(b'"timestamp":"2', b'"timestamp":"1'), *ls[4:]], 4, "hash"),
    "edited, its hash made anew": (lambda ls: [*ls[:3], edited(ls[3], KEY), *ls[4:]], 5, "prev_hash mismatch"),
    "edited, its last line": (lambda ls: [*ls[:8], ls[8].replace(b"step 9", b"step 0")], 9, "hash mismatch"),
    "reformatted": (
        lambda ls: [*ls[:3], ls[3].replace(b'":"', b'": "'), *ls[4:]],
        4,
        "form in which lines are written",
    ),
    "deleted, the first": (lambda ls: ls[1:], 1, "seq should be 1, got 2"),
    "deleted, in the middle": (lambda ls: ls[:4] + ls[5:], 5, "seq should be 5, got 6"),
    "deleted, several": (lambda ls: ls[:2] + ls[7:], 3, "seq should be 3, got 8"),
    "inserted, a copy": (lambda ls: [*ls[:4], ls[2], *ls[4:]], 5, "seq should be 5, got 3"),
    "inserted, forged": (lambda ls: [*ls[:4], FORGED, *ls[4:]], 5, "seq should be 5, got 1"),
    "inserted, a blank line": (lambda ls: [*ls[:4], b"\n", *ls[4:]], 5, "it is not JSON: Expecting value"),
    "inserted, at the start": (lambda ls: [FORGED, *ls], 2, "seq should be 2, got 1"),
    "inserted, not JSON": (lambda ls: [*ls[:4], b"hello\n", *ls[4:]], 5, "it is not JSON: Expecting value"),
    "reordered": (lambda ls: [*ls[:2], ls[3], ls[2], *ls[4:]], 3, "seq should be 3, got 4"),
    "cut within a line": (lambda ls: [*ls[:5], ls[5][:40]], 6, "it is cut off"),
    "cut at the end of its line": (lambda ls: [*ls[:8], ls[8][:-1]], 9, "it is cut off"),
    "joined": (lambda ls: [*ls[:2], ls[2].rstrip(b"\n"), *ls[3:]], 3, "it is not JSON: Extra data"),
    "written anew without a key": (lambda ls: anew(ls[:5] + ls[6:], 5, None), 6, "it is not signed"),
    "written anew with another key": (lambda ls: anew(ls[:5] + ls[6:], 5, OTHER), 6, "says that it is signed"),
    "the signature removed": (
        lambda ls: [*ls[:3], ls[3].partition(b',"key"')[0] + b"}\n", *ls[4:]],
        4,
        "hash mismatch",
    ),
    "another line's signature": (lambda ls: [*ls[:3], ls[3][:-67] + ls[4][-67:], *ls[4:]], 4, "says that it is signed"),
    "NULs": (lambda ls: [*ls[:3], bytes(len(ls[3])), *ls[4:]], 4, ""),
}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_tampering_is_found_at_the_first_line_that_does_not_hold(path: Path, how: str) -> None:
    tampering, line, why = TAMPERINGS[how]
    tamper(path, tampering)
    verdict = verify([path], keys=KEYS, policy=PolicyLevel.STRICT)
    assert not verdict.valid
    assert (verdict.line, verdict.checked, verdict.first_break_at) == (line, line - 1, line)
    assert verdict.reason is not None
    assert verdict.reason.startswith(f"line {line}: ")
    assert why in verdict.reason


@pytest.mark.parametrize("how", [how for how in TAMPERINGS if "key" not in how and "signature" not in how])
def test_it_is_found_without_the_key_as_well(path: Path, how: str) -> None:
    tampering, line, _ = TAMPERINGS[how]
    tamper(path, tampering)
    assert verify([path]).line == line


def test_each_single_bit_that_is_flipped_is_found(path: Path) -> None:
    whole = path.read_bytes()
    line = whole.splitlines(keepends=True)[4]
    begins = whole.index(line)
    for at in range(len(line)):
        changed = bytearray(whole)
        changed[begins + at] ^= 1 << (at % 8)
        path.write_bytes(changed)
        verdict = verify([path], keys=KEYS)
        assert not verdict.valid, at
        assert verdict.line == 5, at


def test_an_untouched_bus_is_intact_and_says_what_it_holds(path: Path) -> None:
    verdict = verify([path], keys=KEYS, policy=PolicyLevel.STRICT, asked=[3, 9, 12])
    assert (verdict.valid, verdict.checked, verdict.line, verdict.reason) == (True, LINES, None, None)
    assert verdict.head == BusWriter(path, key=KEY).head()
    assert sorted(verdict.hashes) == [3, 9]
    assert (verdict.start, verdict.unsigned, verdict.torn, dict(verdict.keys)) == (START, 0, 0, {"k": LINES})


def test_whole_lines_cut_off_at_the_end_leave_no_trace_but_in_a_hash_kept_elsewhere(path: Path) -> None:
    tamper(path, lambda lines: lines[:6])
    verdict = verify([path], keys=KEYS, asked=[9])
    assert (verdict.valid, verdict.head.event_id, verdict.hashes) == (True, 6, {})


def test_an_empty_file_is_intact_and_has_no_head(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    verdict = verify([tmp_path / "empty"])
    assert (verdict.valid, verdict.checked, verdict.head) == (True, 0, START)


def test_a_file_without_the_files_before_it_begins_where_it_says(path: Path) -> None:
    bus = BusWriter(path, key=KEY, fsync="never")
    aside = bus.rotate()
    bus.post("agent-1", "all", "STATUS", "after")
    alone = verify([path], keys=KEYS)
    assert (alone.valid, alone.checked, alone.start.event_id) == (True, 2, LINES)
    assert alone.start.hash == verify([aside]).head.hash
    assert verify([aside, path], keys=KEYS).checked == LINES + 2


@pytest.mark.parametrize(
    ("order", "why"), [((1, 0), "seq should be 12, got 1"), ((0, 2), "line 1: seq should be 10, got 12")]
)
def test_files_in_another_order_or_one_missing_are_found(path: Path, order: tuple[int, int], why: str) -> None:
    bus = BusWriter(path, key=KEY, fsync="never")
    files = [bus.rotate()]
    bus.post("agent-1", "all", "STATUS", "after")
    files.append(bus.rotate())
    files.append(path)
    assert verify(files, keys=KEYS).valid
    verdict = verify([files[number] for number in order], keys=KEYS)
    assert not verdict.valid
    assert verdict.file == str(files[order[1]])
    assert why in str(verdict.reason)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{path}"], 0, "intact  9 lines"),
        (["{path}", "--key", "{keys}"], 0, "signed    9, checked"),
        (["{path}", "--expect", "9:{hash}"], 0, "the expected line holds"),
        (["{path}", "--expect", "8:{hash}"], 1, "the expected line does not hold"),
        (["{path}", "{path}"], 1, "line 1: seq should be 10, got 1"),
        (["nowhere"], 2, "cannot tell: nowhere cannot be read: No such file"),
        (["{path}", "--key", "{path}"], 2, "cannot tell: key: "),
    ],
)
def test_the_module_says_the_same_where_nothing_else_is_installed(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "keys").write_text(f"k:{KEY.secret.hex()}")
    known = {"path": path, "keys": tmp_path / "keys", "hash": verify([path]).head.hash.decode()}
    assert main([argument.format(**known) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert said in out + err


def test_the_module_refuses_an_expectation_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bus.jsonl", "--expect", "9"])
    assert "write it as SEQ:HASH" in capsys.readouterr().err
