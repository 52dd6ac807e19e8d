"""Appending to the spine: what was taken, what is refused for good, and when there is only waiting."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import httpx
import msgspec

from audit_stream.client.draining import is_for_good
from audit_stream.client.http import Answer, Http
from audit_stream.client.wire import AsyncioWire, Request

TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0


class Refusal(NamedTuple):
    """The spine will never take this request. Nothing of it was written."""

    reason: str
    at: int | None
    """The event that is wrong, where the spine could tell."""
    field: str | None = None
    """And what of it."""


class _Receipt(msgspec.Struct):
    event_id: int


_receipts = msgspec.json.Decoder(list[_Receipt])


class Spine:
    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._http = Http(AsyncioWire(f"{url}/", headers, timeout), url)

    async def close(self) -> None:
        await self._http.wire.close()

    async def append(self, events: Sequence[bytes]) -> Refusal | None:
        """Try once to append the events, all or nothing; None when the chain has them.

        Raises AuditStreamError when it is not about the events: the spine is away, busy or damaged, the token or
        the address is wrong. Then sending the same again later is safe, whatever became of this request.
        """
        if len(events) == 1:
            # On its own an event may be larger than a batch.
            path, body = "events", events[0]
        else:
            path, body = "events/batch", b"[%b]" % b",".join(events)
        request = Request("POST", path, {}, {"Content-Type": "application/json"}, body)
        answer = await self._http.ask(request, patience_s=0)
        if answer.is_success:
            self._http.understood(answer, lambda answer: _check_receipts(answer, len(events)), in_doubt=True)
            return None
        if is_for_good(answer):
            index = answer.problem.get("index")
            detail = str(answer.problem.get("detail") or f"the spine answered {answer.status}")
            at = index if type(index) is int and 0 <= index < len(events) else None
            return Refusal(detail, at, answer.problem.get("field"))
        raise self._http.error(answer, request)


def _check_receipts(answer: Answer, count: int) -> None:
    body = answer.body if answer.body.startswith(b"[") else b"[%b]" % answer.body
    if len(_receipts.decode(body)) != count:
        raise ValueError(f"not one receipt for each of {count} events")
