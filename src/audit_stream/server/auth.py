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
from audit_stream.access.session import Sessions
from audit_stream.access.table import Grant, Tokens
from audit_stream.connection import end
from audit_stream.errors import AuditStreamError
from audit_stream.server.grants import KEY
from audit_stream.server.problems import LacksScope, TooMany, Unauthenticated, UnknownToken, of_ours, send_answer

COOKIE = "audit_stream"
SECURE_COOKIE = "__Host-audit_stream"
"""Over https. A browser takes it from this very host alone, and only as Secure and for every path (RFC 6265bis)."""


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

# Their answers may take long, so they end with the token or session that they were asked for with.
_LONG = frozenset({"events", "stream", "verify"})

log = logging.getLogger(__name__)


class Revoked(Exception):
    """Cuts off an answer that has begun: uvicorn closes the connection, so that it cannot pass for a whole one."""


class Guard:
    def __init__(self, app: ASGIApp, tokens: Tokens, sessions: Sessions) -> None:
        self._app, self._tokens, self._sessions = app, tokens, sessions

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "lifespan":
            return self._for_life(scope, receive, send)
        part = scope["path"].lstrip("/").partition("/")[0]
        if part in _OPEN:
            return self._app(scope, receive, send)
        headers = dict(scope["headers"])
        try:
            grant, left_s = self._identified(scope, headers)
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
        if part in _LONG and scope["method"] == "GET":
            return self._until_revoked(grant, left_s, scope, receive, send)
        return self._app(scope, receive, send)

    async def _for_life(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._tokens.watched():
            await self._app(scope, receive, send)

    def _identified(self, scope: Any, headers: Mapping[bytes, bytes]) -> tuple[Grant, float | None]:
        """Return whose request it is, and in how many seconds the session ends, if it is one."""
        given = headers.get(b"authorization")
        if given is not None:
            if given[:7] != b"Bearer " and given[:7].lower() != b"bearer ":
                raise Unauthenticated("Authorization: send the word Bearer and a token")
            grant = self._tokens.find(given[7:].strip())
            if grant is None:
                raise UnknownToken("this token is not known here, or no longer")
            return grant, None
        # A cookie also goes along with what another site makes a browser do, so it counts where nothing is written.
        if scope["method"] != "GET" or not (session := cookie_of(headers)):
            raise Unauthenticated("this server asks for a token: send the header `Authorization: Bearer …`")
        found = self._sessions.find(session)
        if found is None:
            raise UnknownToken("this session is over, or its token is not known here any more: log in again")
        return found

    async def _until_revoked(
        self, grant: Grant, left_s: float | None, scope: Any, receive: Receive, send: Send
    ) -> None:
        """End the answer with its token or session. The reader of a stream comes back, and is refused then."""
        open_ = False

        async def noting(message: Message) -> None:
            nonlocal open_
            open_ = message["type"] == "http.response.start" or bool(message.get("more_body"))
            await send(message)

        serving = asyncio.ensure_future(self._app(scope, receive, noting))
        revoked = asyncio.create_task(grant.revoked.wait())
        try:
            await asyncio.wait({serving, revoked}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(serving, revoked)
        if not serving.cancelled():
            serving.result()
        elif open_ and scope["path"].strip("/") == "stream":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif open_:
            log.info("an answer to %r was cut off: the token or session ended", grant.name)
            raise Revoked
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
    """Return the session in the dashboard's cookie (RFC 6265 §4.2.1)."""
    pairs = dict(pair.strip().partition(b"=")[::2] for pair in headers.get(b"cookie", b"").split(b";"))
    return pairs.get(SECURE_COOKIE.encode()) or pairs.get(COOKIE.encode())
