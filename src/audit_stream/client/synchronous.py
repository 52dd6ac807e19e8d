"""AuditClient: the synchronous face. Every line that decides something is in AsyncAuditClient."""

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from audit_stream.client import models
from audit_stream.client.asynchronous import TIMEOUT_S, AsyncAuditClient
from audit_stream.client.models import Drained, Event, Head, Receipt, Stats, Verdict
from audit_stream.client.requests import Split
from audit_stream.client.wire import BlockingWire, run
from audit_stream.event import PublishRequest

if TYPE_CHECKING:
    from audit_stream.client.arguments import SpoolArgument


class AuditClient:
    """AsyncAuditClient for code that waits. Threads may share one; `with`, or `close` it.

    Works where an event loop is running as well, and holds it up for as long as a request takes.
    The methods are those of AsyncAuditClient, and promise the same.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        spool: "SpoolArgument" = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float | None = None,
    ) -> None:
        self._client = AsyncAuditClient(
            url, token=token, spool=spool, timeout_s=timeout_s, patience_s=patience_s, wire=BlockingWire
        )

    def __repr__(self) -> str:
        return repr(self._client).replace("Async", "", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        run(self._client.close())

    def append(
        self,
        kind: str,
        source: str,
        payload: Mapping[str, Any] | None = None,
        *,
        timestamp: str | datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        return run(self._client.append(kind, source, payload, timestamp=timestamp, idempotency_key=idempotency_key))

    def append_many(
        self, requests: Iterable[PublishRequest | Mapping[str, Any]], *, split: Split = "never"
    ) -> list[Receipt]:
        return run(self._client.append_many(requests, split=split))

    def drain(self) -> Drained:
        return run(self._client.drain())

    def get(self, event_id: int) -> Event | None:
        return run(self._client.get(event_id))

    def query(
        self,
        *,
        kind: str | None = None,
        source: str | None = None,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        after: int = 0,
        before: int | None = None,
        limit: int | None = None,
    ) -> Generator[Event, None, None]:
        return _each(
            self._client.query(
                kind=kind, source=source, since=since, until=until, after=after, before=before, limit=limit
            )
        )

    def tail(
        self,
        *,
        kind: str | None = None,
        source: str | None = None,
        after: int | Receipt | Head | None = None,
    ) -> Generator[Event, None, None]:
        return _each(self._client.tail(kind=kind, source=source, after=after))

    def verify(self, *, first: int = 1, last: int | None = None, deep: bool = False) -> Verdict:
        return run(self._client.verify(first=first, last=last, deep=deep))

    def stats(self) -> Stats:
        return run(self._client.stats())

    def check(self, receipt: Receipt | Mapping[str, Any] | bytes | str) -> bool:
        return models.check(receipt)


def _each(events: AsyncGenerator[Event, None]) -> Generator[Event, None, None]:
    try:
        while (event := run(_next(events))) is not None:
            yield event
    finally:
        run(_close(events))


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)


async def _close(events: AsyncGenerator[Event, None]) -> None:
    await events.aclose()
