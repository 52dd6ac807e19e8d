"""What of a log is not yet handed on, and the files beside it that remember how far it is.

    PATH.cursor     the place behind the last line that is settled
    PATH.refused    what was refused for good, one object a line, with the reason
    PATH.lock       held by the process that hands on

Whoever hands on moves the cursor once the answer is there. Where a crash comes between the two, the same lines are
handed on again, under the same keys.
"""

import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from audit_stream.bus.following import Follower, Place, Step, identity
from audit_stream.bus.line import Line
from audit_stream.bus.tsv import refuse_tsv
from audit_stream.errors import Misconfigured


class Entry(NamedTuple):
    text: bytes
    """The request to send; or, where there is trouble, what stands there instead."""
    trouble: str
    """Why it cannot be sent."""
    after: Place


RequestOf = Callable[[Line], bytes | None]
"""The request that is made of a line; None for a line that asks for nothing. Raises ValueError for one that cannot."""


class Backlog:
    """The lines behind the cursor. All methods wait for the disk; `peek` to `refuse` are for who is `alone`."""

    def __init__(self, path: str | os.PathLike[str], request_of: RequestOf) -> None:
        """Raises Misconfigured when the files beside the log cannot be read and written, and for a .tsv file."""
        self.path = Path(path).absolute()
        self.refused_path, self._cursor_path, self._lock_path = (
            self.path.with_name(self.path.name + suffix) for suffix in (".refused", ".cursor", ".lock")
        )
        self._request_of = request_of
        self._counted: tuple[tuple[Place | None, str], Follower] | None = None
        self._waiting = 0
        self.seen_bytes = 0
        """How far into the file the last `peek` has come."""
        self._prepare()

    def _prepare(self) -> None:
        try:
            refuse_tsv(self.path)
            for beside in (self._lock_path, self.refused_path):
                os.close(_open(beside))
            self._place()
        except OSError as error:
            raise Misconfigured(
                f"{error.filename or self.path} cannot be written: {error.strerror}. It has to be remembered, beside"
                " the log, how far that is handed on"
            ) from error

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether this is the one that hands on, until the block ends. Does not wait for another one."""
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

    def peek(self, *, count: int, size_bytes: int) -> list[Entry]:
        """The next entries, at least one unless there are none. Raises ChainBroken when lines between are missing."""
        follower, found = Follower(self.path, self._place()), list[Entry]()
        while not found or (len(found) < count and size_bytes > 0):
            steps = follower.read(count=count - len(found), size_bytes=size_bytes)
            if not steps:
                break
            found += [entry for step in steps if (entry := self._entry(step))]
            size_bytes -= sum(len(step.raw.text) + 1 for step in steps)
        self.seen_bytes = follower.place.offset if follower.place else 0
        return found

    def _entry(self, step: Step) -> Entry | None:
        if not step.line:
            return Entry(step.raw.text, step.trouble, step.after)
        try:
            request = self._request_of(step.line)
        except ValueError as error:
            return Entry(str(step.line.content.message).encode(), str(error), step.after)
        return None if request is None else Entry(request, "", step.after)

    def advance(self, entry: Entry) -> None:
        """Everything up to and with this entry is settled."""
        self._write({"place": entry.after._asdict()})

    def asked_at(self) -> float | None:
        """When the next entries were first sent, in seconds since 1970, if it is not known what became of them."""
        asked: float | None = self._read().get("asked_at")
        return asked

    def ask(self) -> bool:
        """Note that the next entries are about to be sent; False when that was noted before, and not answered."""
        kept = self._read()
        if "asked_at" in kept:
            return False
        self._write({**kept, "asked_at": time.time()})
        return True

    def unask(self) -> None:
        """Whatever was sent, it is known that nothing came of it."""
        kept = self._read()
        kept.pop("asked_at", None)
        self._write(kept)

    def refuse(self, entry: Entry, reason: str) -> None:
        """Put the entry aside with its reason, once even if this process ends before the cursor has moved."""
        where = {"file": entry.after.first, "end": entry.after.offset}
        text = entry.text.decode(errors="backslashreplace")
        found = json.dumps({"reason": reason, **where, "event": text}).encode() + b"\n"
        with os.fdopen(_open(self.refused_path), "r+b") as file:
            last = b"".join(deque(file, maxlen=1))
            if not _is_about(last, where):
                _write_all(file.fileno(), found if last.endswith(b"\n") or not last else b"\n" + found)
        self.advance(entry)

    def left(self) -> int:
        """How many entries wait. Counts on from where it was, as long as the cursor has not moved."""
        at = self._place(), identity(self.path)
        if self._counted is None or self._counted[0] != at:
            self._counted = at, Follower(self.path, at[0])
            self._waiting = 0
        while steps := self._counted[1].read(count=1_000, size_bytes=1 << 20):
            self._waiting += sum(1 for step in steps if self._entry(step))
        return self._waiting

    # --- the cursor

    def _place(self) -> Place | None:
        place: Place | None = self._read().get("place")
        return place

    def _read(self) -> dict[str, Any]:
        try:
            kept = json.loads(self._cursor_path.read_bytes())
            if "place" in kept:
                place = Place(**kept["place"])
                if [type(value) for value in place] != [str, int, int, str]:
                    raise TypeError("a field has the wrong type")
                kept["place"] = place
            return {**kept, "asked_at": float(kept["asked_at"])} if "asked_at" in kept else dict(kept)
        except FileNotFoundError:
            return {}  # nothing was handed on yet
        except (ValueError, TypeError) as error:
            raise Misconfigured(
                f"{self._cursor_path} is damaged: {error!r}. Without it everything is sent again, and what was appended"
                " within the server's AUDIT_STREAM_IDEMPOTENCY_TTL is not stored twice."
            ) from error

    def _write(self, kept: dict[str, Any]) -> None:
        if isinstance(kept.get("place"), Place):
            kept = {**kept, "place": kept["place"]._asdict()}
        fresh = self._cursor_path.with_name(self._cursor_path.name + ".new")
        fresh.unlink(missing_ok=True)
        fd = _open(fresh)
        try:
            _write_all(fd, json.dumps(kept).encode())
        finally:
            os.close(fd)
        # A rename that a power cut undoes leaves the older cursor: lines are sent again, and stored once.
        fresh.replace(self._cursor_path)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _write_all(fd: int, text: bytes) -> None:
    # Past a file object: its buffer would offer what a full disk refused once more, when it is closed.
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.fsync(fd)


def _is_about(entry: bytes, where: dict[str, Any]) -> bool:
    try:
        found = json.loads(entry)
        return all(found[name] == value for name, value in where.items())
    except (ValueError, KeyError, TypeError):
        return False
