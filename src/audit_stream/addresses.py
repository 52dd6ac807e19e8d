"""The address of a Redis, as AUDIT_STREAM_REDIS_URL holds it.

    redis://[user:password@]host[:6379][/db]
    unix://[user:password@]/path/to/socket[?db=0]
    redis+sentinel://[user:password@]host[:26379],host…/master[/db]
    redis+cluster://[user:password@]host[:6379],host…

`rediss` in place of `redis` is the same over TLS. Options follow as ?name=value&name=value.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from audit_stream.errors import Misconfigured

Kind = Literal["plain", "unix", "sentinel", "cluster"]
Node = tuple[str, int]

_SCHEMES: dict[str, tuple[Kind, bool]] = {
    "redis": ("plain", False),
    "rediss": ("plain", True),
    "unix": ("unix", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}

_FORMS: dict[Kind, str] = {
    "plain": "redis://host:6379/0",
    "unix": "unix:///path/to/socket",
    "sentinel": "redis+sentinel://host:26379,host:26379/mymaster/0",
    "cluster": "redis+cluster://host:6379,host:6379",
}


class Address(NamedTuple):
    kind: Kind
    nodes: tuple[Node, ...]
    """The server; or the sentinels, or some nodes of the cluster; none for a unix socket."""
    path: str
    """Of the unix socket."""
    master: str
    """The name under which the sentinels know it."""
    login: Mapping[str, Any]
    """redis-py's `username`, `password`, `db` and `client_name` for the server that holds the chain."""
    tls: Mapping[str, Any] | None
    """redis-py's `ssl_…` for that server; None without TLS."""
    sentinel_login: Mapping[str, Any]
    sentinel_tls: Mapping[str, Any] | None
    shown: str
    """The address without its passwords and options, for messages."""


def parse(url: str) -> Address:
    """Read an address. Raises Misconfigured, which repeats no password, when it cannot be read."""
    parts = _split(url)
    kind, tls = _SCHEMES[parts.scheme]
    credentials, _, hosts = parts.netloc.rpartition("@")
    options = _options(parts.query, kind, tls=tls)
    username, _, password = credentials.partition(":")
    login: dict[str, Any] = {"username": unquote(username) or None, "password": unquote(password) or None}
    login |= {name: value for name, value in options.items() if name in _LOGIN}
    path = [unquote(part) for part in parts.path.split("/") if part]
    master = ""
    if kind == "sentinel":
        if not path:
            raise Misconfigured(f"the address names no master: write it as {_FORMS[kind]}")
        master, *path = path
    if kind == "unix":
        path = []
    if path:
        try:
            login.setdefault("db", _database("/".join(path)))
        except ValueError:
            raise Misconfigured(f"invalid database {'/'.join(path)!r}: write the address as {_FORMS[kind]}") from None
    if kind == "cluster" and login.get("db"):
        raise Misconfigured(f"a Redis cluster has the database 0 alone: leave out /{login['db']}")
    ours = {name: value for name, value in options.items() if name.startswith("ssl_")}
    theirs = {
        name.removeprefix("sentinel_"): value for name, value in options.items() if name.startswith("sentinel_ssl_")
    }
    return Address(
        kind,
        () if kind == "unix" else _nodes(hosts, kind),
        unquote(parts.path) if kind == "unix" else "",
        master,
        login,
        _with_defaults(ours) if tls else None,
        {name: options.get(f"sentinel_{name}") for name in ("username", "password")},
        _with_defaults(ours | theirs) if tls and options.get("sentinel_tls", True) else None,
        without_password(url),
    )


