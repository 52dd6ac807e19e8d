"""The relay's side of the outbox, over one connection: it leads, listens, reads and deletes.

The lead is a session's advisory lock, so a connection that is lost loses the lead with it, and whoever leads next
sends again what was under way: under the same keys, so the chain takes it once.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader

from audit_stream.database import Lost as Lost
from audit_stream.database import connect, first_line
from audit_stream.errors import Misconfigured
from audit_stream.sources.postgres.changes import Change

# Any number that nobody else locks: "audit" in ASCII.
LEAD = 0x6175646974
# Held while the relay sleeps, and shared by every transaction that found it awake: see audit_stream.record().
ASLEEP = LEAD + 1
APPLICATION_NAME = "audit-stream-bridge"

# Losing the end of what we committed costs nothing: the rows are back, and are sent again under the same keys.
_SESSION = """
SET synchronous_commit = off; SET statement_timeout = '60s'; SET search_path = pg_catalog, pg_temp;
LISTEN audit_stream_wake
"""

# Oldest first, as many as fit. The size of a text is known without reading it; the first is taken whatever its size.
_NEXT = """
SELECT id, change_id::text, event_kind, source,
    to_char(changed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'), payload
FROM (
    SELECT *, sum(octet_length(payload)) OVER (ORDER BY id) AS upto
    FROM (SELECT * FROM audit_stream.outbox WHERE id <> ALL (%s::bigint[]) ORDER BY id LIMIT %s) AS oldest
) AS measured
WHERE upto <= %s OR upto = octet_length(payload) ORDER BY id
"""

_REFUSE = """
WITH refused AS (DELETE FROM audit_stream.outbox WHERE id = %s RETURNING *)
INSERT INTO audit_stream.dead_letters (id, change_id, event_kind, source, changed_at, payload, reason)
SELECT id, change_id, event_kind, source, changed_at, payload, %s FROM refused
"""


class Lag(NamedTuple):
    waiting: int
    behind_s: float
    dead_letters: int


class _Bytes(Loader):
    """Text as it comes: a database in SQL_ASCII may hold what no encoding explains."""

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class Outbox:
    def __init__(self, connection: "psycopg.AsyncConnection[Any]") -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, url: str) -> "Outbox":
        """Raises Lost when the database cannot be had now, Misconfigured when that will not change by itself."""
        connection = await connect(url, APPLICATION_NAME)
        connection.adapters.register_loader("text", _Bytes)
        outbox = cls(connection)
        try:
            await outbox._begin()
        except BaseException:
            await connection.close()
            raise
        return outbox

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def _begin(self) -> None:
        rows = await self._rows(
            "SELECT pg_is_in_recovery(), to_regclass('audit_stream.outbox') IS NOT NULL,"
            " current_setting('server_encoding') = 'SQL_ASCII'"
        )
        (standby, installed, any_bytes) = rows[0]
        if standby:
            raise Lost(
                "it is a standby and takes no writes; target_session_attrs=read-write in the URL finds the primary"
            )
        if not installed:
            raise Misconfigured(
                "audit_stream is not installed in this database: run `audit-stream postgres install`, or the relay's"
                " role may not see it: SELECT audit_stream.allow_relay('ROLE')"
            )
        if any_bytes:
            # As they are: checked on their way to UTF-8, one row would be the end of every answer that holds it.
            await self._rows("SET client_encoding = 'SQL_ASCII'")
        for statement in _SESSION.split(";"):
            await self._rows(statement)

    async def lead(self) -> bool:
        """Whether this relay is the one that drains the outbox, from now until its connection ends."""
        return bool((await self._rows("SELECT pg_try_advisory_lock(%s)", LEAD))[0][0])

    async def still_there(self) -> None:
        """Raises Lost when the connection, and so the lead, is gone."""
        await self._rows("SELECT")

    async def next(self, *, besides: Sequence[int], count: int, size_bytes: int) -> list[Change]:
        """The oldest changes that wait, in the order of their ids, but for those of these ids."""
        return [
            Change(id_, change_id.decode(), kind, source, changed_at.decode(), payload)
            for id_, change_id, kind, source, changed_at, payload in await self._rows(
                _NEXT, list(besides), count, size_bytes
            )
        ]

    async def delivered(self, ids: Sequence[int]) -> None:
        """The chain has these."""
        await self._rows("DELETE FROM audit_stream.outbox WHERE id = ANY (%s)", list(ids))

    async def refuse(self, id_: int, reason: str) -> None:
        """Put a change aside for good, with the reason: in one step, so it is always in one of the two tables."""
        # The database's encoding may have no letter for what the reason quotes.
        plain = reason.encode("ascii", "backslashreplace").decode().replace("\0", "\\0")
        await self._rows(_REFUSE, id_, plain)

    async def lag(self) -> Lag:
        rows = await self._rows(
            "SELECT waiting, extract(epoch FROM behind)::float8, dead_letters FROM audit_stream.lag()"
        )
        return Lag(*rows[0])

    async def fall_asleep(self) -> bool:
        """Have changes wake us from now on. False while one is being written that found us awake.

        What was committed before may not have been read: look once more, then be `woken`.
        """
        return bool((await self._rows("SELECT pg_try_advisory_lock(%s)", ASLEEP))[0][0])

    async def woken(self, timeout_s: float) -> None:
        """Wait for a change, or for as long."""
        try:
            async for _ in self._connection.notifies(timeout=timeout_s, stop_after=1):
                pass
        except psycopg.Error as error:
            raise _meaning(error) from error

    async def wake_up(self) -> None:
        await self._rows("SELECT pg_advisory_unlock(%s)", ASLEEP)

    async def _rows(self, statement: str, *arguments: Any) -> list[Any]:
        try:
            cursor = await self._connection.execute(statement.encode(), arguments or None)
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise _meaning(error) from error


def _meaning(error: psycopg.Error) -> Exception:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return Misconfigured(
            f"the relay's role may not do its work: {first_line(error)};"
            " whoever installed audit_stream can say SELECT audit_stream.allow_relay('ROLE')"
        )
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction):
        return Misconfigured(
            f"audit_stream is not, or no longer, installed as this relay needs it: {first_line(error)}"
        )
    # Whatever else it is: changes wait, the log says why, and it is tried again.
    return Lost(first_line(error))
