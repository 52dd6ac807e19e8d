"""Logging in to the dashboard: a browser trades its token for a cookie, as EventSource can send no header."""

import math
import re
import time
from collections import OrderedDict
from ipaddress import ip_address

import msgspec
from litestar import Response, get, post

from audit_stream.access.limit import Limit
from audit_stream.access.table import Grant, Tokens
from audit_stream.errors import Forbidden, Refused
from audit_stream.server.auth import COOKIE, cookie_of
from audit_stream.server.problems import AnyRequest, LacksScope, NotFound, TooMany, UnknownToken, Unsupported
from audit_stream.settings import Settings
from audit_stream.spine import spine_of

MISTAKES_PER_SECOND = 0.2
MISTAKES_AT_ONCE_S = 50.0  # ten of them
ADDRESSES_KEPT = 1_000
BODY_BYTES = 4_096
# RFC 6265 §4.1.1; a token that was made here has no other characters.
_FIT_FOR_A_COOKIE = re.compile(r'[^\x00-\x20\x7f-\U0010ffff",;\\]+')


class Attempts:
    """Mistaken logins by address; of so many addresses only the latest are kept."""

    def __init__(self) -> None:
        self._limits: OrderedDict[str, Limit] = OrderedDict()

    def count(self, address: str) -> None:
        """Raises TooMany."""
        limit = self._limits.pop(address, None) or Limit(MISTAKES_PER_SECOND, burst_s=MISTAKES_AT_ONCE_S)
        self._limits[address] = limit
        while len(self._limits) > ADDRESSES_KEPT:
            self._limits.popitem(last=False)
        if wait_s := limit.take(1, time.monotonic()):
            raise TooMany("too many mistaken logins from this address", retry_after=math.ceil(wait_s))

    def forget(self, address: str) -> None:
        self._limits.pop(address, None)


class Credentials(msgspec.Struct, forbid_unknown_fields=True):
    token: str


class Login(msgspec.Struct):
    """What the page needs to know before it asks for anything."""

    needed: bool
    name: str | None
    """Of the token that the browser is logged in with."""


@get("/dashboard/login", include_in_schema=False)
async def login_state(request: AnyRequest) -> Response[Login]:
    tokens: Tokens | None = request.app.state.tokens
    token = cookie_of(dict(request.scope["headers"]))
    grant = tokens.find(token) if tokens and token else None
    name = grant.name if grant and not _falls_short(grant) else None
    return Response(Login(tokens is not None, name), headers={"Cache-Control": "no-store"})


@post("/dashboard/login", include_in_schema=False, status_code=204, request_max_body_size=BODY_BYTES)
async def log_in(request: AnyRequest) -> Response[None]:
    _only_json(request)
    tokens: Tokens | None = request.app.state.tokens
    if tokens is None:
        raise NotFound("this server has no tokens: nobody needs to log in")
    attempts: Attempts = request.app.state.attempts
    address, secure = asker(request, spine_of(request.app.state).settings)
    attempts.count(address)
    try:
        token = msgspec.json.decode(await request.body(), type=Credentials).token.strip()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused('the body is to be {"token": "…"}') from error
    grant = tokens.find(token.encode()) if _FIT_FOR_A_COOKIE.fullmatch(token) else None
    if grant is None:
        raise UnknownToken("this token is not known here")
    attempts.forget(address)
    if short := _falls_short(grant):
        raise short
    return Response(None, status_code=204, headers={"Set-Cookie": _cookie(token, secure=secure)})


@post("/dashboard/logout", include_in_schema=False, status_code=204)
async def log_out(request: AnyRequest) -> Response[None]:
    _only_json(request)
    _, secure = asker(request, spine_of(request.app.state).settings)
    return Response(None, status_code=204, headers={"Set-Cookie": f"{_cookie('', secure=secure)}; Max-Age=0"})


def _falls_short(grant: Grant) -> Forbidden | None:
    """Why the page could not show what it shows with this token."""
    if "read" not in grant.scopes:
        return LacksScope(f"the dashboard needs the scope read; the token {grant.name!r} does not have it", "read")
    if grant.sources is not None:
        return Forbidden(
            f"the dashboard shows the whole chain, and the token {grant.name!r} may read only some of its sources"
        )
    return None


def _only_json(request: AnyRequest) -> None:
    # No page of another site can send this without being asked first (CORS), and none is let in or out by it.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Unsupported("send it with Content-Type: application/json")


def _cookie(token: str, *, secure: bool) -> str:
    # Without an age: it ends with the browser's session, or with the token.
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"


def asker(request: AnyRequest, settings: Settings) -> tuple[str, bool]:
    """Whose request it is and whether it came by https; a proxy is asked only when it is one of ours."""
    address = request.client.host if request.client else ""
    secure = request.scope["scheme"] == "https"
    try:
        trusted = any(ip_address(address) in network for network in settings.forwarded_allow_ips)
    except ValueError:
        trusted = False
    if trusted:
        # The last one is what our proxy has added; those before it anyone can claim.
        address = request.headers.get("x-forwarded-for", address).rpartition(",")[2].strip() or address
        secure = secure or request.headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower() == "https"
    return address, secure
