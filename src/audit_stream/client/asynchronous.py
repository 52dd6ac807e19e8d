"""AsyncAuditClient: all of the client. AuditClient is its synchronous face."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx
import msgspec

from audit_stream.client import models
from audit_stream.client.arguments import address_of, authorization_of, spool_at
from audit_stream.client.draining import Draining, SpooledAppends
from audit_stream.client.following import follow
from audit_stream.client.http import Answer, Http, is_about_an_event
from audit_stream.client.models import Drained, Event, Head, Receipt, Spooled, Stats, Verdict
from audit_stream.client.requests import Outgoing, Split, chunks, outgoing
from audit_stream.client.wire import AsyncioWire, Request, Wire
from audit_stream.errors import AuditStreamError, Misconfigured, Refused
from audit_stream.event import PublishRequest

if TYPE_CHECKING:
    from audit_stream.client.arguments import SpoolArgument

TIMEOUT_S = 10.0
PATIENCE_S = 30.0
SPOOL_PATIENCE_S = 2.0
CONNECT_TIMEOUT_S = 5.0
PAGE = 500
NDJSON = "application/x-ndjson"

_event = msgspec.json.Decoder(Event)
_events = msgspec.json.Decoder(list[Event])
_stats = msgspec.json.Decoder(Stats)
_verdict = msgspec.json.Decoder(Verdict)

MakeWire = Callable[[str, Mapping[str, str], httpx.Timeout], Wire]


class AsyncAuditClient:
    """Talks to one audit-stream server. For one event loop; `async with`, or `close` it.

    Every method raises Refused (the server's words; asking again is of no use), ChainBroken, and
    Pushback or Unreachable when the server could not be had within `patience_s`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        spool: "SpoolArgument" = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float | None = None,
        wire: MakeWire = AsyncioWire,
    ) -> None:
        """`url` is AUDIT_STREAM_URL or http://127.0.0.1:8093, `token` AUDIT_STREAM_TOKEN, when not given.

        `spool` is a file that keeps events while the server is away, or a Backlog that `drain` hands on.
        `timeout_s` is how long one attempt may
        wait for a sign of the server; no attempt begins later than `patience_s` after the first (30 without a
        spool, 2 with one). `wire` is for the synchronous face. Raises Misconfigured.
        """
        address = address_of(url)
        headers = authorization_of(token)
        if patience_s is None:
            patience_s = PATIENCE_S if spool is None else SPOOL_PATIENCE_S
        self._patience_s = patience_s
        kept = spool_at(spool)  # before anything is opened that would have to be closed
        # To wait for a connection of the pool is no sign that the server is away, hence no limit.
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S), pool=None)
        self._http = Http(wire(f"{address}/", headers, timeout), address)
        self._draining: Draining | None = None
        self._spooled: SpooledAppends | None = None
        if kept is not None:
            from audit_stream.client.spool import Spool

            if isinstance(kept, Spool):
                self._spooled = SpooledAppends(
                    kept, self._http, append=self._send, post=self._post, read=self._receipts, query=self.query
                )
            self._draining = self._spooled or Draining(
                kept, self._http, post=self._post, read=self._receipts, query=self.query
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._http.server!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. What is in the spool is offered once more; what then is left stays there."""
        try:
            if self._spooled is not None:
                await self._spooled.drain_if_due()
        finally:
            await self._http.wire.close()

    # --- append

    async def append(
        self,
        kind: str,
        source: str,
        payload: Mapping[str, Any] | None = None,
        *,
        timestamp: str | datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Append one event, once however often it has to be sent; return its receipt.

        With a spool, a Spooled while the server is away: the event is on disk, and is appended later. Without
        one, an Unreachable that is `in_doubt` may have been written: give the same `idempotency_key` again.
        """
        fields: dict[str, Any] = {"kind": kind, "source": source, "payload": payload}
        fields |= {"timestamp": timestamp, "idempotency_key": idempotency_key}
        receipts = await self._append([outgoing(fields, stamp=self._spooled is not None)])
        return receipts[0]

    async def append_many(
        self, requests: Iterable[PublishRequest | Mapping[str, Any]], *, split: Split = "never"
    ) -> list[Receipt]:
        """Append the events in order, all or nothing; return their receipts in the same order.

        Raises TooLarge for more than 2,000 events or 4 MiB, unless `split` allows parts. Then each part is
        written whole or not at all, and an error's note says how many events were taken before it. A batch
        that goes through the spool keeps its order, but no longer counts as one.
        """
        made = [outgoing(request, stamp=self._spooled is not None) for request in requests]
        receipts: list[Receipt] = []
        for chunk in list(chunks(made, split=split)):
            try:
                receipts += await self._append(chunk)
            except AuditStreamError as error:
                error.add_note(f"{len(receipts)} of {len(made)} events were taken before")
                raise
        return receipts

    async def drain(self) -> Drained:
        """Append what waits in the spool, now. Without being asked that happens at the next append, and on close."""
        if self._draining is None:
            raise Misconfigured("this client has no spool")
        return await self._draining.drain({})

    async def _append(self, events: Sequence[Outgoing]) -> Sequence[Receipt]:
        return await (self._send(events) if self._spooled is None else self._spooled.append(events))

    async def _send(self, events: Sequence[Outgoing]) -> list[Event]:
        if len(events) == 1:
            request = Request("POST", "events", {}, {"Content-Type": "application/json"}, events[0].text)
        else:
            request = _batch([event.text for event in events])
        return await self._http.ask_for(
            request, lambda answer: _receipts(answer, len(events)), patience_s=self._patience_s
        )

    async def _post(self, lines: Sequence[bytes]) -> Answer:
        return await self._http.ask(_batch(lines), patience_s=0)

    def _receipts(self, answer: Answer, count: int) -> list[Event]:
        return self._http.understood(answer, lambda answer: _receipts(answer, count), in_doubt=True)

    # --- read

    async def get(self, event_id: int) -> Event | None:
        """The event as it is stored; None when there is none of this id."""
        request = Request("GET", f"events/{event_id}")
        answer = await self._http.ask(request, patience_s=self._patience_s)
        if answer.status == 404 and is_about_an_event(answer):
            return None
        if not answer.is_success:
            raise self._http.error(answer, request)
        return self._http.understood(answer, lambda answer: _event.decode(answer.body))

    async def query(
        self,
        *,
        kind: str | None = None,
        source: str | None = None,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        after: int = 0,
        before: int | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield the events for which every filter holds, oldest first, a page at a time; at most `limit`.

        `since` and `until` are about when an event was committed. Ends where the chain ended when it got there.
        """
        filters = _given(kind=kind, source=source, since=since, until=until, before=before)
        while limit is None or limit > 0:
            page = PAGE if limit is None else min(limit, PAGE)
            params = {**filters, "after": str(after), "limit": str(page)}
            events, more = await self._http.ask_for(
                Request("GET", "events", params), _page_of_events, patience_s=self._patience_s
            )
            for event in events:
                after = event.event_id
                yield event
            limit = None if limit is None else limit - len(events)
            if not more or not events:
                return

    async def tail(
        self,
        *,
        kind: str | None = None,
        source: str | None = None,
        after: int | Receipt | Head | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Yield events as they are appended, behind `after` or from the first `anext` on: in order, each once, no gap.

        Lost connections and restarts are waited out for as long as it takes. Raises ChainBroken when the chain
        ends before the cursor, and ChainChanged when it no longer holds the last event that was read: events were
        lost, or it is another chain. Given an event as `after`, not only its id, it begins by looking for that one.
        """
        if after is None:
            # Known before the first connection, so that what is appended while that one fails is not missed.
            stats = await self.stats()
            after = Head(stats.last_event_id, stats.latest_hash) if stats.latest_hash else stats.last_event_id
        if isinstance(after, Spooled):
            raise Refused(f"after: the event {after.idempotency_key} is still in {after.path}: it has no id yet")
        cursor, known = (after, None) if isinstance(after, int) else (after.event_id, Head(after.event_id, after.hash))
        events = follow(self._http, _given(kind=kind, source=source), cursor, known=known)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def verify(self, *, first: int = 1, last: int | None = None, deep: bool = False) -> Verdict:
        """Have the server recompute every link from event `first` to `last`, and return its verdict.

        May take as long as it needs: the server reports its progress meanwhile. `deep` compares every index entry.
        """
        params = {**_given(to=last), "from": str(first), "deep": str(deep).lower()}
        request = Request("GET", "verify", params, {"Accept": NDJSON})
        answer = await self._http.ask(request, patience_s=self._patience_s)
        if not answer.is_success:
            raise self._http.error(answer, request)
        # The last line is the verdict, or the problem that kept it from being reached.
        end = answer.body.rstrip().rpartition(b"\n")[2]
        problem = self._http.understood(answer, lambda _: msgspec.json.decode(end, type=dict[str, Any]))
        if isinstance(problem.get("status"), int):
            headers = httpx.Headers({"content-type": "application/problem+json"})
            raise self._http.error(Answer(problem["status"], headers, end), request)
        return self._http.understood(answer, lambda _: _verdict.decode(end))

    async def stats(self) -> Stats:
        """Count, head and promise."""
        return await self._http.ask_for(
            Request("GET", "stats"), lambda answer: _stats.decode(answer.body), patience_s=self._patience_s
        )

    def check(self, receipt: Receipt | Mapping[str, Any] | bytes | str) -> bool:
        """Recompute a receipt's hash here; True, or ChainBroken with what differs. Asks no server."""
        return models.check(receipt)


def _given(**params: Any) -> dict[str, str]:
    found = {}
    for name, value in params.items():
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise Refused(f"{name}: {value} does not say which time zone it is in", field=name)
            value = value.isoformat()
        if value is not None:
            found[name] = str(value)
    return found


def _batch(lines: Sequence[bytes]) -> Request:
    return Request("POST", "events/batch", {}, {"Content-Type": NDJSON}, b"\n".join(lines))


def _receipts(answer: Answer, count: int) -> list[Event]:
    body = answer.body
    events = _events.decode(body if body.startswith(b"[") else b"[%b]" % body)
    if len(events) != count:
        raise ValueError(f"{len(events)} receipts for {count} events")
    replayed = answer.headers.get("idempotent-replayed") == "true"
    return [msgspec.structs.replace(event, replayed=True) for event in events] if replayed else events


def _page_of_events(answer: Answer) -> tuple[list[Event], bool]:
    return _events.decode(answer.body), 'rel="next"' in answer.headers.get("link", "")
