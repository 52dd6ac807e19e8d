"""The relay: appends every line of a bus to the chain, in order, each once.

A line's idempotency key is made from its hash, so a line is the same event however often, by whomever and from
whichever copy of the log it is sent. The payload is the whole line: the chain vouches for the log's head, and the line
can be written again from it, byte for byte. Beside the log, `PATH.cursor` holds how far it has come.
"""

import os
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from audit_stream.bus.backlog import Backlog, RequestOf
from audit_stream.bus.line import Line, canonical
from audit_stream.client import AuditClient, Drained
from audit_stream.errors import Refused
from audit_stream.event import MAX_SOURCE_LENGTH
from audit_stream.timestamps import check_timestamp

POLL_S = 0.25
STUCK_S = 5.0
"""Between attempts while the disk does not do its part, or the server refuses whoever asks."""


class Mapped(NamedTuple):
    """What kind and source the events get."""

    kinds: Mapping[str, str] = {}
    """By `msg_type`."""
    kind: str = "other"
    """Of all other types."""
    source: str | None = None
    """None: who sent the message."""

    def request_of(self, line: Line) -> bytes:
        timestamp, from_id, _, msg_type, message = line.content
        if isinstance(message, dict) and isinstance(message.get("idempotency_key"), str):
            return canonical(message)  # a spooled event, which has all it needs
        return msgspec.json.encode(
            {
                "kind": self.kinds.get(msg_type, self.kind),
                "source": (from_id if self.source is None else self.source)[:MAX_SOURCE_LENGTH] or "unknown",
                "payload": line.as_object(),
                **({"timestamp": timestamp} if _is_timestamp(timestamp) else {}),
                "idempotency_key": f"bus:{line.hash.decode()}",
            }
        )


def _is_timestamp(text: str) -> bool:
    try:
        check_timestamp(text, field="timestamp")
    except Refused:
        return False  # posted without validation: the server gives its own
    return True


class Relay:
    """One log, one server. Any number of relays may be started on one log; one of them works."""

    def __init__(
        self, path: str | os.PathLike[str], url: str | None = None, *, mapped: RequestOf, token: str | None = None
    ) -> None:
        """Raises Misconfigured for an address or a cursor that is none."""
        self._backlog = Backlog(path, mapped)
        self._client = AuditClient(url, token=token, spool=self._backlog)
        self._stopped = threading.Event()

    def run(self, tell: Callable[[Drained], None]) -> None:
        """Relay until `stop` is called; `tell` is told of each round that did something, and of each new reason not to.

        A server that is away and a full disk are waited out. Raises ChainBroken when lines between are missing,
        Misconfigured when the cursor is damaged.
        """
        reason: str | None = None
        while not self._stopped.is_set():
            try:
                drained = self.once()
            except OSError as error:
                drained = Drained(stored=0, refused=0, left=self._backlog.left(), reason=str(error))
            if drained.stored or drained.refused or drained.reason not in (None, reason):
                tell(drained)
            reason = drained.reason
            self._stopped.wait(drained.retry_in_s or (STUCK_S if reason else POLL_S))

    def once(self) -> Drained:
        """Relay what is there now. Raises as `run` does, and OSError when the cursor cannot be kept."""
        return self._client.drain()

    def stop(self) -> None:
        """End after the batch that is under way. From any thread, and from a signal handler."""
        self._stopped.set()

    def close(self) -> None:
        self._client.close()
