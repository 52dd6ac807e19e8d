"""What a crash can leave at the end of a file, and what is made of it."""

import json
import os
from pathlib import Path
from stat import S_ISDIR

import pytest

from audit_stream.chain import Head
from audit_stream.errors import Misconfigured
from audit_stream.sinks.files import BLOCK_BYTES, Appending, Mended, mended
from tests.sinks.chains import fill, folder_sink, lines_in, numbered

OTHERS = b'{"time":"2026-05-15T00:00:00Z","operationName":"of another program"}\n'


def line(number: int, size: int = 0) -> bytes:
    return b'{"event_id":%d,"hash":"%064d","x":"%b"}\n' % (number, number, b"x" * size)


def head(number: int) -> Head:
    return Head(number, b"%064d" % number)


WHOLE = line(1) + line(2)

ENDS = {
    "nothing": (WHOLE, WHOLE, 2),
    "half a line": (WHOLE + line(3)[:20], WHOLE, 2),
    "a line without its end": (WHOLE + line(3)[:-1], WHOLE, 2),
    "one byte": (WHOLE + b"{", WHOLE, 2),
    "zeros that never reached the disk": (WHOLE + bytes(5000), WHOLE, 2),
    "zeros, then a line that did": (WHOLE + bytes(50) + line(3) + line(4), WHOLE, 2),
    "zeros within a line": (WHOLE + line(3)[:20] + bytes(9) + line(3)[29:] + line(4), WHOLE, 2),
    "only half a line": (line(1)[:20], b"", None),
    "only zeros": (bytes(100), b"", None),
    "empty": (b"", b"", None),
    "another program's lines": (OTHERS * 3, OTHERS * 3, None),
    "half a line behind another program's": (OTHERS * 3 + line(7)[:9], OTHERS * 3, None),
    "another program's lines behind ours": (WHOLE + OTHERS, WHOLE + OTHERS, 2),
    "another program's behind long ones of ours": (
        line(1, BLOCK_BYTES) + line(2) + OTHERS + line(3)[:9],
        line(1, BLOCK_BYTES) + line(2) + OTHERS,
        2,
    ),
    "much of another program's": (OTHERS * 3000 + b"{", OTHERS * 3000, None),
    "a long torn line": (WHOLE + line(3, 3 * BLOCK_BYTES)[:-5], WHOLE, 2),
    "long lines": (WHOLE + line(3, 3 * BLOCK_BYTES), WHOLE + line(3, 3 * BLOCK_BYTES), 3),
    "many lines, then zeros": (
        line(1) * 3000 + line(2, BLOCK_BYTES) + bytes(9),
        line(1) * 3000 + line(2, BLOCK_BYTES),
        2,
    ),
}


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("name", ENDS)
def test_what_a_crash_left_is_cut_off_and_whole_lines_stay(tmp_path: Path, name: str, after: int) -> None:
    left, kept, last = ENDS[name]
    path = tmp_path / "lines.jsonl"
    path.write_bytes(left)
    found = mended(path, after)
    assert (path.read_bytes(), found) == (kept, Mended(head(last) if last else None, torn=left != kept))
    assert mended(path, after) == Mended(found.last, torn=False)


@pytest.mark.parametrize("text", [b"a log of something else\n", b"\x7fELF\x00\x01", b"not JSON, and no end"])
def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(text)
    with pytest.raises(Misconfigured, match=r"lines\.jsonl holds something else .* move it away"):
        mended(path, 0)
    assert path.read_bytes() == text


def test_every_cut_of_a_file_leaves_exactly_the_whole_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    text = line(1) + line(2) + line(3)
    for size in range(len(text) + 1):
        path.write_bytes(text[:size])
        mended(path, 1)
        kept = path.read_bytes()
        assert kept == text[:size][: text.rfind(b"\n", 0, size) + 1]
        assert [json.loads(found)["event_id"] for found in kept.splitlines()] == [1, 2, 3][: kept.count(b"\n")]


def test_a_new_file_s_name_is_synced_before_anything_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was synced without its name is gone after a power cut, and the cursor says that it is there."""
    synced: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append("folder" if S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    fill(folder_sink("trust", tmp_path), numbered(1), numbered(2)[1:])
    assert synced == ["folder", "file", "file"]
    assert len(lines_in(tmp_path)) == 1


def test_a_file_that_was_moved_away_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    file = Appending(path)
    file.add(b"{}\n")
    assert file.is_in_place()
    path.rename(tmp_path / "elsewhere")
    assert not file.is_in_place()
    path.write_bytes(b"")
    assert not file.is_in_place()
    file.close()
