"""Following a server's event stream through lost connections and restarts."""

import random
import time
from collections.abc import Iterator, Mapping

from audit_stream.cli.failures import Failed
from audit_stream.cli.output import tell
from audit_stream.cli.remote import Remote
from audit_stream.client.sse import AGENT, Frame, Parser

LONGEST_WAIT_S = 30.0


def follow(remote: Remote, params: Mapping[str, str | None], cursor: int) -> Iterator[list[bytes]]:
    """Yield the JSON of every event after `cursor`, in order, each once, in the groups they arrive in.

    Never ends by itself: a lost connection, a restart or a busy server is waited out, and the stream
    taken up again after the last event that was yielded. Raises Failed for an error that waiting does not fix.
    """
    retry_s, attempt = 2.0, 0
    while True:
        at_least = 0.0
        parser = Parser()
        try:
            headers = {"Last-Event-ID": str(cursor), "Cache-Control": "no-store", "User-Agent": AGENT}
            with remote.stream("stream", params, accept="text/event-stream", **headers) as answer:
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    raise Failed(
                        f"{remote.url}/stream is not an event stream: is it an audit-stream server?", status=404
                    )
                for chunk in answer.iter_bytes():
                    if attempt:
                        tell(f"connected again, after event #{cursor}")
                        attempt = 0
                    events, cursor = _new(parser.feed(chunk), cursor)
                    if events:
                        yield events
                    cursor = max(cursor, _number(parser.last_id))
            reason = "the server ended the stream"
        except Failed as failed:
            if not failed.passing:
                raise
            reason, at_least = str(failed), failed.retry_after_s or 0.0
        if parser.retry_ms is not None:
            retry_s = parser.retry_ms / 1000
        # Jittered, so that the clients of a restarted server do not all come back at the same moment.
        wait_s = max(at_least, min(retry_s * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.5, 1))
        if not attempt:
            tell(f"{reason}; trying again, after event #{cursor}")
        attempt = min(attempt + 1, 10)
        time.sleep(wait_s)


def _new(frames: list[Frame], cursor: int) -> tuple[list[bytes], int]:
    events = []
    for frame in frames:
        event_id = _number(frame.event_id)
        if event_id > cursor:
            events.append(frame.data)
            cursor = event_id
    return events, cursor


def _number(event_id: bytes) -> int:
    if not event_id:
        return 0
    if not event_id.isdigit():
        raise Failed(f"the stream carries the id {event_id[:40]!r}, which is not an event_id", status=404)
    return int(event_id)
