"""Checking the table by itself: every link, and every column against the bytes that were hashed."""

import json
from typing import Any, NamedTuple

import psycopg

from audit_stream.chain import Event, parse
from audit_stream.database import transaction
from audit_stream.sinks.postgres.rows import COLUMNS, row_of
from audit_stream.sinks.record import record_of

BATCH_EVENTS = 2_000

_DIFFERENT = ", ".join(f"CASE WHEN e.{name} IS DISTINCT FROM a.{name} THEN '{name}' END" for name in COLUMNS)
_COMPARE = f"""
SELECT event_id, columns FROM (
    SELECT e.event_id, array_remove(ARRAY[{_DIFFERENT}], NULL) AS columns
    FROM projected_again AS a JOIN audit_events.events AS e USING (event_id)
) AS compared
WHERE columns <> '{{}}' ORDER BY event_id
"""


class Trouble(NamedTuple):
    event_id: int
    reason: str


class Checked(NamedTuple):
    rows: int
    head: tuple[int, str] | None
    """Of the newest row: compare its hash with one that was kept elsewhere."""
    troubles: list[Trouble]
    """In the order of the rows."""


def check(url: str, tenant_id: str | None) -> Checked:
    """Recompute the chain in the table, and project each row again from its canonical bytes.

    Proves of the rows that are there that they say what was hashed, and that they are a chain. Raises Misconfigured
    with the server's words.
    """
    with transaction(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("CREATE TEMPORARY TABLE projected_again (LIKE audit_events.events) ON COMMIT DROP")
        troubles = [Trouble(*row) for row in connection.execute("SELECT * FROM audit_events.verify()")]
        broken = {trouble.event_id for trouble in troubles}
        rows, head = 0, None
        while page := _page(connection, head[0] if head else -1):
            rows += len(page)
            head = (page[-1][0], page[-1][2])
            again = []
            for row in page:
                if row[0] in broken:
                    continue  # what does not hash to its hash says nothing that columns could be compared with
                try:
                    again.append(row_of(record_of(_event(row), tenant_id)))
                except ValueError:
                    troubles.append(Trouble(row[0], "canonical is no event"))
            troubles += [
                Trouble(event_id, f"not what the event says: {', '.join(columns)}")
                for event_id, columns in _different(connection, again)
            ]
    return Checked(rows, head, sorted(troubles))


def _page(connection: "psycopg.Connection[Any]", after: int) -> list[tuple[Any, ...]]:
    query = "SELECT event_id, canonical, hash FROM audit_events.events WHERE event_id > %s ORDER BY event_id LIMIT %s"
    return connection.execute(query, (after, BATCH_EVENTS)).fetchall()


def _event(row: tuple[Any, ...]) -> Event:
    _, canonical, hash_ = row
    return parse(json.dumps({**json.loads(canonical), "hash": hash_}))


def _different(connection: "psycopg.Connection[Any]", again: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE projected_again")
        with cursor.copy(f"COPY projected_again ({', '.join(COLUMNS)}) FROM STDIN".encode()) as copy:
            for row in again:
                copy.write_row(row)
        return cursor.execute(_COMPARE.encode()).fetchall()
