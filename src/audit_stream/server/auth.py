"""The guard in front of everything, where there are tokens: who asks, and may they (RFC 6750).

It stands outside of Litestar, so that it holds for the routes that pass Litestar by as well, and for paths
that do not exist. Without tokens it is not there at all.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Iterable
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from audit_stream.access.entry import Scope as Needed
from audit_stream.access.limit import Limit
from audit_stream.access.table import Grant, Tokens
from audit_stream.errors import AuditStreamError
from audit_stream.server.grants import KEY
from audit_stream.server.problems import LacksScope, TooMany, Unauthenticated, UnknownToken, of_ours, send_answer

COOKIE = "audit_stream"
_COOKIE = COOKIE.encode()

_OPEN = frozenset({"healthz", "readyz", "dashboard"})
_READ = frozenset({"events", "stream", "verify", "stats"})

log = logging.getLogger(__name__)


class Guard:
    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app, self._tokens = app, tokens

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "lifespan":
            return self._for_life(scope, receive, send)
        # By its first part alone: however the rest is spelt, no path to the same route needs less.
        part = _first_part(scope["path"])
        if part in _OPEN:
            return self._app(scope, receive, send)
        try:
            grant = self._identified(scope)
            _check_scope(grant, scope, part)
            if grant.requests or grant.bytes:
                receive = _charge(grant, scope, receive)
        except AuditStreamError as error:
            if isinstance(error, Unauthenticated) and part == "" and _wants_a_page(scope):
                return self._app(scope, receive, send)  # a redirect to the page, which has the login
            log.info("%s %r was refused: %s", scope["method"], scope["path"], error)
            return send_answer(of_ours(None, error), send)
        scope.setdefault("state", {})[KEY] = grant
        if part == "stream":
            return self._until_revoked(grant, scope, receive, send)
        return self._app(scope, receive, send)

    async def _for_life(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._tokens.watched():
            await self._app(scope, receive, send)

    def _identified(self, scope: Any) -> Grant:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) == 1 and given[0][:7].lower() == b"bearer ":
            token = given[0][7:].strip()
        elif given:
            raise Unauthenticated("Authorization: send it once, as `Bearer` and a token")
        # A cookie also goes along with what another site makes a browser do, so it counts where nothing is written.
        elif scope["method"] != "GET" or not (token := cookie_of(scope["headers"]) or b""):
            raise Unauthenticated("this server asks for a token: send the header `Authorization: Bearer …`")
        grant = self._tokens.find(token)
        if grant is None:
            raise UnknownToken("this token is not known here, or no longer")
        return grant

    async def _until_revoked(self, grant: Grant, scope: Scope, receive: Receive, send: Send) -> None:
        """A stream ends when its token does: its reader comes back, and is refused then."""
        open_ = False

        async def noting(message: Message) -> None:
            nonlocal open_
            open_ = message["type"] == "http.response.start" or bool(message.get("more_body"))
            await send(message)

        serving = asyncio.ensure_future(self._app(scope, receive, noting))
        revoked = asyncio.create_task(grant.revoked.wait())
        try:
            await asyncio.wait({serving, revoked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (serving, revoked):
                if not task.done():
                    task.cancel()
            await asyncio.wait({serving, revoked})
        if not serving.cancelled():
            serving.result()
        elif open_:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await send_answer(of_ours(None, UnknownToken("this token is not known here any more")), send)


def _first_part(path: str) -> str:
    return path.lstrip("/").partition("/")[0]


def _wants_a_page(scope: Any) -> bool:
    return scope["method"] == "GET" and any(
        name == b"accept" and b"text/html" in value for name, value in scope["headers"]
    )


def _check_scope(grant: Grant, scope: Any, part: str) -> None:
    needed: Needed
    if part in _READ:
        needed = "append" if part == "events" and scope["method"] == "POST" else "read"
    elif part == "metrics":
        needed = "metrics"
    else:
        return  # the service info, the description of the API, and what is not there: any token will do
    if needed not in grant.scopes:
        has = ", ".join(grant.entry.scopes)
        raise LacksScope(
            f"{scope['method']} {scope['path']} needs the scope {needed}; the token {grant.name!r} has {has}", needed
        )


# --- limits


def _charge(grant: Grant, scope: Any, receive: Receive) -> Receive:
    """Raises TooMany. Of a body that does not say how long it is, each part is charged as it comes."""
    now = time.monotonic()
    if grant.requests:
        _check_limit(grant, grant.requests, "requests", now)
    if grant.bytes and scope["method"] == "POST":
        _check_limit(grant, grant.bytes, "bytes", now)
        length = next((value for name, value in scope["headers"] if name == b"content-length"), None)
        if length is None:
            receive = _charged(grant.bytes, receive)
        else:
            grant.bytes.take(int(length), now)
    if grant.requests:
        grant.requests.take(1, now)
    return receive


def _check_limit(grant: Grant, limit: Limit, what: str, now: float) -> None:
    if wait_s := limit.wait_s(now):
        raise TooMany(
            f"the token {grant.name!r} is over its limit of {limit.per_second:g} {what} a second; nothing was done",
            retry_after=math.ceil(wait_s),
        )


def _charged(limit: Limit, receive: Receive) -> Receive:
    async def charged() -> Any:
        message: Any = await receive()
        limit.take(len(message.get("body", b"")), time.monotonic())
        return message

    return charged


# --- the cookie


def cookie_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The token in the dashboard's cookie (RFC 6265 §4.2.1)."""
    for header, value in headers:
        if header == b"cookie":
            for pair in value.split(b";"):
                name, _, token = pair.strip().partition(b"=")
                if name == _COOKIE:
                    return token
    return None
