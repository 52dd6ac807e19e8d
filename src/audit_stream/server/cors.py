"""CORS, for pages of other origins that are to call this server (WHATWG Fetch, §3.2).

Stands outside of everything: preflights carry no token, and the routes that pass Litestar by, streams and
refusals need the headers as well. Cookies are never allowed along: a page of another origin brings a token.
"""

from collections.abc import Awaitable, Collection
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Send

_EXPOSED = b"ETag, Idempotent-Replayed, Link, Location, Retry-After, WWW-Authenticate"
_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-max-age", b"600"),
]


class Cors:
    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)
        self._any = b"*" in self._origins

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        added: list[tuple[bytes, bytes]] = [] if self._any else [(b"vary", b"Origin")]
        if origin is not None and (self._any or origin in self._origins):
            added.append((b"access-control-allow-origin", b"*" if self._any else origin))
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                return _allow(headers, added, send)
            added.append((b"access-control-expose-headers", _EXPOSED))

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        return self._app(scope, receive, adding)


async def _allow(headers: dict[bytes, bytes], added: list[tuple[bytes, bytes]], send: Send) -> None:
    asked = headers.get(b"access-control-request-headers")
    # Any header may be sent: what is in it is checked where it is read.
    named = [(b"access-control-allow-headers", asked)] if asked else []
    start: Any = {"type": "http.response.start", "status": 204, "headers": [*added, *_PREFLIGHT, *named]}
    await send(start)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
