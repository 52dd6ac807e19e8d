"""Errors as answers: problem details (RFC 9457), each error class with its one status."""

import logging
from collections.abc import Collection
from difflib import get_close_matches
from http import HTTPStatus
from time import monotonic
from typing import Any
from urllib.parse import quote

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import Send

from audit_stream.errors import (
    AuditStreamError,
    ChainBroken,
    Forbidden,
    HashMismatch,
    Malformed,
    Pushback,
    Refused,
    TooLarge,
    Unreachable,
)
from audit_stream.server.bodies import MistakeBody, ProblemBody
from audit_stream.tally import Failure

MEDIA_TYPE = "application/problem+json"
NOT_SNIFFED = {"X-Content-Type-Options": "nosniff"}
"""No browser takes an answer for something else than its type. A receipt goes without, for speed."""

# The first class that fits decides.
_STATUS: tuple[tuple[type[AuditStreamError], int], ...] = (
    (Malformed, 400),
    (TooLarge, 413),
    (Forbidden, 403),
    (Refused, 422),
    (ChainBroken, 409),
    (Pushback, 503),
    (Unreachable, 503),
    (HashMismatch, 503),
)

REPEAT_S = 60.0
MOST_LOGGED = 100
MOST_SHOWN = 100

log = logging.getLogger(__name__)
_logged: dict[str, float] = {}
"""When each evidence of damage was last logged."""

AnyRequest = Request[Any, Any, Any]


class NotFound(AuditStreamError):
    """There is no event of this id."""


class OutOfRange(AuditStreamError):
    """A parameter is a number, but not one that is allowed."""


class CursorAhead(AuditStreamError):
    """The cursor is not from this chain, or the chain lost what it pointed at."""


class Unsupported(AuditStreamError):
    """The body is of a media type that is not taken."""


class NotAcceptable(AuditStreamError):
    """The answer has no form that the client takes."""


class Unauthenticated(AuditStreamError):
    """There is no token, or none that is known here."""

    challenge = 'Bearer realm="audit-stream"'  # RFC 6750 §3


class UnknownToken(Unauthenticated):
    challenge = 'Bearer realm="audit-stream", error="invalid_token"'


class LacksScope(Forbidden):
    """The token is known, and is not for this."""

    def __init__(self, detail: str, scope: str) -> None:
        super().__init__(detail)
        self.challenge = f'Bearer realm="audit-stream", error="insufficient_scope", scope="{scope}"'


class CrossSite(Forbidden):
    """A page of another site sent it. Nothing was done."""


class Misdirected(AuditStreamError):
    """The request is meant for another host. Nothing was done."""


class TooMany(AuditStreamError):
    """The token is over one of its limits. Nothing was done."""

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


_HTTP_ONLY: dict[type[AuditStreamError], int] = {
    NotFound: 404,
    OutOfRange: 400,
    NotAcceptable: 406,
    CursorAhead: 409,
    Unsupported: 415,
    Unauthenticated: 401,
    UnknownToken: 401,
    Misdirected: 421,
    TooMany: 429,
}


