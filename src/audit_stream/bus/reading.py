"""Reading a bus while it is written and rotated, in constant memory. Needs no right to write."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from audit_stream.bus.line import Line, parse
from audit_stream.errors import ChainBroken

MAX_LINE_BYTES = 16 * 1024 * 1024
TAIL_BYTES = 8 * 1024

log = logging.getLogger("audit_stream.bus")


class Raw(NamedTuple):
    """A line as it stands there, whatever it is."""

    number: int
    text: bytes
    end: int
    """Where the next one begins, in bytes from the start of the file."""
    is_whole: bool
    """It has an end. Only the last can be without, and one that is too long."""

    def read(self) -> Line:
        """Raises ValueError when it is not what a writer wrote: changed, cut off, or somebody else's."""
        if not self.is_whole:
            raise ValueError("it is cut off" if len(self.text) < MAX_LINE_BYTES else "it is too long")
        line = parse(self.text)
        if line.computed_hash() != line.hash:
            raise ValueError("hash mismatch")
        return line


def raw_lines(path: str | os.PathLike[str], *, start: int = 0) -> Iterator[Raw]:
    """Yield what is there now, from the byte `start` on. Raises OSError."""
    with opened(path) as (file, size):
        yield from lines_of(file, size, start=start)


def lines_of(file: BinaryIO, size: int, *, start: int = 0) -> Iterator[Raw]:
    file.seek(start)
    number, at = 0, start
    while at < size and (text := file.readline(min(MAX_LINE_BYTES, size - at))):
        number, at = number + 1, at + len(text)
        whole = text.endswith(b"\n")
        yield Raw(number, text[:-1] if whole else text, at, whole)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """Yield the file and how much of it is settled: no line that is just being written. Raises OSError."""
    with Path(path).open("rb") as file:
        yield file, settled_size(file)


def settled_size(file: BinaryIO) -> int:
    # A file system without locks, such as a memory stick's, has no writers either.
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)
        try:
            return os.fstat(file.fileno()).st_size
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
    return os.fstat(file.fileno()).st_size


def read_lines(path: str | os.PathLike[str]) -> Iterator[Line]:
    """Yield the lines that hold by themselves. Each other one is skipped with a warning: it hides no neighbour.

    No verdict: what is missing, added or in another place, only `verify` tells. Raises OSError.
    """
    for raw in raw_lines(path):
        try:
            yield raw.read()
        except ValueError as error:
            log.warning("%s, line %d is left out: %s", path, raw.number, error)


def last_line(fd: int, size: int) -> tuple[bytes, bytes]:
    """The last line that has an end, and what stands behind it."""
    want = TAIL_BYTES
    while True:
        at = max(0, size - want)
        whole, end, fragment = os.pread(fd, size - at, at).rpartition(b"\n")
        _, begins, last = whole.rpartition(b"\n")
        if begins or not at:
            return last if end else b"", fragment
        if want > 2 * MAX_LINE_BYTES:
            raise ChainBroken(f"its last line is longer than {MAX_LINE_BYTES} bytes", at=0)
        want *= 4
