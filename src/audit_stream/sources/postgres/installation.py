"""Putting audit_stream into a database, looking at it, and taking it out again."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

from audit_stream.database import SCHEMA_OWNERS, check_owners, transaction
from audit_stream.errors import Misconfigured, Refused
from audit_stream.sources.postgres.outbox import LEAD

HERE = Path(__file__).parent
How = Literal["extension", "script"]

# Whoever installs or removes at the same time waits for the other.
_ALONE = "SELECT pg_advisory_xact_lock(hashtext('audit_stream.installation'))"


class Watch(NamedTuple):
    table_name: str
    event_kind: str | None
    source: str | None
    created_at: datetime | None
    state: str


class Status(NamedTuple):
    version: str
    how: How
    watches: list[Watch]
    waiting: int
    behind: timedelta
    dead_letters: int
    relay: str | None
    """Who leads; None when nobody does."""


class Waiting(Refused):
    """Changes would be lost that the chain does not have."""


def version() -> str:
    """The version that this package installs."""
    found = re.search(r"^default_version = '(.+)'$", (HERE / "audit_stream.control").read_text(), re.MULTILINE)
    assert found
    return found.group(1)


def script() -> str:
    """All of audit_stream as one text, without CREATE EXTENSION: what install.sql says, in one piece."""
    text = (HERE / "install.sql").read_text()
    for path in (SCHEMA_OWNERS, HERE / "audit_stream.sql"):
        name = "../../schema_owners.sql" if path is SCHEMA_OWNERS else path.name
        text = text.replace(f"\\ir {name}\n", path.read_text())
    return text


def install(url: str) -> tuple[str | None, str]:
    """Install, upgrade, or repair; the version before, None for none, and the one that is there now.

    All or nothing. Raises Misconfigured with the server's words when it cannot be done, and when what is there under
    the name audit_stream belongs to somebody who is neither this role nor a superuser: then nothing there was called.
    """
    with transaction(url) as connection:
        connection.execute(_ALONE)
        connection.execute("SET LOCAL client_min_messages = warning")
        before = _installed(connection)
        if before and _number(before[0]) > _number(version()):
            raise Misconfigured(
                f"audit_stream {before[0]} is installed, and this is the older {version()}: upgrade audit-stream"
            )
        if before and before[1] == "extension":
            # Its files are the server's, put there by `make install`.
            connection.execute("ALTER EXTENSION audit_stream UPDATE")
        else:
            # One transaction is under way already, and it is ours to end.
            connection.execute("CREATE SCHEMA IF NOT EXISTS audit_stream")
            check_owners(connection, "audit_stream")
            connection.execute((HERE / "audit_stream.sql").read_bytes())
        after = _installed(connection)
        assert after
        return before and before[0], after[0]


def uninstall(url: str, *, discard: bool) -> bool:
    """Remove every trigger and the schema; False when there is nothing. Raises Waiting unless `discard`."""
    with transaction(url) as connection:
        installed = _installed(connection)
        if not installed:
            return False
        connection.execute(_ALONE)
        connection.execute("SET LOCAL client_min_messages = warning")
        # First the triggers, then the look at the outbox: in this order nobody waits for us while we wait for him,
        # and nothing can be written after the look.
        connection.execute("SELECT audit_stream.unwatch(table_name) FROM audit_stream.list_watches()")
        if not discard:
            (waiting, dead) = connection.execute("SELECT waiting, dead_letters FROM audit_stream.lag()").fetchone() or (
                0,
                0,
            )
            if waiting or dead:
                raise Waiting(
                    f"{waiting} changes wait in the outbox and {dead} are dead letters, which the chain does not have:"
                    " let the relay finish, or give them up with --discard"
                )
        connection.execute(
            "DROP EXTENSION audit_stream CASCADE" if installed[1] == "extension" else "DROP SCHEMA audit_stream CASCADE"
        )
        connection.execute("DROP SCHEMA IF EXISTS audit_stream CASCADE")
        return True


def status(url: str) -> Status | None:
    """How it is; None when it is not installed."""
    with transaction(url) as connection:
        installed = _installed(connection)
        if not installed:
            return None
        lag: Any = connection.cursor(row_factory=namedtuple_row).execute("SELECT * FROM audit_stream.lag()").fetchone()
        watches = connection.execute(
            "SELECT table_name, event_kind, source, created_at, state FROM audit_stream.list_watches()"
        ).fetchall()
        leader = connection.execute(
            "SELECT concat_ws(' ', a.application_name, 'pid ' || l.pid, 'of ' || a.usename, host(a.client_addr))"
            " FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)"
            " WHERE l.locktype = 'advisory' AND l.granted AND (l.classid::bigint << 32) + l.objid::bigint = %s"
            " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (LEAD,),
        ).fetchone()
        return Status(
            *installed,
            [Watch(*row) for row in watches],
            lag.waiting,
            lag.behind,
            lag.dead_letters,
            leader and leader[0],
        )


def _installed(connection: "psycopg.Connection[Any]") -> tuple[str, How] | None:
    """The installed version, read from the catalog alone, once everything there is known to be trusted."""
    check_owners(connection, "audit_stream")
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'audit_stream'").fetchone()
    if row:
        return row[0], "extension"
    row = connection.execute(
        "SELECT (SELECT substring(prosrc FROM '[0-9]+[.][0-9]+[.][0-9]+') FROM pg_proc"
        "   WHERE oid = to_regprocedure('audit_stream.version()')),"
        " to_regclass('audit_stream.watches')::oid"
    ).fetchone()
    assert row
    if row[0]:
        return row[0], "script"
    return ("0.1.0", "script") if row[1] else None


def _number(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)]
