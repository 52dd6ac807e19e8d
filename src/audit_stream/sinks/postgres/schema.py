"""The schema audit_events: made and brought up to date by numbered migrations, each applied once."""

from pathlib import Path
from typing import Any

import psycopg

from audit_stream.database import SCHEMA_OWNERS, check_owners, transaction
from audit_stream.errors import Misconfigured

MIGRATIONS = {
    int(path.name[:4]): path.read_text() for path in sorted((Path(__file__).parent / "migrations").glob("[0-9]*.sql"))
}
NEWEST = max(MIGRATIONS)

# First the schema, then the check of what it holds: nobody can put anything into a new one in between.
_SCHEMA = """
SELECT pg_advisory_xact_lock(hashtext('audit_events.migrations'));
SET LOCAL client_min_messages = warning;
CREATE SCHEMA IF NOT EXISTS audit_events
"""
_MIGRATIONS = """
CREATE TABLE IF NOT EXISTS audit_events.migrations (
    version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now()
)
"""


def init(url: str) -> tuple[int, int]:
    """Apply the migrations that are missing, all or none; the version before (0 for none) and after.

    Raises Misconfigured with the server's words when it cannot be done, and when what is there under the name
    audit_events belongs to somebody who is neither this role nor a superuser: then nothing there was used.
    """
    with transaction(url) as connection:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement.encode())
        check_owners(connection, "audit_events")
        connection.execute(_MIGRATIONS.encode())
        before = _version(connection)
        if before > NEWEST:
            raise Misconfigured(too_new(before))
        for version in range(before + 1, NEWEST + 1):
            connection.execute(MIGRATIONS[version].encode())
            connection.execute("INSERT INTO audit_events.migrations (version) VALUES (%s)", (version,))
        return before, NEWEST


def script() -> str:
    """What `init` does to an empty database, as one text."""
    checked = "SELECT set_config('audit_stream.checked_schema', 'audit_events', true);"
    parts = ["BEGIN;", f"{_SCHEMA.strip()};", checked, SCHEMA_OWNERS.read_text().strip(), f"{_MIGRATIONS.strip()};"]
    for version, text in MIGRATIONS.items():
        parts += [text.strip(), f"INSERT INTO audit_events.migrations (version) VALUES ({version});"]
    return "\n".join([*parts, "COMMIT;"])


def too_new(version: int) -> str:
    return f"audit_events is at version {version}, and this is the older {NEWEST}: upgrade audit-stream"


def _version(connection: "psycopg.Connection[Any]") -> int:
    row = connection.execute("SELECT coalesce(max(version), 0) FROM audit_events.migrations").fetchone()
    assert row
    return int(row[0])
