"""The file that lines are appended to, by any number of threads and processes.

Whoever appends holds a lock on the file, reads where it ends, writes with one call behind that, and lets go once the
line is on disk. Where a crash, a full disk or somebody else can leave the file, and who repairs it:

    a line was cut short            it was never promised. The next append takes the fragment out and keeps it, as text,
                                    in a line of its own; one that lacks only its end gets that
    the disk is full                what was written of the line is taken back, and the append fails
    the file was moved away         the next append begins a new file, whose first line goes on in the chain
    it ends before what was         somebody cut it: nothing more is appended by whoever saw that, until a person has
    appended, or its end is damaged looked at it
"""

import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

from audit_stream.atomic import sync_folder
from audit_stream.bus.keys import Key
from audit_stream.bus.line import CONTINUED, OPENING, TORN, Draft, link, parse, written
from audit_stream.bus.reading import MAX_LINE_BYTES, last_line
from audit_stream.bus.stamp import now
from audit_stream.chain import START, Head
from audit_stream.errors import ChainBroken, Misconfigured

Fsync = Literal["always", "never"]

OWN_ID = "audit-stream"

_generation = 0
"""How often this process was forked off."""


def _forked() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_forked)


class Log:
    """One file at one path. Made without touching the disk; every method waits for other writers."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fsync: Fsync = "always",
        key: Key | None = None,
        opening: Callable[[], Draft] | None = None,
    ) -> None:
        """With an `opening`, which an empty file then begins with, an empty file is a new beginning and not a loss."""
        if fsync not in ("always", "never"):
            raise ValueError(f"fsync: {fsync!r} is neither 'always' nor 'never'")
        self.path = Path(path).absolute()
        self._name = str(self.path)
        self._sync, self._key, self._opening = fsync == "always", key, opening
        self._threads, self._generation = threading.Lock(), _generation
        self._fd, self._identity = -1, (0, 0)
        self._size, self._head = 0, START
        """Where the file ended when we last appended; until then it may end anywhere."""

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    def append(self, drafts: Sequence[Draft]) -> None:
        """Append them, all or none; on return they are on disk, unless fsync is "never".

        Raises OSError when the disk does not take them, ValueError for what has no canonical form,
        ChainBroken when the end of the file is not what was written, Misconfigured for another file.
        """
        with self._alone():
            fd = self._locked()
            try:
                head = self._end(fd)
                if self._opening and head == START:
                    drafts = [self._opening(), *drafts]
                text = b""
                for draft in drafts:
                    line, head = written(draft, head, self._key)
                    text += line + b"\n"
                self._write(fd, text)
                self._head = head
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)

    def head(self) -> Head:
        """The last line; what a crash left is mended. Makes the file where there is none. Raises as `append` does."""
        with self._alone():
            fd = self._locked()
            try:
                return self._end(fd)
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)

    def rotate(self) -> Path:
        """Put the file aside as PATH.1, PATH.2, …, and begin a new one that goes on in the chain; return which."""
        with self._alone():
            fd = self._locked()
            try:
                head = self._end(fd)
                aside = self._aside()
                self._begin_behind(head, f"goes on behind line {head.event_id}, in {aside.name}").replace(self.path)
                sync_folder(self.path.parent)
                return aside
            finally:
                self._close()

    def empty(self, *, size: int) -> bool:
        """Take everything out, if there are `size` bytes. For a log with an opening."""
        with self._alone():
            fd = self._locked()
            try:
                if os.lseek(fd, 0, os.SEEK_END) != size:
                    return False
                os.ftruncate(fd, 0)
                os.fsync(fd)
                return True
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)

    def close(self) -> None:
        with self._alone():
            self._close()

    # --- the lock

    def _alone(self) -> threading.Lock:
        if self._generation != _generation:
            # A forked child has its parent's file, and with it the parent's locks.
            self._threads, self._generation = threading.Lock(), _generation
            self._close()
        return self._threads

    def _locked(self) -> int:
        """Open the file that is at the path now, and wait until nobody else has it."""
        while True:
            fd = self._open()
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                there = os.stat(self._name)  # noqa: PTH116 - half of what a Path costs, at every post
                if (there.st_ino, there.st_dev) == self._identity:
                    return fd
            except FileNotFoundError:
                self._go_on_behind(fd)
            # Another one is there by now.
            self._close()

    def _open(self) -> int:
        if self._fd < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            found = os.fstat(self._fd)
            self._identity = found.st_ino, found.st_dev
            self._size, self._head = 0, START
        return self._fd

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- going on in another file

    def _aside(self) -> Path:
        number = 1
        while True:
            aside = self.path.with_name(f"{self.path.name}.{number}")
            try:
                # Linked, then replaced: at every moment there is a file at the path.
                aside.hardlink_to(self.path)
                return aside
            except FileExistsError:
                if aside.stat().st_ino == self._identity[0]:
                    return aside  # a crash came between the two
                number += 1

    def _go_on_behind(self, fd: int) -> None:
        """The file was moved away while we had it: begin the next where it ended, unless somebody else did."""
        head = self._end(fd)
        if head == START:
            return
        fresh = self._begin_behind(head, f"goes on behind line {head.event_id}, in a file that was moved away")
        with suppress(FileExistsError):
            self.path.hardlink_to(fresh)
        fresh.unlink()
        sync_folder(self.path.parent)

    def _begin_behind(self, head: Head, why: str) -> Path:
        fresh = self.path.with_name(f".{self.path.name}.{uuid4().hex}")
        fresh.parent.mkdir(parents=True, exist_ok=True)
        (line,) = link([own(CONTINUED, why)], head, self._key)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(line.text() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return fresh

    # --- the end of the file

    def _end(self, fd: int) -> Head:
        size = os.lseek(fd, 0, os.SEEK_END)
        if size != self._size or self._opening:
            # With an opening, others may have emptied it, and filled it again to the same size.
            if not self._opening:
                self._check_ours(fd, size)
            ours = self._size
            try:
                self._head = self._read_end(fd, size)
            except BaseException:
                self._size = ours  # nothing is known of what is behind that
                raise
        return self._head

    def _check_ours(self, fd: int, size: int) -> None:
        """Raise ChainBroken unless what we saw last is still there, and others went on behind it."""
        behind = os.pread(fd, MAX_LINE_BYTES, self._size) if 0 < self._size < size else b""
        text, end, _ = behind.partition(b"\n")
        try:
            follows = not end or parse(text).prev_hash == self._head.hash
        except ValueError:
            follows = False
        if size < self._size or not follows:
            raise ChainBroken(
                f"{self.path} was cut: it ended with line {self._head.event_id} after {self._size} bytes, and"
                f" {'was written anew there' if end else f'has {size} now'}. Nothing is appended behind that:"
                " keep it as evidence, put it aside, begin anew",
                at=self._head.event_id,
            )

    def _read_end(self, fd: int, size: int) -> Head:
        self._size = size
        if size == 0:
            return START
        first = os.pread(fd, 4096, 0)
        whole, fragment = last_line(fd, size)
        if not (first.startswith(OPENING) or (not whole and OPENING.startswith(first.rstrip(b"\0")))):
            what = "; `audit-stream bus convert` makes one of a .tsv file" if first.count(b"\t") >= 4 else ""
            raise Misconfigured(f"{self.path} is no bus and stays as it is; choose another path{what}")
        if fragment:
            with suppress(ValueError):
                line = parse(fragment)
                if line.computed_hash() == line.hash:
                    self._write(fd, b"\n")
                    return Head(line.seq, line.hash)
        head = self._head_of(whole) if whole else START
        if fragment:
            os.ftruncate(fd, size - len(fragment))
            self._size = size - len(fragment)
            (line,) = link([own(TORN, fragment.decode(errors="backslashreplace"))], head, self._key)
            self._write(fd, line.text() + b"\n")
            head = Head(line.seq, line.hash)
        return head

    def _head_of(self, text: bytes) -> Head:
        try:
            line = parse(text)
            if line.computed_hash() != line.hash:
                raise ValueError("its hash is another one")
        except ValueError as error:
            raise ChainBroken(
                f"{self.path}: its last line is not what was written: {error}. Nothing is appended behind it:"
                " keep the file as evidence, put it aside, begin anew",
                at=0,
            ) from error
        return Head(line.seq, line.hash)

    def _write(self, fd: int, text: bytes) -> None:
        """Behind what is known to be the end."""
        rest = text
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
            if self._sync:
                os.fsync(fd)
                if not self._size:
                    sync_folder(self.path.parent)
        except OSError:
            # The disk is full: half a line would only be in the way.
            os.ftruncate(fd, self._size)
            raise
        self._size += len(text)


def own(type_: str, text: str) -> Draft:
    """A line of the log's own."""
    return Draft(now(), OWN_ID, "all", type_, text)
