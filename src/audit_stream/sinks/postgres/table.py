"""Writing events to audit_events.events: a COPY for each batch, in a transaction of its own.

The newest row is the cursor. A crash, a lost connection, an answer that never came: the rows of the batch are there,
all of them, or none is, and the next start asks the table.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from audit_stream.chain import START, Event, Head
from audit_stream.database import Lost, connect, first_line
from audit_stream.errors import Misconfigured
from audit_stream.sinks.postgres.rows import COLUMNS, federated_sources, row_of
from audit_stream.sinks.postgres.schema import NEWEST, too_new
from audit_stream.sinks.record import record_of
from audit_stream.sinks.sink import Name, Position, SinkFailed, Standing

APPLICATION_NAME = "audit-stream-project"
# Any number that nobody else locks: "projec" in ASCII.
HOLD = 0x70726F6A6563

_COPY = f"COPY audit_events.events ({', '.join(COLUMNS)}) FROM STDIN"
_NEWEST = "SELECT event_id, hash FROM audit_events.events ORDER BY event_id DESC LIMIT 1"
_SEEN = """
INSERT INTO audit_events.federated_sources AS known VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (federated_source) DO UPDATE SET
    events = known.events + excluded.events,
    last_event_id = excluded.last_event_id,
    first_seen = least(known.first_seen, excluded.first_seen),
    last_seen = greatest(known.last_seen, excluded.last_seen)
"""
_HELD = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32) + objid::bigint = %s
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class TableSink:
    """See `sink.Sink`."""

    name: Name = "postgres"

    def __init__(self, database_url: str, tenant_id: str | None) -> None:
        self._url, self._tenant_id = database_url, tenant_id
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def open(self) -> Position:
        async with _explained():
            self._connection = connection = await connect(self._url, APPLICATION_NAME)
            await _check(connection)
            await connection.execute("SET statement_timeout = '60s'")
            (held,) = await _row(connection, "SELECT pg_try_advisory_lock(%s)", HOLD)
            if not held:
                raise SinkFailed("another projection writes to this database; this one waits for its place")
            newest = await _newest(connection)
            return Position(newest, newest)

    async def write(self, events: Sequence[Event]) -> None:
        assert self._connection
        records = [record_of(event, self._tenant_id) for event in events]
        async with _explained(), self._connection.transaction(), self._connection.cursor() as cursor:
            async with cursor.copy(_COPY.encode()) as copy:
                for record in records:
                    await copy.write_row(row_of(record))
            if seen := federated_sources(records):
                await cursor.executemany(_SEEN, seen)

    async def rest(self) -> None:
        pass

    async def close(self) -> None:
        if self._connection:
            await self._connection.close()
            self._connection = None

    async def standing(self) -> Standing:
        async with _explained():
            connection = await connect(self._url, APPLICATION_NAME)
            try:
                await _check(connection)
                newest = await _newest(connection)
                (holders,) = await _row(connection, _HELD, HOLD)
            finally:
                await connection.close()
        return Standing(newest.event_id, newest.hash.decode(), bool(holders))


async def _check(connection: "psycopg.AsyncConnection[Any]") -> None:
    (standby, made) = await _row(
        connection, "SELECT pg_is_in_recovery(), to_regclass('audit_events.migrations') IS NOT NULL"
    )
    if standby:
        raise SinkFailed(
            "the database is a standby and takes no writes; target_session_attrs=read-write in DATABASE_URL finds the"
            " primary"
        )
    if not made:
        raise SinkFailed("audit_events is not in this database: run `audit-stream project init`")
    (version,) = await _row(connection, "SELECT coalesce(max(version), 0) FROM audit_events.migrations")
    if version < NEWEST:
        raise SinkFailed(f"audit_events is at version {version} of {NEWEST}: run `audit-stream project init`")
    if version > NEWEST:
        raise SinkFailed(too_new(version))


async def _newest(connection: "psycopg.AsyncConnection[Any]") -> Head:
    row = await (await connection.execute(_NEWEST)).fetchone()
    return Head(row[0], row[1].encode()) if row else START


async def _row(connection: "psycopg.AsyncConnection[Any]", statement: str, *arguments: Any) -> tuple[Any, ...]:
    row = await (await connection.execute(statement.encode(), arguments)).fetchone()
    assert row
    found: tuple[Any, ...] = row
    return found


@asynccontextmanager
async def _explained() -> AsyncIterator[None]:
    """Raises SinkFailed in place of what the database or the way to it said."""
    try:
        yield
    except Lost as error:
        raise SinkFailed(f"the database is away: {error}") from error
    except Misconfigured as error:
        raise SinkFailed(str(error)) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise SinkFailed(f"the projection's role may not do its work: {first_line(error)}") from error
    except psycopg.Error as error:
        raise SinkFailed(f"the database: {first_line(error)}") from error
