"""The check on what browsers send: which host a request is meant for, and which page sent it.

Without tokens, everyone who reaches the port may append and read. A server on a laptop is reached by every page that a
browser on this laptop has open, so two ways in are closed here:

- DNS rebinding: a page makes its own name resolve to this machine. `Host` then holds that name.
- A request of another site, which browsers send without asking first as long as it looks like a form's.

Both checks read headers that a browser sets and no page can change. Clients that are not browsers are not stopped.
"""

import re
from collections.abc import Awaitable, Mapping
from ipaddress import ip_address
from typing import Any

from litestar.types import ASGIApp, Receive, Send

from audit_stream.errors import AuditStreamError
from audit_stream.server.problems import CrossSite, Misdirected, of_ours, send_answer
from audit_stream.settings import Settings

# Probes name the address of a container or nothing they know to be right, and both routes tell a state alone.
_OPEN = frozenset({"/healthz", "/readyz"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_PAGE = frozenset({b"same-origin", b"none"})
_REMEMBERED = 1_000
"""Spellings of known hosts: an address with any port is one, so they have no end."""


class Door:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = Hosts(settings)
        self._known = self._hosts.known
        self._origins = frozenset(origin.encode() for origin in settings.cors)
        self._any_origin = b"*" in self._origins

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        headers = dict(scope["headers"])
        try:
            host = headers.get(b"host")
            if host not in self._known and scope["path"] not in _OPEN:
                self._hosts.check(host or b"")
            if (b"origin" in headers or b"sec-fetch-site" in headers) and scope["method"] not in _READING:
                self._check_page(headers)
        except AuditStreamError as error:
            return send_answer(of_ours(None, error), send)
        return self._app(scope, receive, send)

    def _check_page(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises CrossSite unless the page is this server's own, or of an origin in AUDIT_STREAM_CORS."""
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin is not None and (self._any_origin or origin in self._origins):
            return
        if site is not None:
            # First, as a proxy may have changed Host. Browsers send it over https and to this machine alone.
            own = site in _OWN_PAGE
        else:
            own = origin is None or origin.partition(b"://")[2] == headers.get(b"host")
        if not own:
            page = "another site" if origin is None else repr(origin[:200].decode("latin-1"))
            raise CrossSite(
                f"a page of {page} may not write here; nothing was written."
                " To allow it, name its origin in AUDIT_STREAM_CORS"
            )


class Hosts:
    """The hosts that this server answers for.

    An address always counts: to be rebound takes a name. So does a request without `Host`: every browser sends one.
    With tokens, all count unless the operator names some: a page of another name has neither token nor cookie.
    """

    def __init__(self, settings: Settings) -> None:
        self._all = "*" in settings.hosts or (settings.tokens is not None and not settings.hosts)
        self._names = {"localhost", settings.bind_host.lower(), *settings.hosts}
        self.known: set[bytes | None] = {None, b""}
        """Values of the header that were found good, so that few are looked at twice."""

    def check(self, host: bytes) -> None:
        """Raises Misdirected."""
        if not (self._all or self._counts(host.decode("latin-1"))):
            raise Misdirected(
                f"this server does not answer for the host {host[:200].decode('latin-1')!r}:"
                " if it is a name of this server, add it to AUDIT_STREAM_HOSTS"
            )
        if len(self.known) < _REMEMBERED:
            self.known.add(host)

    def _counts(self, host: str) -> bool:
        name = re.sub(r":[0-9]*\Z", "", host).lower()
        if name in self._names:
            return True
        bracketed = name.startswith("[") and name.endswith("]")
        try:
            return ip_address(name[1:-1] if bracketed else name).version == (6 if bracketed else 4)
        except ValueError:
            return False
