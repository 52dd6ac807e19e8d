"""The projections' environment. DATABASE_URL, LOG_DIR and TENANT_ID are the names of the published daemon."""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import cast, get_args

import msgspec

from audit_stream.client.arguments import authorization_of
from audit_stream.daemon import Listen, level, listen, spine_url
from audit_stream.errors import Misconfigured
from audit_stream.extras import install_extra
from audit_stream.sinks import purview
from audit_stream.sinks.sink import NAMES, Name
from audit_stream.sinks.variables import VARIABLES

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


class SinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    sinks: tuple[Name, ...]
    """Which projections run; none when neither DATABASE_URL nor LOG_DIR is set."""
    audit_stream_url: str
    headers: dict[str, str]
    """Authorization, where there is a token."""
    database_url: str
    log_dir: Path
    tenant_id: str | None
    purview_format: purview.Format
    rotate_bytes: int | None
    """Of jsonl; None for each day."""
    pack: bool
    log_level: str
    metrics: Listen | None
    metrics_asked_for: bool
    """Whether the address of the metrics was configured: then it must be free."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "SinkSettings":
        """Raises Misconfigured naming the variable and what it takes."""
        environ = os.environ if environ is None else environ
        given = {name: environ.get(name, "").strip() for name in VARIABLES}
        found = {name: text or VARIABLES[name].default for name, text in given.items()}
        sinks = _sinks(found["PROJECT_TO"]) if found["PROJECT_TO"] else _implied(found)
        if "postgres" in sinks:
            check_database_url(found["DATABASE_URL"])
        if set(sinks) - {"postgres"} and not found["LOG_DIR"]:
            raise Misconfigured("LOG_DIR is not set: name the folder for the files, such as /var/log/audit")
        return cls(
            sinks=sinks,
            audit_stream_url=spine_url(found["AUDIT_STREAM_URL"]),
            headers=authorization_of(found["AUDIT_STREAM_TOKEN"]),
            database_url=found["DATABASE_URL"],
            log_dir=Path(found["LOG_DIR"]),
            tenant_id=found["TENANT_ID"] or None,
            purview_format=_format(found["PURVIEW_FORMAT"]),
            rotate_bytes=_rotation(found["JSONL_ROTATE"]),
            pack=_is_on("LOG_GZIP", found["LOG_GZIP"]),
            log_level=level(found["LOG_LEVEL"]),
            metrics=listen(found["METRICS_LISTEN"]),
            metrics_asked_for=bool(given["METRICS_LISTEN"]),
        )


def _implied(found: Mapping[str, str]) -> tuple[Name, ...]:
    files: tuple[Name, ...] = ("purview", "trust") if found["LOG_DIR"] else ()
    return ("postgres", *files) if found["DATABASE_URL"] else files


def _sinks(text: str) -> tuple[Name, ...]:
    named = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in named:
        if name not in NAMES:
            raise Misconfigured(f"PROJECT_TO: {name!r} is no sink; there are {', '.join(NAMES)}")
    return cast("tuple[Name, ...]", named)


def check_psycopg() -> None:
    if not find_spec("psycopg"):
        raise Misconfigured(f"the sink postgres needs psycopg: {install_extra('postgres')}")


def check_database_url(url: str) -> None:
    if not url:
        raise Misconfigured("DATABASE_URL is not set: name the database, such as postgresql://user@localhost/app")
    check_psycopg()
    from audit_stream.database import parameters_of

    parameters_of(url)


def _format(text: str) -> purview.Format:
    if text not in get_args(purview.Format):
        raise Misconfigured(f"PURVIEW_FORMAT: {text!r} is not one of {', '.join(get_args(purview.Format))}")
    return cast("purview.Format", text)


def _rotation(text: str) -> int | None:
    if text == "day":
        return None
    match = re.fullmatch(r"([1-9]\d{0,11})([KMG]?)B?", text.upper(), re.ASCII)
    if not match:
        raise Misconfigured(f"JSONL_ROTATE: {text!r} is neither day nor a size such as 100M")
    return int(match[1]) * _UNITS[match[2]]


def _is_on(name: str, text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise Misconfigured(f"{name}: {text!r} is neither on nor off")
    return text.lower() == "on"
