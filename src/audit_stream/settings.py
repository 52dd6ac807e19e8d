"""Every environment variable of the server, in one struct."""

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from audit_stream.addresses import parse as parse_address
from audit_stream.errors import Misconfigured
from audit_stream.kinds import with_extra

TRUSTABLE = ("fsync",)
Hashing = Literal["checked", "script"]
Network = IPv4Network | IPv6Network
LogForm = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]


class Ack(NamedTuple):
    """What a 201 means."""

    fsync: bool
    """The event is on the disk of the Redis that took it."""
    replicas: int
    """And this many replicas hold it."""

    def __str__(self) -> str:
        parts = ["fsync" if self.fsync else "memory"] + ([f"replicas={self.replicas}"] if self.replicas else [])
        return ",".join(parts)


FSYNC = Ack(fsync=True, replicas=0)


class Settings(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    redis_url: str | None = None
    data_dir: Path
    host: str | None = None
    port: int = 8093
    chain: str = "audit"
    kinds: tuple[str, ...] = with_extra(())
    ack: Ack = FSYNC
    hashing: Hashing = "checked"
    max_event_bytes: int = 256 * 1024
    idempotency_ttl: timedelta = timedelta(hours=24)
    max_sources: int | None = 100_000
    trust_redis: frozenset[str] = frozenset()
    pin: Path | None = None
    tokens: Path | None = None
    requests_per_second: int | None = None
    bytes_per_second: int | None = None
    cors: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    forwarded_allow_ips: tuple[Network, ...] = ()
    verify_every: timedelta | None = timedelta(minutes=10)
    verify_whole_every: timedelta = timedelta(hours=24)
    log: LogForm = "auto"
    otel: bool = False
    log_level: LogLevel = "warning"

    @property
    def bind_host(self) -> str:
        return self.host or ("0.0.0.0" if self.tokens else "127.0.0.1")

    @cached_property
    def kind_set(self) -> frozenset[str]:
        return frozenset(self.kinds)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings. Raises Misconfigured naming the variable and what it takes.

        A variable called AUDIT_STREAM_… that no part of the project knows is refused as well: a
        misspelt promise must not turn into the default one.
        """
        environ = os.environ if environ is None else environ
        for name in environ:
            if name.startswith("AUDIT_STREAM_") and name not in VARIABLES and not _NOT_OURS.fullmatch(name):
                raise Misconfigured(f"{name} is no setting of audit-stream; there are {', '.join(VARIABLES)}")
            if name == "AUDIT_STREAM_TOKEN" and environ[name].strip().endswith(".toml"):
                # One letter less, and the server would be open.
                raise Misconfigured(f"{name}: this is a client's token; the server's file is AUDIT_STREAM_TOKENS")
        found: dict[str, Any] = {}
        for name, variable in VARIABLES.items():
            text = environ.get(name, "").strip()
            if text and variable.field not in found:
                found[variable.field] = variable.parse(name, text)
        has_folder = "data_dir" in found
        found.setdefault("data_dir", default_data_dir(environ))
        settings = cls(**found)
        if "pin" not in found and settings.ack.fsync and (has_folder or settings.redis_url is None):
            return msgspec.structs.replace(settings, pin=settings.data_dir / f"{settings.chain}.pin")
        return settings


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/audit-stream`, or `~/.local/share/audit-stream` (XDG Base Directory Specification)."""
    root = environ.get("XDG_DATA_HOME", "")
    return (Path(root) if root else Path.home() / ".local" / "share") / "audit-stream"


class Variable(NamedTuple):
    field: str
    parse: Any
    """(name, text) -> value; raises Misconfigured."""
    default: str
    help: str


def _text(_name: str, text: str) -> str:
    return text


def _redis_url(name: str, text: str) -> str:
    try:
        parse_address(text)
    except Misconfigured as error:
        raise Misconfigured(f"{name}: {error}") from error
    return text


def _path(_name: str, text: str) -> Path:
    return Path(text).expanduser().absolute()


def _path_or_off(name: str, text: str) -> Path | None:
    return None if text == "off" else _path(name, text)


def _whole(low: int, high: int) -> Any:
    def parse(name: str, text: str) -> int:
        if not re.fullmatch(r"\d{1,12}", text, re.ASCII) or not low <= int(text) <= high:
            raise Misconfigured(f"{name}: {text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _chain(name: str, text: str) -> str:
    # The name is the hash tag of every key, so it cannot hold the braces that mark one.
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", text):
        raise Misconfigured(f"{name}: {text!r} is no chain name; use letters, digits and _ . : - (64 at most)")
    return text


def _kinds(_name: str, text: str) -> tuple[str, ...]:
    return with_extra([kind for kind in (part.strip() for part in text.split(",")) if kind])


def _ack(name: str, text: str) -> Ack:
    fsync, replicas = True, 0
    parts = [part.strip() for part in text.split(",")]
    if "fsync" in parts and "memory" in parts:
        raise Misconfigured(f"{name}: {text!r} promises two things; use fsync or memory, and replicas=N on top")
    for part in parts:
        if part in ("fsync", "memory"):
            fsync = part == "fsync"
        elif match := re.fullmatch(r"replicas=(\d{1,2})", part, re.ASCII):
            replicas = int(match.group(1))
        else:
            raise Misconfigured(f"{name}: {text!r} is no promise; use fsync or memory, and replicas=N on top")
    return Ack(fsync, replicas)


def _trust(name: str, text: str) -> frozenset[str]:
    if text not in TRUSTABLE:
        raise Misconfigured(f"{name}: {text!r} is nothing to vouch for; use {', '.join(TRUSTABLE)}, or leave it out")
    return frozenset({text})


def _one_of(literal: Any) -> Any:
    def parse(name: str, text: str) -> str:
        if text not in get_args(literal):
            raise Misconfigured(f"{name}: {text!r} is not one of {', '.join(get_args(literal))}")
        return text

    return parse


def _origins(name: str, text: str) -> tuple[str, ...]:
    origins = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in origins:
        # As browsers write them (RFC 6454 §6.2): they are compared as they are.
        if origin != "*" and not re.fullmatch(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:\d{1,5})?", origin, re.ASCII):
            raise Misconfigured(
                f"{name}: {origin!r} is no origin of a page; write it like https://audit.example.org, without a path"
            )
    return origins


def _hosts(name: str, text: str) -> tuple[str, ...]:
    hosts = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for host in hosts:
        if host != "*" and not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host, re.ASCII):
            raise Misconfigured(
                f"{name}: {host!r} is not the name of a host: write it like audit.example.org, without a port, or use *"
            )
    return hosts


def _networks(name: str, text: str) -> tuple[Network, ...]:
    networks: list[Network] = []
    for part in (part.strip() for part in text.split(",")):
        try:
            networks += [ip_network(each, strict=False) for each in (("0.0.0.0/0", "::/0") if part == "*" else (part,))]
        except ValueError as error:
            raise Misconfigured(f"{name}: {part!r} is no address or network; use 10.0.0.7, 10.0.0.0/8 or *") from error
    return tuple(networks)


def _duration(name: str, text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,9})\s*([smhd]?)", text, re.ASCII)
    if not match or int(match.group(1)) == 0:
        raise Misconfigured(f"{name}: {text!r} is no duration; use 90s, 30m, 24h or 7d")
    return int(match.group(1)) * timedelta(seconds={"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match.group(2)])


def _switch(name: str, text: str) -> bool:
    if text.lower() not in _SWITCHES:
        raise Misconfigured(f"{name}: {text!r} is neither on nor off")
    return _SWITCHES[text.lower()]


_SWITCHES = {"on": True, "1": True, "true": True, "yes": True, "off": False, "0": False, "false": False, "no": False}


def _duration_or_off(name: str, text: str) -> timedelta | None:
    if text == "off":
        return None
    try:
        return _duration(name, text)
    except Misconfigured as error:
        raise Misconfigured(f"{error}, or off") from error


def _count_or_off(name: str, text: str) -> int | None:
    if text == "off":
        return None
    try:
        return _whole(0, 10**9)(name, text) or None
    except Misconfigured as error:
        raise Misconfigured(f"{error}, or off") from error


VARIABLES: dict[str, Variable] = {
    "AUDIT_STREAM_REDIS_URL": Variable(
        "redis_url",
        _redis_url,
        "an embedded Valkey",
        "Redis that holds the chain: redis:// rediss:// unix:// redis+sentinel:// redis+cluster://;"
        " see docs/operators/connections.md",
    ),
    "REDIS_URL": Variable("redis_url", _redis_url, "", "the same, where a platform sets this name"),
    "AUDIT_STREAM_DATA_DIR": Variable(
        "data_dir",
        _path,
        "~/.local/share/audit-stream",
        "where the embedded Valkey keeps its data, and the server its pin",
    ),
    "HOST": Variable("host", _text, "127.0.0.1", "address to listen on; with tokens 0.0.0.0 when left out"),
    "PORT": Variable("port", _whole(0, 65535), "8093", "port to listen on; 0 takes a free one"),
    "AUDIT_STREAM_CHAIN": Variable("chain", _chain, "audit", "name of the chain, the hash tag of all its keys"),
    "AUDIT_STREAM_KINDS": Variable("kinds", _kinds, "none", "extra kinds, separated by commas"),
    "AUDIT_STREAM_ACK": Variable("ack", _ack, "fsync", "what a 201 means: fsync or memory, with ,replicas=N on top"),
    "AUDIT_STREAM_TRUST_REDIS": Variable(
        "trust_redis",
        _trust,
        "",
        "fsync: you vouch that this Redis syncs each write to disk, where it hides its settings (CONFIG)",
    ),
    "AUDIT_STREAM_HASHING": Variable(
        "hashing",
        _one_of(Hashing),
        "checked",
        "checked: Redis hashes the new head of each batch; script: every event",
    ),
    "AUDIT_STREAM_MAX_EVENT_BYTES": Variable(
        "max_event_bytes", _whole(1024, 16 * 1024 * 1024), "262144", "largest event, as sent"
    ),
    "AUDIT_STREAM_IDEMPOTENCY_TTL": Variable(
        "idempotency_ttl", _duration, "24h", "how long an idempotency key is remembered"
    ),
    "AUDIT_STREAM_MAX_SOURCES": Variable(
        "max_sources",
        _count_or_off,
        "100000",
        "how many distinct sources the chain may have, as each costs Redis 4.7 KB for good; events of a further one"
        " are refused with 422; 0 or off: no limit",
    ),
    "AUDIT_STREAM_PIN": Variable(
        "pin",
        _path_or_off,
        "CHAIN.pin in the data folder",
        "file outside Redis that remembers the newest event, so that a chain without it is refused; off: none."
        " With a given Redis the default needs AUDIT_STREAM_DATA_DIR",
    ),
    "AUDIT_STREAM_TOKENS": Variable(
        "tokens", _path, "", "TOML file of tokens; with one, every request but a look at its health needs a token"
    ),
    "AUDIT_STREAM_REQUESTS_PER_SECOND": Variable(
        "requests_per_second", _whole(1, 1_000_000_000), "", "limit of each token whose entry names none, per process"
    ),
    "AUDIT_STREAM_BYTES_PER_SECOND": Variable(
        "bytes_per_second", _whole(1, 1_000_000_000_000 - 1), "", "the same for the bytes that it sends"
    ),
    "AUDIT_STREAM_CORS": Variable(
        "cors", _origins, "", "origins whose pages may call this server, separated by commas, or *"
    ),
    "AUDIT_STREAM_HOSTS": Variable(
        "hosts",
        _hosts,
        "",
        "names of this server beside localhost and HOST, separated by commas, or *: a request for another name is"
        " refused, with tokens only where this is set",
    ),
    "AUDIT_STREAM_TLS_CERT": Variable(
        "tls_cert", _path, "", "PEM file with the certificate and its chain; with one, the server speaks https"
    ),
    "AUDIT_STREAM_TLS_KEY": Variable("tls_key", _path, "", "PEM file with its private key, where it is another file"),
    "FORWARDED_ALLOW_IPS": Variable(
        "forwarded_allow_ips",
        _networks,
        "",
        "proxies whose X-Forwarded-Proto and X-Forwarded-For are believed: addresses, separated by commas, or *",
    ),
    "AUDIT_STREAM_VERIFY_EVERY": Variable(
        "verify_every",
        _duration_or_off,
        "10m",
        "how often to verify what is new in the background; off: only when asked",
    ),
    "AUDIT_STREAM_VERIFY_WHOLE_EVERY": Variable(
        "verify_whole_every", _duration, "24h", "how often the background verifies the whole chain"
    ),
    "AUDIT_STREAM_LOG": Variable(
        "log", _one_of(LogForm), "auto", "form of the log on standard error: json, text, or auto: text on a terminal"
    ),
    "AUDIT_STREAM_LOG_LEVEL": Variable(
        "log_level",
        _one_of(LogLevel),
        "warning",
        "least severe message to log: debug, info (a line a request), warning or error",
    ),
    "AUDIT_STREAM_OTEL": Variable(
        "otel", _switch, "off", "on: OpenTelemetry traces, to where the OTEL_ variables say; needs the extra otel"
    ),
}

# The clients', the tests', and what Kubernetes sets in every pod beside a service called audit-stream….
_NOT_OURS = re.compile(r"AUDIT_STREAM_(URL|TOKEN|TEST_\w+|(\w+_)?(SERVICE_(HOST|PORT)\w*|PORT(_\d+_\w+)?))")
