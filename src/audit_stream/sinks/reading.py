"""The chain as a sink reads it: over HTTP, from any event on, each link checked before anything is written.

Far from the end it asks for pages, at the end it follows. What a sink holds is thereby always a part of one chain:
an event that does not follow from the last one is evidence, and is not projected.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import NamedTuple

import httpx
import msgspec

from audit_stream.chain import START, Event, Head, verify
from audit_stream.client.asynchronous import NDJSON
from audit_stream.client.following import follow_in_batches
from audit_stream.client.http import Http, is_about_an_event
from audit_stream.client.wire import AsyncioWire, Incoming, Request
from audit_stream.errors import ChainBroken, Refused
from audit_stream.exported import decoded

PAGE_EVENTS = 20_000
# What is written with one sync, or in one transaction.
BATCH_EVENTS = 2_000
BATCH_BYTES = 4 * 1024 * 1024
CONNECT_TIMEOUT_S = 5.0
# The first page of a long answer is read before the answer begins.
TIMEOUT_S = 30.0


class Batch(NamedTuple):
    events: list[Event]
    """In order, without gaps. Empty once: at the end of the chain, where following begins."""
    live: bool


class _Stats(msgspec.Struct):
    last_event_id: int
    latest_hash: str | None


class Chain:
    """One server. Raises AuditStreamError for all that goes wrong; asking again later is always safe."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._http = Http(AsyncioWire(f"{url}/", headers, httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)), url)

    async def close(self) -> None:
        await self._http.wire.close()

    async def head(self) -> Head:
        """The newest event."""
        found = await self._http.ask_for(
            Request("GET", "stats"), lambda answer: msgspec.json.decode(answer.body, type=_Stats), patience_s=0
        )
        return Head(found.last_event_id, found.latest_hash.encode()) if found.latest_hash else START

    async def check(self, head: Head) -> None:
        """Raises ChainBroken unless the chain has this very event."""
        if head.event_id == START.event_id:
            return
        request = Request("GET", f"events/{head.event_id}")
        answer = await self._http.ask(request, patience_s=0)
        missing = answer.status == 404 and is_about_an_event(answer)
        if not answer.is_success and not missing:
            raise self._http.error(answer, request)
        found = b"" if missing else self._http.understood(answer, lambda answer: decoded(answer.body).hash)
        if found != head.hash:
            what = "is not there" if missing else f"has the hash {found.decode()}"
            raise ChainBroken(
                f"event #{head.event_id} was projected with the hash {head.hash.decode()}, and now it {what}: it is"
                " another chain, or one that was changed or restored from before. To begin anew, move away what was"
                " projected, the cursor with it.",
                at=head.event_id,
                expected=head.hash.decode(),
                found=found.decode(),
            )

    async def batches(self, head: Head) -> AsyncGenerator[Batch, None]:
        """Yield all events behind `head`, for ever. Lost connections are waited out once it follows."""
        while True:
            count = 0
            async with aclosing(self._page(head)) as page:
                async for events in page:
                    head = linked(events, head)
                    count += len(events)
                    yield Batch(events, live=False)
            if count < PAGE_EVENTS:
                break
        yield Batch([], live=True)
        following = follow_in_batches(self._http, {}, head.event_id, decoded, on_connect=lambda: self.check(head))
        async with aclosing(following):
            async for events in following:
                head = linked(events, head)
                yield Batch(events, live=True)

    async def _page(self, head: Head) -> AsyncGenerator[list[Event], None]:
        params = {"after": str(head.event_id), "limit": str(PAGE_EVENTS)}
        request = Request("GET", "events", params, {"Accept": NDJSON})
        try:
            async with self._http.wire.open(request) as incoming:
                await self._raise_unless_lines(request, incoming)
                async for lines in _lines(incoming.chunks):
                    yield self._decoded(lines)
        except httpx.TransportError as error:
            raise self._http.lost(error) from error

    async def _raise_unless_lines(self, request: Request, incoming: Incoming) -> None:
        if incoming.status == 200 and incoming.headers.get("content-type", "").startswith(NDJSON):
            return
        answer = await self._http.read(incoming)
        if answer.is_success:
            raise Refused(f"{self._http.server}/events answers with no events: is it an audit-stream server?")
        raise self._http.error(answer, request)

    def _decoded(self, lines: list[bytes]) -> list[Event]:
        try:
            return [decoded(line) for line in lines]
        except (ValueError, msgspec.DecodeError) as error:
            raise Refused(f"{self._http.server}/events answers with what is no event: {error}") from error


def linked(events: list[Event], head: Head) -> Head:
    """The new head, when each event follows from the one before. Raises ChainBroken."""
    verdict = verify(events, start=head)
    if not verdict.valid:
        at = verdict.first_break_at or 0
        raise ChainBroken(f"the chain is broken, and nothing from there on is projected: {verdict.reason}", at=at)
    return verdict.head


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Group lines as they arrive into batches. Half a line at the end is none: the answer was cut off."""
    lines, size, rest = list[bytes](), 0, b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        lines += whole
        size += len(chunk)
        if len(lines) >= BATCH_EVENTS or size >= BATCH_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines
