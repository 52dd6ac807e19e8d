"""What `check.py` says of the events in a pack: which part of the chain they are, and how many of them hold."""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from audit_stream import chain
from audit_stream.chain import START, Head
from audit_stream.event import to_json
from audit_stream.pack import check
from audit_stream.pack.check import scope
from tests.unit.drafts import drafted, linked

CHAIN = 12


@pytest.mark.parametrize(
    ("first", "last", "whole", "said"),
    [
        (1, 4417, 4417, "events #1 to #4417 of a chain of 4417"),
        (1200, 4417, 4417, "events #1200 to #4417 of a chain of 4417; the 1,199 before are not in the pack"),
        (1, 4000, 4417, "events #1 to #4000 of a chain of 4417; the 417 after are not in the pack"),
        (3, 5, 9, "events #3 to #5 of a chain of 9; the 2 before and the 4 after are not in the pack"),
    ],
)
def test_the_scope_names_what_is_left_out(first: int, last: int, whole: int, said: str) -> None:
    assert scope(first, last, whole) == said


def head_of(head: Head) -> dict[str, object]:
    return {"event_id": head.event_id, "hash": head.hash.decode()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pack of the events #5 to #10 of twelve, unpacked."""
    events = linked(drafted(f'{{"n":{n}}}') for n in range(1, CHAIN + 1))
    heads = [START, *(Head(event.event_id, event.hash) for event in events)]
    (tmp_path / "events.jsonl").write_bytes(b"".join(to_json(event) + b"\n" for event in events[4:10]))
    between = {"before": head_of(heads[4]), "head": head_of(heads[10])}
    (tmp_path / "heads.json").write_text(json.dumps({"events": between, "chain": head_of(heads[CHAIN]), "bus": []}))
    for module in (chain, check):
        shutil.copy(str(module.__file__), tmp_path)
    return tmp_path


def checked(folder: Path) -> tuple[int, list[str]]:
    """Make the manifest fit, then check, as somebody does who changed a part."""
    names = ("events.jsonl", "heads.json", "chain.py", "check.py")
    parts = [{"name": name, "sha256": sha256((folder / name).read_bytes()).hexdigest()} for name in names]
    (folder / "manifest.json").write_text(json.dumps({"parts": parts, "made_at": "today", "events": True}))
    command = [sys.executable, "-I", "-S", "check.py"]
    done = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def changed(folder: Path, old: bytes, new: bytes) -> None:
    path = folder / "events.jsonl"
    before = path.read_bytes()
    assert before.count(old) == 1
    path.write_bytes(before.replace(old, new))


SCOPE = "scope   events #5 to #10 of a chain of 12; the 4 before and the 2 after are not in the pack"


def test_a_pack_of_a_part_says_which_part_it_is(folder: Path) -> None:
    code, said = checked(folder)
    assert code == 0, said
    assert SCOPE in said
    assert "ok      events.jsonl: 6 events, to #10" in said


def test_of_a_broken_pack_it_says_how_many_there_are_and_how_many_hold(folder: Path) -> None:
    changed(folder, b'{"n":8}', b'{"n":0}')
    code, said = checked(folder)
    assert code == 1
    assert "BROKEN  events.jsonl: hash mismatch at event #8; 6 events, the first 3 hold" in said
    assert SCOPE in said


def test_of_a_pack_with_a_line_that_is_not_an_event_it_says_the_same(folder: Path) -> None:
    changed(folder, b'"event_id":9,', b"")
    code, said = checked(folder)
    assert code == 1
    (broken,) = [line for line in said if line.startswith("BROKEN")]
    assert broken.startswith("BROKEN  events.jsonl, line 5: ")
    assert broken.endswith("; 6 events, the first 4 hold")
