"""A file of lines that is only ever added to. Each line says which event it is of, and they stand in that order.

So the file itself tells what it holds, and no event gets into it twice:

    a crash while lines are written    the last one is torn; `mended` cuts it off when the file is opened again
    a crash before the sync            some lines may be missing or torn; those behind the first such are cut off
    the disk is full                   the file is cut back to what it was; whoever writes tries again later
"""

import gzip
import os
import re
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from audit_stream.atomic import sync_folder
from audit_stream.chain import Head
from audit_stream.errors import Misconfigured

BLOCK_BYTES = 64 * 1024


class Mended(NamedTuple):
    last: Head | None
    """The event of the last line; None when no line is one of ours."""
    torn: bool
    """Something had to be cut off."""


class Appending:
    """One file, open for adding lines."""

    def __init__(self, path: Path) -> None:
        is_new = not path.exists()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._path = path
        if is_new:
            sync_folder(path.parent)

    def add(self, text: bytes) -> int:
        """Add whole lines, all or none; on return they are on disk. The size of the file in bytes."""
        before = os.fstat(self._fd).st_size
        try:
            rest = memoryview(text)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except OSError:
            # After a failed sync nobody knows which of the new bytes are on disk: all of them are written anew.
            os.ftruncate(self._fd, before)
            raise
        return before + len(text)

    def is_in_place(self) -> bool:
        """Whether it is still the file of its name: somebody may have moved it away."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._fd)


class _Named(msgspec.Struct):
    """Where a line names its event: at the top, or among the properties."""

    event_id: int = 0
    hash: str = ""
    properties: "_Named | None" = None


_line = msgspec.json.Decoder(_Named)


def head_of(line: bytes) -> Head | None:
    """The event that a line is of; None for another program's line. Raises ValueError for what is no line."""
    try:
        found = _line.decode(line)
    except msgspec.ValidationError:
        return None
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    named = found.properties or found
    return Head(named.event_id, named.hash.encode()) if named.event_id and named.hash else None


def mended(path: Path, after: int) -> Mended:
    """Look at the end of the file, cut off what is no whole line, and return the event of the last line.

    Lines of events behind `after` may have been written without a sync, so each of them is looked at; those up to
    it were synced. Raises OSError, and Misconfigured for a file of something else, which stays as it is.
    """
    with path.open("r+b") as file:
        start, lines = _from_the_last_synced(file, after)
        last: Head | None = None
        at = start
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                last = head_of(line) or last
            except ValueError:
                break
            at += len(line)
        size = file.seek(0, os.SEEK_END)
        if at == size:
            return Mended(last, torn=False)
        if at == 0 and not _is_beginning_of_ours(lines[0]):
            raise Misconfigured(f"{path} holds something else than JSON lines and stays as it is; move it away")
        file.truncate(at)
        os.fsync(file.fileno())
        return Mended(last, torn=True)


def _from_the_last_synced(file: IO[bytes], after: int) -> tuple[int, list[bytes]]:
    """Where the last line that was surely synced begins, and the lines from there on; the start without one."""
    size = file.seek(0, os.SEEK_END)
    length = BLOCK_BYTES
    while True:
        begin = max(0, size - length)
        file.seek(begin)
        lines = re.findall(rb"[^\n]*\n|[^\n]+", file.read())
        if begin == 0:
            return 0, lines
        # The block may begin within a line.
        begin += len(lines.pop(0))
        index = _last_synced(lines, after)
        if index is not None:
            return begin + sum(map(len, lines[:index])), lines[index:]
        length *= 8


def _last_synced(lines: list[bytes], after: int) -> int | None:
    """The place of our last line that was synced; of another program's last whole line where none at all is ours."""
    others: int | None = None
    ours = False
    for index in range(len(lines) - 1, -1, -1):
        try:
            head = head_of(lines[index])
        except ValueError:
            continue
        if head is None:
            others = index if others is None and lines[index].endswith(b"\n") else others
        elif head.event_id <= after and lines[index].endswith(b"\n"):
            return index
        else:
            ours = True
    return None if ours else others


def _is_beginning_of_ours(line: bytes) -> bool:
    return line.startswith(b"{") or not line.strip(b"\0")


def last_packed(path: Path) -> Head | None:
    """The event of the last line of a .gz."""
    last: Head | None = None
    with gzip.open(path) as lines:
        for line in lines:
            last = head_of(line) or last
    return last
