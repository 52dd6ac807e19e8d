"""What a client is made with, checked before anything is opened. Everything here raises Misconfigured."""

import os
import re
from typing import TYPE_CHECKING

import httpx

from audit_stream.addresses import blanked
from audit_stream.errors import Misconfigured

if TYPE_CHECKING:
    from audit_stream.bus.backlog import Backlog
    from audit_stream.client.spool import Spool

    SpoolArgument = str | os.PathLike[str] | Backlog | None

DEFAULT_URL = "http://127.0.0.1:8093"
ROUTES = frozenset(
    [
        "events",
        "stream",
        "verify",
        "stats",
        "metrics",
        "healthz",
        "readyz",
        "dashboard",
        "docs",
        "schema",
        "openapi.json",
    ]
)
"""What the paths of an address of ours never begin with: appended to, they lead nowhere."""


def address_of(url: str | None) -> str:
    """The server's address without a slash at its end; AUDIT_STREAM_URL when none is given."""
    url = url or os.environ.get("AUDIT_STREAM_URL") or DEFAULT_URL
    wanted = f"write it like {DEFAULT_URL}"
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise Misconfigured(f"url: no address of a server; {wanted}") from error
    if address.userinfo:
        raise Misconfigured("url: it holds a password, which addresses do not keep to themselves; use token")
    if address.scheme not in ("http", "https") or not address.host:
        raise Misconfigured(f"url: {blanked(url)!r} is no address of a server; {wanted}")
    check_path(address, name="url")
    return url.rstrip("/")


def check_path(address: httpx.URL, *, name: str) -> None:
    """Raises Misconfigured for the address of a route. A proxy may serve the API under a path of its own."""
    first = address.path.strip("/").partition("/")[0]
    if first in ROUTES:
        alone = address.copy_with(raw_path=b"/", fragment=None)
        raise Misconfigured(
            f"{name}: it has a path, {address.path}, which is one of the server's routes;"
            f" leave the path out: {str(alone).rstrip('/')}"
        )


def authorization_of(token: str | None) -> dict[str, str]:
    """The header that carries the token; AUDIT_STREAM_TOKEN when none is given."""
    token = (token or os.environ.get("AUDIT_STREAM_TOKEN") or "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise Misconfigured("token: it holds characters that no token has; visible ASCII is what a header can carry")
    return {"Authorization": f"Bearer {token}"} if token else {}


def spool_at(path: "SpoolArgument") -> "Backlog | Spool | None":
    if path is None:
        return None
    try:
        from audit_stream.bus.backlog import Backlog
        from audit_stream.client.spool import Spool
    except ModuleNotFoundError as error:
        raise Misconfigured("spool: this system has no file locks of the kind that it needs (fcntl)") from error
    return path if isinstance(path, Backlog) else Spool(path)
