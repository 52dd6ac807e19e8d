"""Reading on behind a place, while the log is written to and rotated."""

import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from audit_stream.bus.line import CONTINUED, Line, parse
from audit_stream.bus.reading import MAX_LINE_BYTES, Raw, lines_of, opened
from audit_stream.chain import GENESIS
from audit_stream.errors import ChainBroken

_LOOK_BACK_BYTES = 1 << 20
"""More than any line that was posted."""


class Place(NamedTuple):
    """Behind a line, in whatever file that is by now."""

    first: str = ""
    """Which file: the SHA-256 of its first line. A file that is renamed keeps it."""
    offset: int = 0
    """In bytes from the start of that file."""
    seq: int = 0
    hash: str = GENESIS.decode()
    """Of the last line that held up to here: the next file goes on from it."""


class Step(NamedTuple):
    raw: Raw
    line: Line | None
    """None when it does not hold; then `trouble` says why."""
    trouble: str
    after: Place


class Follower:
    """Steps through a log and the files it was rotated into, `PATH*` in the same folder."""

    def __init__(self, path: str | os.PathLike[str], place: Place | None = None) -> None:
        """Without a place, begin with the oldest file that leads to this one."""
        self.path, self.place = Path(path).absolute(), place

    def read(self, *, count: int, size_bytes: int) -> list[Step]:
        """The next lines, at least one unless there are none now. Moves on behind them.

        Raises ChainBroken when the place is not there any more: the lines between are missing.
        """
        found = self._found()
        while found:
            path, place = found
            steps = _steps(path, place, count, size_bytes)
            if steps is None:
                found = self._found()  # another file took its place just now
                continue
            if steps:
                self.place = steps[-1].after
                return steps
            self.place = place
            found = self._next_file(place) if not _is_same(path, self.path) else None
        return []

    def begin_here(self) -> None:
        """Read only what is appended from now on."""
        self.place = None
        try:
            with opened(self.path) as (file, size):
                place = Place(_first_of(file.readline(MAX_LINE_BYTES)))
                if size > _LOOK_BACK_BYTES:
                    file.seek(size - _LOOK_BACK_BYTES)
                    file.readline()
                    place = place._replace(offset=file.tell())
            for step in _steps(self.path, place, None, size) or ():
                self.place = step.after
        except FileNotFoundError:
            pass  # it is not there yet, and all of it is new then

    def _found(self) -> tuple[Path, Place] | None:
        if self.place is None:
            return self._oldest()
        if not self.place.first:
            return self._at_start(self.path, self.place)
        for path in self._files():
            if identity(path) == self.place.first:
                if path.stat().st_size < self.place.offset:
                    raise ChainBroken(
                        f"{path} was cut: line {self.place.seq} was read from it, and it ends before that",
                        at=self.place.seq,
                    )
                return path, self.place
        return self._next_file(self.place)

    def _next_file(self, place: Place) -> tuple[Path, Place] | None:
        for path in self._files():
            line = _first_line(path)
            if line and line.is_own and line.content.msg_type == CONTINUED and line.prev_hash.decode() == place.hash:
                return self._at_start(path, place)
        if identity(self.path) == "":
            return None  # it was moved away, and nothing was appended since
        raise ChainBroken(
            f"{self.path} does not go on behind line {place.seq}, which was the last that was read: the file between is"
            " missing. Put it back into the same folder; to leave its lines out, remove the cursor",
            at=place.seq + 1,
        )

    def _oldest(self) -> tuple[Path, Place] | None:
        path, line = self.path, _first_line(self.path)
        while line and line.seq > 1:
            before = next((found for found in self._files() if _ends_with(found, line.prev_hash)), None)
            if not before:
                break
            path, line = before, _first_line(before)
        return self._at_start(path, Place())

    def _at_start(self, path: Path, place: Place) -> tuple[Path, Place] | None:
        first = identity(path)
        return (path, Place(first, 0, place.seq, place.hash)) if first else None

    def _files(self) -> Sequence[Path]:
        return [self.path, *sorted(self.path.parent.glob(f"{self.path.name}?*"))]


def _steps(path: Path, place: Place, count: int | None, size_bytes: int) -> list[Step] | None:
    """The lines behind the place; None when this is not the file that the place is in."""
    steps: list[Step] = []
    with opened(path) as (file, size):
        if _first_of(file.readline(MAX_LINE_BYTES)) != place.first:
            return None
        for step in _each(lines_of(file, size, start=place.offset), place):
            steps.append(step)
            if len(steps) == count or step.raw.end - place.offset >= size_bytes:
                break
    return steps


def _each(lines: Iterator[Raw], place: Place) -> Iterator[Step]:
    for raw in lines:
        try:
            line, trouble = raw.read(), ""
            place = Place(place.first, raw.end, line.seq, line.hash.decode())
        except ValueError as error:
            if not raw.is_whole and len(raw.text) < MAX_LINE_BYTES:
                return  # it may still be written
            line, trouble = None, str(error)
            place = place._replace(offset=raw.end)
        yield Step(raw, line, trouble, place)


def _first_of(text: bytes) -> str:
    return sha256(text).hexdigest()[:32] if text.endswith(b"\n") else ""


# Without a lock: what is beside a log may be anything, and held for long. A first line that has an end stays as it is.


def identity(path: Path) -> str:
    """What a file is known by, whatever it is called; nothing while it has no whole line."""
    try:
        with path.open("rb") as file:
            return _first_of(file.readline(MAX_LINE_BYTES))
    except OSError:
        return ""


def _first_line(path: Path) -> Line | None:
    try:
        with path.open("rb") as file:
            text = file.readline(MAX_LINE_BYTES)
        return parse(text[:-1]) if text.endswith(b"\n") else None
    except (OSError, ValueError):
        return None


def _ends_with(path: Path, hash_: bytes) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOOK_BACK_BYTES))
            last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
        return parse(last).hash == hash_
    except (OSError, ValueError):
        return False


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False
