"""One request to the server: sent again while that may help, and its refusal turned into an error."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import httpx
import msgspec

from audit_stream.client.wire import Incoming, Request, Wire
from audit_stream.errors import (
    AuditStreamError,
    ChainBroken,
    Forbidden,
    Malformed,
    Pushback,
    Refused,
    TooLarge,
    Unreachable,
)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
# A Retry-After of hours is some proxy's, not the server's.
LONGEST_RETRY_AFTER_S = 300

T = TypeVar("T")


class Answer(NamedTuple):
    """Any answer that asking again will not change."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def problem(self) -> dict[str, Any]:
        """The server's problem details (RFC 9457); empty when something else answered."""
        if self.headers.get("content-type", "").startswith("application/problem+json"):
            with suppress(msgspec.DecodeError):
                return msgspec.json.decode(self.body, type=dict[str, Any])
        return {}


class Backoff:
    """Jittered pauses that double. After `patience_s` there are no more; None: there always are."""

    def __init__(
        self, patience_s: float | None, *, first_s: float = FIRST_PAUSE_S, longest_s: float = LONGEST_PAUSE_S
    ) -> None:
        self._ends_at = None if patience_s is None else time.monotonic() + patience_s
        self._next_s, self._longest_s = first_s, longest_s

    def pause_s(self, *, at_least_s: float = 0) -> float | None:
        """How long to wait before the next attempt; None when it would begin after the end."""
        # Jittered in both parts, so that the clients of a restarted server do not all come back at one moment.
        pause_s = max(self._next_s * random.uniform(0.5, 1), at_least_s * random.uniform(1, 1.25))
        self._next_s = min(self._next_s * 2, self._longest_s)
        if self._ends_at is not None and time.monotonic() + pause_s > self._ends_at:
            return None
        return pause_s


class Http:
    """One server."""

    def __init__(self, wire: Wire, server: str) -> None:
        self.wire = wire
        self.server = server
        """Its address, as it may be shown."""

    async def ask(self, request: Request, *, patience_s: float) -> Answer:
        """Return the answer. 429, 5xx and lost connections are tried again until `patience_s` have passed.

        Raises Pushback (429) or Unreachable when that did not help.
        """
        backoff = Backoff(patience_s)
        in_doubt = False
        while True:
            try:
                async with self.wire.open(request) as incoming:
                    answer = await self.read(incoming)
                if answer.status != 429 and answer.status < 500:
                    return answer
                failure: AuditStreamError = self.error(answer, request)
            except httpx.TransportError as error:
                failure = self.lost(error)
            if isinstance(failure, Unreachable):
                # One attempt of unknown end is enough for the whole to be in doubt.
                in_doubt = failure.in_doubt = request.method == "POST" and (in_doubt or failure.in_doubt)
            pause_s = backoff.pause_s(at_least_s=retry_after_s(failure))
            if pause_s is None:
                raise failure
            await self.wire.sleep(pause_s)

    async def ask_for(self, request: Request, read: Callable[[Answer], T], *, patience_s: float) -> T:
        """Return what `read` makes of a 2xx. Raises what the server refused it with, and Pushback, Unreachable."""
        answer = await self.ask(request, patience_s=patience_s)
        if not answer.is_success:
            raise self.error(answer, request)
        return self.understood(answer, read, in_doubt=request.method == "POST")

    def understood(self, answer: Answer, read: Callable[[Answer], T], *, in_doubt: bool = False) -> T:
        try:
            return read(answer)
        except (ValueError, msgspec.DecodeError) as error:
            raise Unreachable(
                f"{self.server} answered {answer.status}, but with no answer of an audit-stream server: {error}",
                in_doubt=in_doubt,
            ) from error

    async def read(self, incoming: Incoming) -> Answer:
        body = b"".join([chunk async for chunk in incoming.chunks])
        return Answer(incoming.status, incoming.headers, body)

    def lost(self, error: httpx.TransportError) -> Unreachable:
        what = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Unreachable(f"no server at {self.server}: {what}")
        return Unreachable(f"the connection to {self.server} was lost: {what}", in_doubt=True)

    def error(self, answer: Answer, request: Request) -> AuditStreamError:
        """The error of an answer that is no 2xx, in the server's own words where it has any."""
        status, problem = answer.status, answer.problem
        retry_after = _whole_seconds(answer.headers.get("retry-after", ""))
        detail = str(problem.get("detail") or f"{self.server} answered {status} to {request.path}")
        if status == 429:
            return Pushback(detail, retry_after=retry_after or 1)
        if status >= 500:
            unreachable = Unreachable(detail, in_doubt=True)
            unreachable.retry_after = retry_after or 1
            return unreachable
        if not problem or status == 405 or (status == 404 and not is_about_an_event(answer)):
            path = httpx.URL(self.server).path.rstrip("/")
            hint = f" The url has a path, {path}; without it the server may be there." if path else ""
            return Refused(
                f"{self.server} answered {status} to {request.path}: is it the address of an audit-stream server?{hint}"
            )
        if status == 409:
            return ChainBroken(detail, at=_whole(problem, "at") or 0)
        bad = Malformed if request.method == "POST" else Refused
        kind = {400: bad, 401: Forbidden, 403: Forbidden, 413: TooLarge}.get(status, Refused)
        return kind(detail, field=problem.get("field"), index=_whole(problem, "index"))


def is_about_an_event(answer: Answer) -> bool:
    """Whether a 404 says that there is no such event, and not that there is no such path."""
    return str(answer.problem.get("detail")).startswith("there is no event")


def retry_after_s(failure: AuditStreamError) -> float:
    """What the server asked for; nothing when no server answered."""
    if isinstance(failure, Pushback):
        return failure.retry_after
    # On the class it is a default for whoever answers; only on the instance is it something that was said.
    return float(vars(failure).get("retry_after", 0))


def _whole(problem: dict[str, Any], name: str) -> int | None:
    value = problem.get(name)
    return value if type(value) is int else None


def _whole_seconds(text: str) -> int:
    # Retry-After may be a date as well (RFC 9110 §10.2.3); then our own pace is good enough.
    return min(int(text), LONGEST_RETRY_AFTER_S) if text.isascii() and text.isdigit() and len(text) < 10 else 0
