"""The cursor of a sink of files: the event up to which everything is on disk, and the lock of the one who writes.

One small file, overwritten in place, after the lines it counts were synced. It is not synced itself: an older cursor
costs reading some events again, which the files are known to hold, and a damaged one costs reading them all.
"""

import fcntl
import json
import logging
import os
from pathlib import Path

from audit_stream.chain import START, Head
from audit_stream.sinks.sink import SinkFailed, Standing

# In one sector, so that no crash leaves half of it.
SIZE_BYTES = 256

log = logging.getLogger("audit_stream.sinks")


class Cursor:
    def __init__(self, path: Path) -> None:
        """Take hold of it. Raises SinkFailed when another process has it, OSError."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise SinkFailed(f"another projection writes to {path.parent}; this one waits for its place") from error
        self.head = _parsed(os.pread(self._fd, SIZE_BYTES, 0), path)

    def advance(self, head: Head) -> None:
        """Everything up to and with this event is on disk."""
        text = json.dumps({"event_id": head.event_id, "hash": head.hash.decode()})
        os.pwrite(self._fd, f"{text:<{SIZE_BYTES - 1}}\n".encode(), 0)
        self.head = head

    def close(self) -> None:
        os.close(self._fd)


def standing(path: Path) -> Standing:
    """What the cursor says, without disturbing the one who has it. Raises OSError."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                at_work = False
            except BlockingIOError:
                at_work = True
            head = _parsed(file.read(SIZE_BYTES), path)
    except FileNotFoundError:
        return Standing(0, START.hash.decode(), False)
    return Standing(head.event_id, head.hash.decode(), at_work)


def _parsed(text: bytes, path: Path) -> Head:
    if not text.strip(b"\0"):
        return START
    try:
        found = json.loads(text)
        return Head(int(found["event_id"]), str(found["hash"]).encode())
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged: the chain is read from its start, and what the files hold is passed over", path)
        return START
