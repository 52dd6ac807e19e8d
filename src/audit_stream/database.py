"""Connecting to a PostgreSQL that is not ours, and what its errors mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from audit_stream.addresses import blanked
from audit_stream.errors import Misconfigured

# What a URL may say otherwise. A network that swallows packets is noticed in a minute, not in the system's two hours.
_CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


class Lost(Exception):
    """The connection, or the server's ability to do what it was asked. Trying again on a new one may help."""


async def connect(url: str, application_name: str) -> "psycopg.AsyncConnection[Any]":
    """Raises Lost when the database cannot be had now, Misconfigured when that will not change by itself."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise Misconfigured(f"DATABASE_URL: {first_line(error)}") from error
    parameters = {**_CONNECTION, "fallback_application_name": application_name, **given, "client_encoding": "utf8"}
    try:
        return await psycopg.AsyncConnection.connect(autocommit=True, **parameters)  # type: ignore[arg-type]
    except psycopg.OperationalError as error:
        raise Lost(first_line(error)) from error


@contextmanager
def transaction(url: str) -> "Iterator[psycopg.Connection[Any]]":
    """One connection and one transaction. Raises Misconfigured with the server's own words."""
    try:
        with psycopg.connect(url, fallback_application_name="audit-stream", connect_timeout=10) as connection:
            yield connection
    except psycopg.Error as error:
        hint = f" {error.diag.message_hint}" if error.diag.message_hint else ""
        raise Misconfigured(f"{blanked(str(error).strip())}{hint}") from error


def first_line(error: psycopg.Error) -> str:
    return blanked(str(error)).strip().partition("\n")[0] or type(error).__name__
