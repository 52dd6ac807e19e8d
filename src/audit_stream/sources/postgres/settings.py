"""The relay's environment. The names are those of the bridge it replaces."""

import os
import re
from collections.abc import Mapping

import msgspec

from audit_stream.client.arguments import DEFAULT_URL, authorization_of
from audit_stream.daemon import Listen, Variable, level, listen, spine_url
from audit_stream.errors import Misconfigured


class RelaySettings(msgspec.Struct, frozen=True, kw_only=True):
    database_url: str
    audit_stream_url: str
    headers: dict[str, str]
    """Authorization, where there is a token."""
    poll_s: float
    log_level: str
    metrics: Listen | None
    metrics_asked_for: bool
    """Whether the address of the metrics was configured: then it must be free."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "RelaySettings":
        """Raises Misconfigured naming the variable and what it takes."""
        environ = os.environ if environ is None else environ
        given = {name: environ.get(name, "").strip() for name in VARIABLES}
        found = {name: text or VARIABLES[name].default for name, text in given.items()}
        return cls(
            database_url=database_url(found["DATABASE_URL"]),
            audit_stream_url=spine_url(found["AUDIT_STREAM_URL"]),
            headers=authorization_of(found["AUDIT_STREAM_TOKEN"]),
            poll_s=_seconds("POLL_TIMEOUT", found["POLL_TIMEOUT"]),
            log_level=level(found["LOG_LEVEL"]),
            metrics=listen(found["METRICS_LISTEN"]),
            metrics_asked_for=bool(given["METRICS_LISTEN"]),
        )


VARIABLES = {
    "DATABASE_URL": Variable("", "the database: postgresql://user@host/name, or what else libpq takes"),
    "AUDIT_STREAM_URL": Variable(DEFAULT_URL, "the spine, with or without /events"),
    "AUDIT_STREAM_TOKEN": Variable("", "sent to the spine as Authorization: Bearer"),
    "POLL_TIMEOUT": Variable("5", "seconds after which it looks for changes when nothing woke it"),
    "LOG_LEVEL": Variable("INFO", "least severe message to log: DEBUG, INFO, WARNING or ERROR"),
    "METRICS_LISTEN": Variable("127.0.0.1:8094", "where GET /metrics is answered: host:port, or off"),
}


def database_url(text: str) -> str:
    if not text:
        raise Misconfigured("DATABASE_URL is not set: name the database, such as postgresql://user@localhost/app")
    return text


def _seconds(name: str, text: str) -> float:
    if not re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text, re.ASCII) or float(text) == 0:
        raise Misconfigured(f"{name}: {text!r} is no number of seconds above 0, such as 5 or 0.5")
    return float(text)
