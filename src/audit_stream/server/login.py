"""Logging in to the dashboard: a browser trades its token for a cookie, as EventSource can send no header."""

import math
import time
from collections import OrderedDict
from ipaddress import ip_address

import msgspec
from litestar import Response, get, post

from audit_stream.access.limit import Limit
from audit_stream.access.session import LIFETIME_S, Sessions
from audit_stream.access.table import Grant, Tokens
from audit_stream.errors import Forbidden, Refused
from audit_stream.server.auth import COOKIE, SECURE_COOKIE, cookie_of
from audit_stream.server.problems import AnyRequest, LacksScope, NotFound, TooMany, UnknownToken, Unsupported
from audit_stream.settings import Settings
from audit_stream.spine import spine_of

MISTAKES_PER_SECOND = 0.2
MISTAKES_AT_ONCE_S = 50.0  # ten of them
ADDRESSES_KEPT = 1_000
BODY_BYTES = 4_096


class Attempts:
    """Mistaken logins by address; of so many addresses only the latest are kept."""

    def __init__(self) -> None:
        self._limits: OrderedDict[str, Limit] = OrderedDict()

    def count(self, address: str) -> None:
        """Count one more. Raises TooMany when they come too fast."""
        limit = self._limits.pop(address, None) or Limit(MISTAKES_PER_SECOND, burst_s=MISTAKES_AT_ONCE_S)
        self._limits[address] = limit
        while len(self._limits) > ADDRESSES_KEPT:
            self._limits.popitem(last=False)
        if wait_s := limit.take(1, time.monotonic()):
            raise TooMany("too many mistaken logins from this address", retry_after=math.ceil(wait_s))


class Credentials(msgspec.Struct, forbid_unknown_fields=True):
    token: str


class Login(msgspec.Struct):
    """What the page needs to know before it asks for anything."""

    needed: bool
    name: str | None
    """Of the token that the browser is logged in with."""


@get("/dashboard/login", include_in_schema=False)
async def login_state(request: AnyRequest) -> Response[Login]:
    sessions: Sessions | None = request.app.state.sessions
    headers = {"Cache-Control": "no-store"}
    session = cookie_of(dict(request.scope["headers"]))
    if sessions is None or session is None:
        return Response(Login(sessions is not None, None), headers=headers)
    secret = await sessions.prepare(spine_of(request.app.state).stream.session_key.secret)
    grant, left_s = sessions.find(session) or (None, 0.0)
    if grant is None or _falls_short(grant):
        return Response(Login(True, None), headers=headers)
    if left_s < LIFETIME_S / 2:
        headers["Set-Cookie"] = _cookie(request, sessions.seal(grant, secret), LIFETIME_S)
    return Response(Login(True, grant.name), headers=headers)


@post("/dashboard/login", include_in_schema=False, status_code=204, request_max_body_size=BODY_BYTES)
async def log_in(request: AnyRequest) -> Response[None]:
    _only_json(request)
    tokens: Tokens | None = request.app.state.tokens
    if tokens is None:
        raise NotFound("this server has no tokens: nobody needs to log in")
    sessions: Sessions = request.app.state.sessions
    try:
        token = msgspec.json.decode(await request.body(), type=Credentials).token.strip()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused('the body is to be {"token": "…"}') from error
    grant = tokens.find(token.encode())
    if grant is None:
        # Mistakes alone are counted: others who make them cannot keep the right token out.
        attempts: Attempts = request.app.state.attempts
        attempts.count(asker(request)[0])
        raise UnknownToken("this token is not known here")
    if short := _falls_short(grant):
        raise short
    secret = await sessions.prepare(spine_of(request.app.state).stream.session_key.secret)
    cookie = _cookie(request, sessions.seal(grant, secret), LIFETIME_S)
    return Response(None, status_code=204, headers={"Set-Cookie": cookie})


@post("/dashboard/logout", include_in_schema=False, status_code=204)
async def log_out(request: AnyRequest) -> Response[None]:
    _only_json(request)
    return Response(None, status_code=204, headers={"Set-Cookie": _cookie(request, "", 0)})


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


def _cookie(request: AnyRequest, session: str, age_s: int) -> str:
    _, secure = asker(request)
    name, end = (SECURE_COOKIE, "; Secure") if secure else (COOKIE, "")
    return f"{name}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age_s}{end}"


def asker(request: AnyRequest) -> tuple[str, bool]:
    """Return whose request it is and whether it came by https. A proxy is believed when it is one of ours."""
    settings: Settings = spine_of(request.app.state).settings
    address = request.client.host if request.client else ""
    secure = request.scope["scheme"] == "https"
    try:
        trusted = any(ip_address(address) in network for network in settings.forwarded_allow_ips)
    except ValueError:
        trusted = False
    if trusted:
        # The last one, in whichever line, is what our proxy has added; those before it anyone can claim.
        address = _last(request, "x-forwarded-for") or address
        secure = secure or _last(request, "x-forwarded-proto").lower() == "https"
    return address, secure


def _last(request: AnyRequest, header: str) -> str:
    return ",".join(request.headers.getall(header, [])).rpartition(",")[2].strip()