# Parameters that have another name in Python than on the wire.
_SHOWN_AS = {"first": "from", "last": "to", "last_event_id": "Last-Event-ID"}


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> Response[bytes]:
    body = ProblemBody(title=HTTPStatus(status).phrase, status=status, detail=detail, **more)
    headers = {**NOT_SNIFFED, **(headers or {})}
    return Response(msgspec.json.encode(body), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def of_ours(_: AnyRequest | None, error: AuditStreamError) -> Response[bytes]:
    status = _HTTP_ONLY.get(type(error)) or next(code for kind, code in _STATUS if isinstance(error, kind))
    more: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if isinstance(error, Refused):
        errors = [MistakeBody(*mistake) for mistake in error.mistakes] or None
        more = {"field": error.field, "index": error.index, "errors": errors}
    elif isinstance(error, ChainBroken):
        more = {"at": error.at, "advice": error.advice}
        _log_evidence(str(error))
    elif isinstance(error, HashMismatch):
        log.error("%s", error)
    if status in (429, 503):
        headers["Retry-After"] = str(getattr(error, "retry_after", 1))
    if challenge := getattr(error, "challenge", None):
        headers["WWW-Authenticate"] = challenge
    return problem(status, str(error), headers, **more)


def _log_evidence(text: str) -> None:
    """Log it, but not for every request that meets it: a damaged chain is met by all of them."""
    now = monotonic()
    if now - _logged.get(text, -REPEAT_S) >= REPEAT_S:
        if len(_logged) >= MOST_LOGGED:
            _logged.clear()
        _logged[text] = now
        log.error("the chain is damaged: %s", text)


async def send_answer(response: Response[bytes], send: Send) -> None:
    """Answer where no request of the framework's is at hand."""
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
    headers += [
        (b"content-type", str(response.media_type).encode()),
        (b"content-length", b"%d" % len(response.content)),
    ]
    await send({"type": "http.response.start", "status": response.status_code or 500, "headers": headers})
    await send({"type": "http.response.body", "body": response.content, "more_body": False})


# What /metrics calls them; the first class that fits decides.
_FAILURES: tuple[tuple[type[AuditStreamError], Failure], ...] = (
    (Pushback, "too_busy"),
    (Unreachable, "unreachable"),
    (ChainBroken, "chain_broken"),
    (HashMismatch, "hash_mismatch"),
    (AuditStreamError, "refused"),
)


def failure(error: Exception) -> Failure:
    return next((name for kind, name in _FAILURES if isinstance(error, kind)), "fault")


def of_litestar(request: AnyRequest, error: HTTPException) -> Response[bytes]:
    """What the framework refuses: unknown paths and methods, parameters of the wrong type."""
    status, detail, field = error.status_code, error.detail, None
    if status == 404 and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = no_such_path(request.url.path, [route.path for route in request.app.routes])
    if status == 405:
        detail = f"{request.method} is not one of {', '.join(_allowed(error))}"
    if isinstance(error, ValidationException):
        status = 422
        first = next((extra for extra in error.extra or () if isinstance(extra, dict)), None)
        if first:
            name = str(first.get("key", ""))
            field = _SHOWN_AS.get(name, name)
            detail = f"{field}: {first.get('message', detail)}"
    return problem(status, detail, dict(error.headers or {}), field=field)


def no_such_path(path: str, paths: Collection[str]) -> str:
    # Quoted: what is in an answer is one line, whatever was asked for.
    shown = quote(path[:MOST_SHOWN])
    near = get_close_matches(path[:MOST_SHOWN], paths, n=1, cutoff=0.75)
    return (
        f"there is no {shown}; did you mean {near[0]}?" if near else f"there is no {shown}; GET / lists what there is"
    )


def _allowed(error: HTTPException) -> list[str]:
    methods = next((value for name, value in (error.headers or {}).items() if name.lower() == "allow"), "")
    return sorted(set(methods.split(", ")) - {"OPTIONS"})


def of_anything(request: AnyRequest, error: Exception) -> Response[bytes]:
    log.error("%s %s failed, and the fault is ours", request.method, request.url.path, exc_info=error)
    return problem(500, "the server failed to answer; its log says why")


def not_sniffed(response: Any) -> Any:
    """Add the header to a response of Litestar's. A handler that answers on ASGI itself adds it itself."""
    if isinstance(response, Response):
        response.headers.update(NOT_SNIFFED)
    return response


def in_json(response: Response[Any]) -> Response[Any]:
    """Litestar's OpenAPI router has a page of its own for paths that are not there."""
    return problem(404, "there is nothing here; GET / lists what there is") if response.status_code == 404 else response


HANDLERS: dict[type[Exception] | int, Any] = {
    AuditStreamError: of_ours,
    HTTPException: of_litestar,
    Exception: of_anything,
}
