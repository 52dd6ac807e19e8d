"""Appending by way of the spool: at once while the spine is there, behind what waits while it was away."""

import json
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import TYPE_CHECKING

from audit_stream.client.http import Answer, Backoff, Http, retry_after_s
from audit_stream.client.models import Drained, Event, Receipt, Spooled
from audit_stream.client.requests import Outgoing, key_of
from audit_stream.errors import AuditStreamError, ChainBroken, Misconfigured, Pushback, Unreachable

if TYPE_CHECKING:
    # Only where there is a spool: not every system has what it needs.
    from audit_stream.bus.backlog import Backlog, Entry
    from audit_stream.client.spool import Spool

BATCH_EVENTS = 500
BATCH_BYTES = 1024 * 1024
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0

log = logging.getLogger("audit_stream.client")

Append = Callable[[Sequence[Outgoing]], Awaitable[list[Event]]]
Post = Callable[[Sequence[bytes]], Awaitable[Answer]]
Read = Callable[[Answer, int], list[Event]]
Query = Callable[..., AsyncGenerator[Event, None]]

# The server keeps keys for 24 hours unless told otherwise. Up to here they are relied upon.
TRUSTED_S = 3600.0
# Between this machine's clock and the server's.
SKEW = timedelta(hours=1)


class Draining:
    """Appends what is in a backlog: in order, each once."""

    def __init__(self, backlog: "Backlog", http: Http, *, post: Post, read: Read, query: Query) -> None:
        """`post` sends once, and returns any answer; `read` makes events of a good one; `query` is the client's."""
        self._backlog, self._http, self._post, self._read, self._query = backlog, http, post, read, query
        self._away: Backoff | None = None
        """Set while the spine was last seen to be away."""
        self._not_before = 0.0

    async def drain(self, receipts: dict[str, Event]) -> Drained:
        """Append what waits, in order, until the end or until the server is away; fill in the receipts asked for."""
        with self._backlog.alone() as alone:
            if not alone:
                return await self._drained(0, 0, "another process is draining it")
            stored = refused = 0
            count = BATCH_EVENTS
            try:
                await self._settle_old_doubts()
            except (Unreachable, Pushback) as failure:
                self._wait_after(failure)
                return await self._drained(0, 0, str(failure))
            while entries := await self._next(count):
                whole = list(takewhile(lambda entry: not entry.trouble, entries))
                if not whole:
                    await self._refuse(entries[0], entries[0].trouble)
                    refused += 1
                    continue
                is_new = await self._http.wire.blocking(self._backlog.ask)
                try:
                    answer = await self._post([entry.text for entry in whole])
                    events = self._read(answer, len(whole)) if answer.is_success else []
                except (Unreachable, Pushback) as failure:
                    self._wait_after(failure)
                    if is_new and not getattr(failure, "in_doubt", False):
                        await self._http.wire.blocking(self._backlog.unask)
                    return await self._drained(stored, refused, str(failure))
                if events:
                    await self._advance(whole[-1])
                    stored += len(events)
                    receipts.update((key, event) for key, event in _by_key(whole, events) if key in receipts)
                    count = BATCH_EVENTS
                elif not is_for_good(answer):
                    return await self._drained(stored, refused, self._words(answer))
                elif len(whole) > 1 and (index := _index(answer, len(whole))):
                    count = index  # those before the refused one, then it on its own
                else:
                    await self._refuse(whole[0], self._words(answer))
                    refused += 1
                    count = BATCH_EVENTS
            self._away, self._not_before = None, 0.0
            return Drained(stored=stored, refused=refused, left=0, reason=None)

    async def _settle_old_doubts(self) -> None:
        """What was sent without an answer so long ago that its keys may be forgotten is looked for in the chain."""
        asked_at = self._backlog.asked_at()
        if asked_at is None or time.time() - asked_at < TRUSTED_S:
            return
        entries = await self._next(BATCH_EVENTS)
        waiting = deque(entry for entry in entries if not entry.trouble)
        if not waiting:
            return
        landed: Entry | None = None
        since = datetime.fromtimestamp(asked_at, UTC) - SKEW
        async for event in self._query(since=since, source=_only_source(waiting)):
            if _is_of(event, waiting[0].text):
                landed = waiting.popleft()
            if not waiting:
                break
        if landed:
            await self._advance(landed)
        else:
            await self._http.wire.blocking(self._backlog.unask)

    async def _next(self, count: int) -> "list[Entry]":
        return await self._http.wire.blocking(lambda: self._backlog.peek(count=count, size_bytes=BATCH_BYTES))

    async def _advance(self, entry: "Entry") -> None:
        await self._http.wire.blocking(lambda: self._backlog.advance(entry))

    async def _refuse(self, entry: "Entry", reason: str) -> None:
        log.error("an entry was put aside in %s: %s", self._backlog.refused_path, reason)
        await self._http.wire.blocking(lambda: self._backlog.refuse(entry, reason))

    async def _drained(self, stored: int, refused: int, reason: str) -> Drained:
        left = await self._http.wire.blocking(self._backlog.left)
        log.info("%d entries wait in %s: %s", left, self._backlog.path, reason)
        retry_in_s = max(0.0, self._not_before - time.monotonic())
        return Drained(stored=stored, refused=refused, left=left, reason=reason, retry_in_s=retry_in_s)

    def _words(self, answer: Answer) -> str:
        return str(answer.problem.get("detail") or f"{self._http.server} answered {answer.status}")

    def _wait_after(self, failure: AuditStreamError) -> None:
        if self._away is None:
            log.warning("events wait in %s: %s", self._backlog.path, failure)
            self._away = Backoff(None, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
        self._not_before = time.monotonic() + (self._away.pause_s(at_least_s=retry_after_s(failure)) or 0)


class SpooledAppends(Draining):
    """Keeps the order: as long as anything waits in the spool, new events go behind it."""

    def __init__(self, spool: "Spool", http: Http, *, append: Append, post: Post, read: Read, query: Query) -> None:
        """`append` sends with the client's patience and raises."""
        super().__init__(spool, http, post=post, read=read, query=query)
        self._spool, self._append = spool, append

    async def append(self, events: Sequence[Outgoing]) -> list[Receipt]:
        """Raises what the server refuses the events with, and Unreachable when the spool cannot keep them either."""
        if self._spool.is_empty():
            try:
                return list(await self._append(events))
            except (Unreachable, Pushback) as failure:
                self._wait_after(failure)
                await self._keep(events, failure)
                return self._spooled(events, str(failure))
        await self._keep(events, None)
        if time.monotonic() < self._not_before:
            return self._spooled(events, "the server was away a moment ago")
        stored: dict[str, Event] = {event.key: _NOT_YET for event in events}
        try:
            reason = (await self.drain(stored)).reason
        except (OSError, Misconfigured, ChainBroken) as error:
            # The events are kept already: to raise would say that they are not.
            log.error("the spool %s cannot be drained: %s", self._spool.path, error)
            reason = str(error)
        waiting = self._spooled(events, reason or "it waits for what is before it")
        return [
            waits if stored[event.key] is _NOT_YET else stored[event.key]
            for event, waits in zip(events, waiting, strict=True)
        ]

    async def _keep(self, events: Sequence[Outgoing], failure: AuditStreamError | None) -> None:
        try:
            await self._http.wire.blocking(lambda: self._spool.put([event.text for event in events]))
        except (OSError, ChainBroken) as error:
            reason = str(failure) if failure else "events that came before are waiting"
            why = error.strerror if isinstance(error, OSError) else error
            raise Unreachable(
                f"{reason}; and the spool {self._spool.path} cannot keep the event: {why}",
                in_doubt=getattr(failure, "in_doubt", False),
            ) from error

    def _spooled(self, events: Sequence[Outgoing], reason: str) -> list[Receipt]:
        return [Spooled(idempotency_key=event.key, path=str(self._spool.path), reason=reason) for event in events]

    async def drain_if_due(self) -> None:
        if not self._spool.is_empty() and time.monotonic() >= self._not_before:
            await self.drain({})


_NOT_YET = Event(event_id=0, timestamp="", kind="", source="", payload={}, prev_hash="", hash="")


def _only_source(entries: "Iterable[Entry]") -> str | None:
    sources = {str(json.loads(entry.text)["source"]) for entry in entries}
    return sources.pop() if len(sources) == 1 else None


def _is_of(event: Event, request: bytes) -> bool:
    """Whether the event was made of this request."""
    asked = json.loads(request)
    return (
        asked["kind"] == event.kind
        and asked["source"] == event.source
        and asked.get("payload", {}) == event.payload
        and asked.get("timestamp") in (None, event.timestamp)
    )


def _by_key(entries: "Sequence[Entry]", events: Sequence[Event]) -> list[tuple[str, Event]]:
    return [(key_of(entry.text) or "", event) for entry, event in zip(entries, events, strict=True)]


def is_for_good(answer: Answer) -> bool:
    """Whether it is about the event. A wrong token or a wrong address is about us: then everything waits."""
    return answer.status == 413 or (answer.status in (400, 422) and bool(answer.problem))


def _index(answer: Answer, count: int) -> int:
    """Where to cut the batch. The server names the event that is wrong where it can; else halves find it."""
    index = answer.problem.get("index")
    if type(index) is int and 0 <= index < count:
        return index
    return count // 2