def without_password(url: str) -> str:
    """Return the address for messages: no user, no password, no options."""
    scheme, separator, rest = blanked(url).partition("?")[0].rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def blanked(text: str) -> str:
    """Return an address, or a message that may repeat one, without users and passwords."""
    # Up to the last @: a password may hold others, and a message loses rather too much than too little.
    text = re.sub(r"//.*@", "//", text, flags=re.DOTALL)
    return re.sub(r"(password\s*=\s*)('(\\.|[^'\\])*'?|[^&\s'\"]*)", r"\1…", text, flags=re.IGNORECASE)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        # Not in the words of the library: they may repeat the password.
        raise Misconfigured(f"the address {without_password(url)!r} cannot be read: check the host") from error
    if parts.scheme not in _SCHEMES or "://" not in url:
        schemes = " ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise Misconfigured(f"{without_password(url)!r} is not an address of a Redis: it starts with one of {schemes}")
    if "#" in url:
        raise Misconfigured("the address holds a '#': write it as %23, in a password too")
    if "@" in parts.query or ("@" in parts.path and parts.scheme != "unix"):
        raise Misconfigured(
            "the address holds an '@' after the host: in the user and password write / as %2F and ? as %3F,"
            " and in the options @ as %40"
        )
    host, form = parts.netloc.rpartition("@")[2], _FORMS[_SCHEMES[parts.scheme][0]]
    if (not parts.path or host) if parts.scheme == "unix" else not host:
        raise Misconfigured(f"{without_password(url)!r} names no server: write it as {form}")
    return parts


def _nodes(hosts: str, kind: Kind) -> tuple[Node, ...]:
    nodes = []
    for host in hosts.split(","):
        name, _, port = host.rpartition(":")
        if not name or host.endswith("]"):  # no port; brackets mark an IPv6 address
            name, port = host, "26379" if kind == "sentinel" else "6379"
        name = name.removeprefix("[").removesuffix("]")
        if not name or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise Misconfigured(f"{host!r} is not a host and port: write the address as {_FORMS[kind]}")
        nodes.append((unquote(name), int(port)))
    if kind == "plain" and len(nodes) > 1:
        raise Misconfigured(
            f"{hosts!r} names several servers: several are read as {_FORMS['sentinel']} or {_FORMS['cluster']}"
        )
    return tuple(nodes)


# --- options


def _database(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError("a whole number")
    return int(text)


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError("on or off")
    return _SWITCH[text.lower()]


_SWITCH = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


def _demand(text: str) -> str:
    if text not in ("required", "optional", "none"):
        raise ValueError("required, optional or none")
    return text


_LOGIN: dict[str, Callable[[str], Any]] = {"username": str, "password": str, "db": _database, "client_name": str}
_TLS: dict[str, Callable[[str], Any]] = {
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": _demand,
    "ssl_check_hostname": _switch,
    "ssl_ciphers": str,
}
_OF_SENTINELS: dict[str, Callable[[str], Any]] = {
    "sentinel_username": str,
    "sentinel_password": str,
    "sentinel_tls": _switch,
    **{f"sentinel_{name}": parse_one for name, parse_one in _TLS.items()},
}
OPTIONS = (*_LOGIN, *_TLS, *_OF_SENTINELS)


def _with_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Add what redis-py's releases each take for granted, or not."""
    options = {"ssl_cert_reqs": "required", "ssl_check_hostname": True} | given
    if options["ssl_cert_reqs"] == "none":
        options["ssl_check_hostname"] = False
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise Misconfigured("ssl_keyfile needs ssl_certfile: the certificate that belongs to the key")
    if "ssl_certfile" in options:
        options.setdefault("ssl_keyfile", options["ssl_certfile"])
    return options


def _options(query: str, kind: Kind, *, tls: bool) -> dict[str, Any]:
    known = _LOGIN | _TLS | (_OF_SENTINELS if kind == "sentinel" else {})
    options = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise Misconfigured(f"{name!r} is not an option of this address; there are {', '.join(known)}")
        if not tls and (name.partition("ssl_")[1] or name == "sentinel_tls"):
            raise Misconfigured(f"{name} needs TLS: start the address with rediss in place of redis")
        try:
            options[name] = known[name](text)
        except ValueError as error:
            raise Misconfigured(f"invalid value {text!r} for the option {name}: expected {error}") from error
    return options
