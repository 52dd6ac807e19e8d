"""The spool: events that wait on this machine's disk for the spine, in the order they were handed in.

It is a bus (audit_stream.bus): one line for each event, whose message is the PublishRequest with its idempotency key.
Once all of it is appended to the chain, the file is emptied and begins anew.
"""

import errno
import fcntl
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

from audit_stream.bus.backlog import Backlog, Entry
from audit_stream.bus.following import Place, identity
from audit_stream.bus.line import BEGUN, TORN, Draft, Line, canonical
from audit_stream.bus.log import Log, own
from audit_stream.bus.stamp import now
from audit_stream.errors import ChainBroken, Misconfigured

_TO = "audit-stream"
_TORN = "not a whole line: whoever wrote it ended before it was kept"
# What a spool of audit-stream 0.2.0, before it was a bus, begins with: then one PublishRequest a line.
_FORMER = b'{"audit_stream_spool":1,'


class Spool(Backlog):
    """All methods wait for the disk, and for other processes' writes; none waits for a drain."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises Misconfigured when events could not be kept there, or the file is something else."""
        self._log = Log(path, opening=_opening)
        super().__init__(path, _request_of)

    def _prepare(self) -> None:
        try:
            if not self.path.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path.parent))
            self._convert()
            try:
                self._mend()
            except Misconfigured as error:
                raise Misconfigured(
                    f"spool: {self.path} is not a spool and stays as it is; choose another path"
                ) from error
            super()._prepare()
        except OSError as error:
            raise Misconfigured(
                f"spool: {error.filename or self.path} cannot be written: {error.strerror}."
                " Events could not be kept while the server is away; choose another path, or mend this one."
            ) from error
        except Misconfigured as error:
            raise Misconfigured(f"spool: {str(error).removeprefix('spool: ')}") from error

    def is_empty(self) -> bool:
        try:
            return self.path.stat().st_size == 0
        except FileNotFoundError:
            return True

    def put(self, requests: Sequence[bytes]) -> None:
        """Keep the requests, all or none; on return they are on disk. Raises OSError, ChainBroken."""
        self._log.append([_draft(json.loads(request)) for request in requests])

    def peek(self, *, count: int, size_bytes: int) -> list[Entry]:
        """The next entries, at least one unless there are none; then the file is emptied."""
        self._mend()
        found = super().peek(count=count, size_bytes=size_bytes)
        if not found and not self._log.empty(size=self.seen_bytes):
            # Somebody put an event there meanwhile.
            found = super().peek(count=count, size_bytes=size_bytes)
        return found

    def _mend(self) -> None:
        with suppress(ChainBroken):  # what does not hold is put aside when its turn comes
            self._log.head()

    def _place(self) -> Place | None:
        place = super()._place()
        # An emptied file begins a new filling, and old cursors say nothing about it.
        return place if place and place.first == identity(self.path) else None

    # --- a spool as it was before

    def _convert(self) -> None:
        """Write a spool of the former format anew in this one, what waits in it in its order."""
        try:
            file = self.path.open("r+b")
        except FileNotFoundError:
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            first = file.readline()
            if not first.startswith(_FORMER):
                return
            try:
                cursor = json.loads(self._cursor_path.read_bytes())
                if cursor["filling"] == first.decode(errors="replace").strip():
                    file.seek(max(file.tell(), int(cursor["offset"])))
            except FileNotFoundError:
                pass  # nothing was drained yet
            except (ValueError, KeyError, TypeError) as error:
                raise Misconfigured(f"{self._cursor_path} is damaged: {error!r}") from error
            fresh = self.path.with_name(f".{self.path.name}.{uuid4().hex}")
            Log(fresh, opening=_opening).append([_former(line) for line in file])
            self._cursor_path.unlink(missing_ok=True)
            fresh.replace(self.path)


def _opening() -> Draft:
    return own(BEGUN, uuid4().hex)


def _draft(request: dict[str, object]) -> Draft:
    return Draft(str(request.get("timestamp") or now()), str(request["source"]), _TO, str(request["kind"]), request)


def _former(line: bytes) -> Draft:
    try:
        return _draft(json.loads(line))
    except (ValueError, KeyError, TypeError, RecursionError):
        return own(TORN, line.removesuffix(b"\n").decode(errors="backslashreplace"))


def _request_of(line: Line) -> bytes | None:
    draft = line.content
    if isinstance(draft.message, dict):
        if not isinstance(draft.message.get("idempotency_key"), str):
            raise ValueError("it has no idempotency key, and could be appended twice")
        return canonical(draft.message)
    if line.is_own and draft.msg_type == BEGUN:
        return None
    raise ValueError(_TORN if line.is_own else "it is a message, and no event")
