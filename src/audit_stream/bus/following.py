"""Reading on behind a place, while the log is written to and rotated."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from audit_stream.bus.line import CONTINUED, OPENING, Line, parse
from audit_stream.bus.reading import MAX_LINE_BYTES, Raw, lines_of, opened
from audit_stream.bus.tsv import refuse_tsv
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

        Raises ChainBroken when the place is not there any more: the lines between are missing. Raises Misconfigured
        for a .tsv file.
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
        """Read only what is appended from now on. Raises Misconfigured for a .tsv file."""
        self.place = None
        with suppress(FileNotFoundError):  # it is not there yet, and all of it is new then
            while (steps := self._last_steps()) is None:
                pass  # a rotation came in between
            for step in steps:
                self.place = step.after

    def _last_steps(self) -> list[Step] | None:
        refuse_tsv(self.path)
        with opened(self.path) as (file, size):
            place = Place(_first_of(file.readline(MAX_LINE_BYTES)))
            if size > _LOOK_BACK_BYTES:
                file.seek(size - _LOOK_BACK_BYTES)
                file.readline()
                place = place._replace(offset=file.tell())
        return _steps(self.path, place, None, size) if place.first else []

    def _found(self) -> tuple[Path, Place] | None:
        place = self.place
        if place is None:
            return self._settled(self._oldest)
        if not place.first:
            return _at_start(self.path, _beginning(self.path), place)
        return self._settled(lambda: self._file_of(place)) or self._next_file(place)

    def _file_of(self, place: Place) -> tuple[Path, Place] | None:
        for path in self._files():
            first, size = _first_and_size(path)
            if first == place.first:
                if size < place.offset:
                    raise ChainBroken(
                        f"{path} was cut: line {place.seq} was read from it, and it ends before that", at=place.seq
                    )
                return path, place
        return None

    def _next_file(self, place: Place) -> tuple[Path, Place] | None:
        found = self._settled(lambda: self._file_after(place))
        if found or identity(self.path) == "":
            return found  # None: it was moved away, and nothing was appended since
        raise ChainBroken(
            f"{self.path} does not go on behind line {place.seq}, which was the last that was read: the file between is"
            " missing. Put it back into the same folder; to leave its lines out, remove the cursor",
            at=place.seq + 1,
        )

    def _file_after(self, place: Place) -> tuple[Path, Place] | None:
        for path in self._files():
            text = _beginning(path)
            line = _line_of(text)
            if line and line.is_own and line.content.msg_type == CONTINUED and line.prev_hash.decode() == place.hash:
                return _at_start(path, text, place)
        return None

    def _oldest(self) -> tuple[Path, Place] | None:
        path, text = self.path, _beginning(self.path)
        while (line := _line_of(text)) and line.seq > 1:
            prev_hash = line.prev_hash
            before = next((found for found in self._files() if _ends_with(found, prev_hash)), None)
            if not before:
                break
            path, text = before, _beginning(before)
        return _at_start(path, text, Place())

    def _settled(self, look: Callable[[], tuple[Path, Place] | None]) -> tuple[Path, Place] | None:
        """Return what a look finds that no rotation came into: a file that is renamed after the folder was listed is
        not found, although it is there."""
        while True:
            newest = identity(self.path)
            found = look()
            if identity(self.path) == newest:
                return found

    def _files(self) -> Sequence[Path]:
        return [self.path, *sorted(self.path.parent.glob(f"{self.path.name}?*"))]


def _steps(path: Path, place: Place, count: int | None, size_bytes: int) -> list[Step] | None:
    """The lines behind the place; None when this is not, or no longer, the file that the place is in."""
    steps: list[Step] = []
    try:
        with opened(path) as (file, size):
            if _first_of(file.readline(MAX_LINE_BYTES)) != place.first:
                return None
            for step in _each(lines_of(file, size, start=place.offset), place):
                steps.append(step)
                if len(steps) == count or step.raw.end - place.offset >= size_bytes:
                    break
    except FileNotFoundError:
        return None
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


def _at_start(path: Path, beginning: bytes, place: Place) -> tuple[Path, Place] | None:
    """The file that begins like this, from its start on; None while it has no whole line."""
    first = _first_of(beginning)
    if first and not beginning.startswith(OPENING):
        refuse_tsv(path)
    return (path, Place(first, 0, place.seq, place.hash)) if first else None


# Without a lock: what is beside a log may be anything, and held for long. A first line that has an end stays as it is.


def identity(path: Path) -> str:
    """What a file is known by, whatever it is called; nothing while it has no whole line."""
    return _first_of(_beginning(path))


def _first_and_size(path: Path) -> tuple[str, int]:
    """Both of one file, whatever is at the path a moment later."""
    try:
        with path.open("rb") as file:
            return _first_of(file.readline(MAX_LINE_BYTES)), os.fstat(file.fileno()).st_size
    except OSError:
        return "", 0


def _beginning(path: Path) -> bytes:
    """The first line, with its end if it has one."""
    try:
        with path.open("rb") as file:
            return file.readline(MAX_LINE_BYTES)
    except OSError:
        return b""


def _line_of(text: bytes) -> Line | None:
    try:
        return parse(text[:-1]) if text.endswith(b"\n") else None
    except ValueError:
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
