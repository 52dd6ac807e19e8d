"""The spool: events that wait on this machine's disk for the spine, in the order they were handed in.

    PATH           one PublishRequest a line, each with its idempotency key, behind a line that names this filling
    PATH.cursor    how much of this filling is appended
    PATH.refused   what the server refused for good, one object a line, with the reason
    PATH.lock      held by the process that drains

Any number of processes and threads may share one. Whoever writes holds a lock on PATH and syncs before it says
that an event is kept, so where a crash can leave it, and who repairs it:

    while a line is written     the line was not yet promised; `_mended` ends it, and draining puts it aside
    after the server's answer,  the cursor is behind; the same lines are sent again under the same keys,
    before the cursor moved     and the server answers with the first receipts
    after the last line, before the cursor is at the end; the next drain empties the file
    the file was emptied
"""

import fcntl
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

from audit_stream.errors import Misconfigured

_HEADER = b'{"audit_stream_spool":1,'


class Line(NamedTuple):
    text: bytes
    end: int
    """Where the next one begins, in bytes from the start of the file."""
    filling: str
    """Which filling it is of. An emptied file begins a new one, and old cursors say nothing about it."""


class Spool:
    """All methods wait for the disk, and for other processes' writes; none waits for a drain."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises Misconfigured when events could not be kept there, or the file is something else."""
        self.path = Path(path).absolute()
        self.refused_path, self._cursor_path, self._lock_path = (
            self.path.with_name(self.path.name + suffix) for suffix in (".refused", ".cursor", ".lock")
        )
        try:
            with self._locked() as file:
                self._seek(file)
            for beside in (self._lock_path, self.refused_path):
                os.close(_open(beside))
            _sync_directory(self.path.parent)
        except OSError as error:
            raise Misconfigured(
                f"spool: {error.filename or self.path} cannot be written: {error.strerror}."
                " Events could not be kept while the server is away; choose another path, or mend this one."
            ) from error

    def is_empty(self) -> bool:
        try:
            return self.path.stat().st_size == 0
        except FileNotFoundError:
            return True

    def put(self, lines: Sequence[bytes]) -> None:
        """Keep the lines, all or none; on return they are on disk. Raises OSError."""
        with self._locked() as file:
            size = file.seek(0, os.SEEK_END)
            header = b"" if size else b'%b"id":"%b"}\n' % (_HEADER, uuid4().hex.encode())
            try:
                _write(file, header + b"".join(b"%b\n" % line for line in lines))
            except OSError:
                # The disk is full: half a line would only be in the way.
                os.ftruncate(file.fileno(), size)
                raise

    # --- draining

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether this is the one that drains, until the block ends. Does not wait for another one."""
        fd = _open(self._lock_path)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def peek(self, *, count: int, size_bytes: int) -> list[Line]:
        """The next lines, at least one unless there are none; then the file is emptied. Only for who is `alone`."""
        with self._locked() as file:
            filling, found, at = self._seek(file), list[Line](), file.tell()
            enough = at + size_bytes
            while len(found) < count and at < enough and (text := file.readline()):
                at += len(text)
                found.append(Line(text.removesuffix(b"\n"), at, filling))
            if not found:
                file.truncate(0)
                os.fsync(file.fileno())
            return found

    def advance(self, line: Line) -> None:
        """Everything up to and with this line is settled."""
        fresh = self._cursor_path.with_name(self._cursor_path.name + ".new")
        fresh.unlink(missing_ok=True)
        with open(_open(fresh), "wb") as file:
            _write(file, json.dumps({"filling": line.filling, "offset": line.end}).encode())
        # A rename that a power cut undoes leaves the older cursor: lines are sent again, and stored once.
        fresh.replace(self._cursor_path)

    def refuse(self, line: Line, reason: str) -> None:
        """Put the line aside with its reason, once even if this process ends before the cursor has moved."""
        text = line.text.decode(errors="backslashreplace")
        entry = json.dumps({"reason": reason, "filling": line.filling, "end": line.end, "event": text}).encode() + b"\n"
        with open(_open(self.refused_path), "r+b") as file:
            last = b"".join(deque(file, maxlen=1))
            if not _is_about(last, line):
                _write(file, entry if last.endswith(b"\n") or not last else b"\n" + entry)
        self.advance(line)

    def left(self) -> int:
        """How many lines wait."""
        with self._locked() as file:
            self._seek(file)
            return sum(1 for _ in file)

    # --- the file

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Open the spool and wait until nobody else has; a line that a crash cut short is ended first."""
        is_new = not self.path.exists()
        with open(_open(self.path), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if is_new:
                _sync_directory(self.path.parent)
            if not _mended(file):
                raise Misconfigured(f"spool: {self.path} is not a spool and stays as it is; choose another path")
            yield file

    def _seek(self, file: BinaryIO) -> str:
        """Go to the first line that is not settled; return the name of the filling."""
        filling = file.readline().decode(errors="replace").strip()
        try:
            cursor = json.loads(self._cursor_path.read_bytes())
            if cursor["filling"] == filling:
                file.seek(max(file.tell(), int(cursor["offset"])))
        except FileNotFoundError:
            pass  # nothing was drained yet
        except (ValueError, KeyError, TypeError) as error:
            raise Misconfigured(
                f"spool: {self._cursor_path} is damaged: {error!r}. Without it everything in the spool is sent"
                " again, and what was appended within the server's AUDIT_STREAM_IDEMPOTENCY_TTL is not stored twice."
            ) from error
        return filling


def _open(path: Path) -> int:
    # O_APPEND as well as the lock: whoever writes without asking can still not overwrite what is kept.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _write(file: BinaryIO, text: bytes) -> None:
    # Past the file object: its buffer would offer what a full disk refused once more, when it is closed.
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(file.fileno(), rest) :]
    os.fsync(file.fileno())


def _mended(file: BinaryIO) -> bool:
    """End the last line where a crash cut it short, and go to the start. False, and untouched, for another file."""
    first = file.readline()
    if first.startswith(_HEADER) and first.endswith(b"\n"):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            _write(file, b"\n")
    elif first.startswith(_HEADER) or _HEADER.startswith(first.rstrip(b"\0")):
        file.truncate(0)  # the first line was never finished, so nothing was ever promised
    else:
        return False
    file.seek(0)
    return True


def _is_about(entry: bytes, line: Line) -> bool:
    try:
        found = json.loads(entry)
        return bool(found["filling"] == line.filling and found["end"] == line.end)
    except (ValueError, KeyError, TypeError):
        return False


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
