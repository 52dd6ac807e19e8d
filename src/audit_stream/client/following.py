"""Following live through lost connections and restarts: no event is left out, none comes twice.

That holds for one chain. Behind a lost connection may be another: an older backup, or a replica that was promoted
without the newest events. So the last event that was read is looked for again after each reconnect, and each event
has to follow from the one before it.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TypeVar

import httpx
import msgspec

from audit_stream.client.http import Backoff, Http, is_about_an_event, retry_after_s
from audit_stream.client.models import Event, Head
from audit_stream.client.sse import AGENT, Frame, Parser
from audit_stream.client.wire import Incoming, Request
from audit_stream.errors import AuditStreamError, ChainChanged, Pushback, Refused, Unreachable

# A silent stream carries a sign of life every 15 s.
SILENCE_S = 40.0
LONGEST_PAUSE_S = 30.0

log = logging.getLogger("audit_stream.client")
_event = msgspec.json.Decoder(Event)

T = TypeVar("T")


async def follow(
    http: Http, filters: Mapping[str, str], cursor: int, *, known: Head | None = None
) -> AsyncGenerator[Event, None]:
    """Yield every event behind `cursor`, where `known` was read before. Never ends by itself.

    Raises Refused, ChainBroken when the chain ends before the cursor, ChainChanged when it is another one.
    """

    async def check() -> None:
        if known:
            await check_known(http, known)

    async with aclosing(follow_in_batches(http, filters, cursor, _event.decode, on_connect=check)) as batches:
        async for batch in batches:
            for event in batch:
                if known and event.event_id == known.event_id + 1 and event.prev_hash != known.hash:
                    raise changed(known, event.prev_hash)
                known = Head(event.event_id, event.hash)
                yield event


async def check_known(http: Http, known: Head) -> None:
    """Raises ChainChanged unless the chain has this very event; Unreachable, Pushback when that cannot be told."""
    request = Request("GET", f"events/{known.event_id}")
    answer = await http.ask(request, patience_s=0)
    if answer.status == 404 and is_about_an_event(answer):
        raise changed(known, None)
    if answer.status == 403:
        return  # the head of the chain, which everybody is told, may be of a source that this token may not read
    if not answer.is_success:
        raise http.error(answer, request)
    found = http.understood(answer, lambda answer: _event.decode(answer.body)).hash
    if found != known.hash:
        raise changed(known, found)


def changed(known: Head, found: str | None) -> ChainChanged:
    what = f"has the hash {found}" if found else "is not there"
    return ChainChanged(
        f"event #{known.event_id} was read with the hash {known.hash}, and now it {what}: the chain has lost what was"
        " read, or is another one. Find out which, then read again from an event that it still has.",
        at=known.event_id,
        expected=known.hash,
        found=found,
    )


async def follow_in_batches(
    http: Http,
    filters: Mapping[str, str],
    cursor: int,
    read: Callable[[bytes], T],
    *,
    on_connect: Callable[[], Awaitable[None]],
) -> AsyncGenerator[list[T], None]:
    """As `follow`, what `read` makes of the events that arrived together; it may raise ValueError.

    `on_connect` is called each time that the stream was opened, before anything of it is yielded.
    """
    backoff = Backoff(None, longest_s=LONGEST_PAUSE_S)
    while True:
        at_least_s = 0.0
        parser = Parser()
        headers = {
            "Accept": "text/event-stream",
            "Cache-Control": "no-store",
            "Last-Event-ID": str(cursor),
            "User-Agent": AGENT,
        }
        request = Request("GET", "stream", filters, headers, read_timeout_s=SILENCE_S)
        try:
            async with http.wire.open(request) as incoming:
                await _raise_unless_a_stream(http, request, incoming)
                await on_connect()
                async for chunk in incoming.chunks:
                    backoff = Backoff(None, longest_s=LONGEST_PAUSE_S)
                    batch = list[T]()
                    for frame in parser.feed(chunk):
                        event_id = _number(frame.event_id)
                        if event_id > cursor:
                            batch.append(_decode(http, frame, read))
                            # Moved along first: whoever takes the event may never come back for the next.
                            cursor = event_id
                    if batch:
                        yield batch
                    # A filtered stream tells how far it has looked.
                    cursor = max(cursor, _number(parser.last_id))
            reason = "the server ended the stream"
        except httpx.TransportError as error:
            reason = str(http.lost(error))
        except (Unreachable, Pushback) as failure:
            reason, at_least_s = str(failure), retry_after_s(failure)
        if parser.retry_ms is not None:
            at_least_s = max(at_least_s, min(parser.retry_ms / 1000, LONGEST_PAUSE_S) / 2)
        pause_s = backoff.pause_s(at_least_s=at_least_s) or 0
        log.info("%s; following again behind event #%d in %.1f s", reason, cursor, pause_s)
        await http.wire.sleep(pause_s)


async def _raise_unless_a_stream(http: Http, request: Request, incoming: Incoming) -> None:
    if incoming.status == 200 and incoming.headers.get("content-type", "").startswith("text/event-stream"):
        return
    answer = await http.read(incoming)
    if answer.is_success:
        raise Refused(f"{http.server}/stream is no event stream: is it an audit-stream server?")
    error: AuditStreamError = http.error(answer, request)
    raise error


def _decode(http: Http, frame: Frame, read: Callable[[bytes], T]) -> T:
    try:
        return read(frame.data)
    except (ValueError, msgspec.DecodeError) as error:
        raise Refused(f"{http.server}/stream carries what is no event: {error}") from error


def _number(event_id: bytes) -> int:
    if not event_id:
        return 0
    if not event_id.isdigit():
        raise Refused(f"the stream carries the id {event_id[:40]!r}, which is no event_id")
    return int(event_id)
