"""The guard in front of everything, where there are tokens: who asks, and may they (RFC 6750).

It stands outside of Litestar, so that it holds for the routes that pass Litestar by as well, and for paths
that do not exist. Without tokens it is not there at all.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Mapping
from typing import Any
from urllib.parse import quote

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from audit_stream.access.entry import Scope as Needed
from audit_stream.access.limit import Limit
from audit_stream.access.table import Grant, Tokens
from audit_stream.connection import end
from audit_stream.errors import AuditStreamError
from audit_stream.server.grants import KEY
from audit_stream.server.problems import LacksScope, TooMany, Unauthenticated, UnknownToken, of_ours, send_answer

COOKIE = "audit_stream"
_COOKIE = COOKIE.encode()

_OPEN = frozenset({"healthz", "readyz", "dashboard"})
# By the first part of the path alone: however the rest of it is spelt, no way to the same route needs less.
# What is not named here, a path that does not exist among it, takes any token.
_NEEDED: dict[str, Needed] = {
    "events": "read",  # and to POST there, append
    "stream": "read",
    "verify": "read",
    "stats": "read",
    "metrics": "metrics",
}

log = logging.getLogger(__name__)


class Guard:
    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app, self._tokens = app, tokens

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "lifespan":
            return self._for_life(scope, receive, send)
        part = scope["path"].lstrip("/").partition("/")[0]
        if part in _OPEN:
            return self._app(scope, receive, send)
        headers = dict(scope["headers"])
        try:
            grant = self._identified(scope, headers)
            needed = "append" if part == "events" and scope["method"] == "POST" else _NEEDED.get(part)
            if needed and needed not in grant.scopes:
                raise _lacking(grant, scope, needed)
            if grant.requests or grant.bytes:
                receive = _charge(grant, scope, headers, receive)
        except AuditStreamError as error:
            if part == "" and isinstance(error, Unauthenticated) and b"text/html" in headers.get(b"accept", b""):
                return self._app(scope, receive, send)  # a browser is sent on to the page, which has the login
            log.info("%s %s was refused: %s", scope["method"], quote(scope["path"]), error)
            return send_answer(of_ours(None, error), send)
        scope.setdefault("state", {})[KEY] = grant
        if part == "stream":
            return self._until_revoked(grant, scope, receive, send)
        return self._app(scope, receive, send)

    async def _for_life(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._tokens.watched():
            await self._app(scope, receive, send)

    def _identified(self, scope: Any, headers: Mapping[bytes, bytes]) -> Grant:
        given = headers.get(b"authorization")
        if given is not None:
            if given[:7] != b"Bearer " and given[:7].lower() != b"bearer ":
                raise Unauthenticated("Authorization: send the word Bearer and a token")
            token = given[7:].strip()
        # A cookie also goes along with what another site makes a browser do, so it counts where nothing is written.
        elif scope["method"] != "GET" or not (token := cookie_of(headers) or b""):
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
            await end(serving, revoked)
        if not serving.cancelled():
            serving.result()
        elif open_:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await send_answer(of_ours(None, UnknownToken("this token is not known here any more")), send)


def _lacking(grant: Grant, scope: Any, needed: Needed) -> LacksScope:
    has = ", ".join(grant.entry.scopes)
    # Quoted: what stands in an answer and in a log is one line, whatever was asked for.
    asked = f"{scope['method']} {quote(scope['path'])}"
    return LacksScope(f"{asked} needs the scope {needed}; the token {grant.name!r} has {has}", needed)


# --- limits


def _charge(grant: Grant, scope: Any, headers: Mapping[bytes, bytes], receive: Receive) -> Receive:
    """Raises TooMany. Of a body that does not say how long it is, each part is charged as it comes."""
    now = time.monotonic()
    if grant.requests and (wait_s := grant.requests.take(1, now)):
        raise _over(grant, grant.requests, "requests", wait_s)
    if grant.bytes and scope["method"] == "POST":
        length = headers.get(b"content-length")
        if wait_s := grant.bytes.take(int(length or 0), now):
            raise _over(grant, grant.bytes, "bytes", wait_s)
        if length is None:
            return _charged(grant.bytes, receive)
    return receive


def _over(grant: Grant, limit: Limit, what: str, wait_s: float) -> TooMany:
    return TooMany(
        f"the token {grant.name!r} is over its limit of {limit.per_second:g} {what} a second; nothing was done",
        retry_after=math.ceil(wait_s),
    )


def _charged(limit: Limit, receive: Receive) -> Receive:
    async def charged() -> Any:
        message: Any = await receive()
        limit.owe(len(message.get("body", b"")), time.monotonic())
        return message

    return charged


# --- the cookie


def cookie_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The token in the dashboard's cookie (RFC 6265 §4.2.1)."""
    for pair in headers.get(b"cookie", b"").split(b";"):
        name, _, token = pair.strip().partition(b"=")
        if name == _COOKIE:
            return token
    return None
