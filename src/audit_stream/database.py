"""Connecting to a PostgreSQL that is not ours, and what its errors mean."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from audit_stream.addresses import blanked
from audit_stream.errors import Misconfigured

SCHEMA_OWNERS = Path(__file__).with_name("schema_owners.sql")

# What a URL may say otherwise. A network that swallows packets is noticed in a minute, not in the system's two hours.
_CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
# What stands in quotes, but for the name of an option and the sign that is missing.
_QUOTED = re.compile(r'(option "[^"]*"|"=")|"[^"]*"')
_FORM = "write postgresql://user:password@host/name, with %40 for an @ in the password, %2F for /, %23 for #, %25 for %"


class Lost(Exception):
    """The connection, or the server's ability to do what it was asked. Trying again on a new one may help."""


async def connect(url: str, application_name: str) -> "psycopg.AsyncConnection[Any]":
    """Raises Lost when the database cannot be had now, Misconfigured when that will not change by itself."""
    own = {"fallback_application_name": application_name}
    parameters = {**_CONNECTION, **own, **parameters_of(url), "client_encoding": "utf8"}
    try:
        return await psycopg.AsyncConnection.connect(autocommit=True, **parameters)
    except psycopg.OperationalError as error:
        raise Lost(first_line(error)) from error


@contextmanager
def transaction(url: str) -> "Iterator[psycopg.Connection[Any]]":
    """One connection and one transaction. Raises Misconfigured with the server's own words."""
    own = {"fallback_application_name": "audit-stream", "connect_timeout": 10}
    parameters = {**own, **parameters_of(url)}
    try:
        with psycopg.connect(**parameters) as connection:
            yield connection
    except psycopg.Error as error:
        # Without the call stack of the SQL, which names lines of our scripts.
        said = error.diag.message_primary, error.diag.message_detail, error.diag.message_hint
        text = ". ".join(part.rstrip(".") for part in said if part) or str(error).strip()
        raise Misconfigured(blanked(text)) from error


def parameters_of(url: str) -> dict[str, Any]:
    """What the address says. Raises Misconfigured, which repeats no password, for what libpq does not take."""
    try:
        found = dict(conninfo_to_dict(url))
    except psycopg.ProgrammingError as error:
        # libpq repeats what it could not read, which may be the whole address.
        said = _QUOTED.sub(lambda quoted: quoted[1] or '"…"', first_line(error))
        raise Misconfigured(f"DATABASE_URL: {said}; {_FORM}") from None
    if "//" in url and any("@" in str(found.get(name, "")) for name in ("host", "dbname")):
        # The rest of a password, which would be looked up as a name, and be in every error.
        raise Misconfigured(f"DATABASE_URL: there is a second @; {_FORM}")
    return found


def check_owners(connection: "psycopg.Connection[Any]", schema: str) -> None:
    """Stop unless the schema, and all that is in it, belongs to the current role or to a superuser.

    It calls nothing that is there, and passes where there is no such schema. Raises psycopg's RaiseException, which
    names what belongs to somebody else. Afterwards search_path is pg_catalog until the transaction ends.
    """
    connection.execute("SELECT pg_catalog.set_config('audit_stream.checked_schema', %s, true)", (schema,))
    connection.execute(SCHEMA_OWNERS.read_bytes())


def first_line(error: psycopg.Error) -> str:
    return blanked(str(error)).strip().partition("\n")[0] or type(error).__name__
