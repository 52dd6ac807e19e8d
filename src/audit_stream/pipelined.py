"""One connection to Redis for commands whose order counts: executed in the order they were sent, answered in it too."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from audit_stream.facts import facts_of, version_of
from audit_stream.replies import leads_astray

Command = tuple[Any, ...]
Facts = Mapping[str, str]
WAITAOF_SINCE = (7, 2)


class Line(NamedTuple):
    """A connection from one connecting to the next. The pool hands out the same object again, connected anew."""

    connection: AbstractConnection
    facts: Facts
    """What the server said of itself when the connection was made."""

    @property
    def knows_waitaof(self) -> bool:
        return version_of(self.facts) >= WAITAOF_SINCE


class Answered(NamedTuple):
    reply: Any
    line: Line


class Pipelined:
    """Sends a command while others wait for their answers; on a pool's connections two would race each other.

    It keeps one connection of the client's pool, and takes another when that one fails. A call whose answer is
    lost raises ConnectionError; whether it was executed is not known. Packing in C and no pool on the way: what
    `execute_command` does for each call costs a tenth of an append.
    """

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._line: Line | None = None
        self._sending = asyncio.Lock()
        self._newest = asyncio.Event()
        """Of the newest call: set when its answer is read, so that the next one may read its own."""
        self._newest.set()
        self.admit: Callable[[Facts], None] = lambda facts: None
        """Is shown what the server says of itself before a new connection is used; raises where it must not be."""

    async def call(self, command: Command, *, on: Line | None = None) -> Answered:
        """Send the command and return its answer; with `on`, on that line or not at all.

        Raises what redis-py raises.
        """
        async with self._sending:
            line = self._line or await self._connect()
            if on and line is not on:
                raise RedisConnectionError("the connection of the call before was lost")
            before, mine = self._newest, asyncio.Event()
            self._newest = mine
            try:
                await line.connection.send_packed_command(pack_command(command), check_health=False)
            except BaseException:
                mine.set()
                await self._give_up(line)
                raise
        try:
            await before.wait()
            if line is not self._line:
                raise RedisConnectionError("the connection was lost before the answer came")
            return Answered(await line.connection.read_response(), line)
        except ResponseError as error:
            if leads_astray(error):
                # Demoted, cut off, or not the slot's owner: the address may lead to another server by now.
                await self._give_up(line)
            raise
        except BaseException:
            # The answer that nobody reads any more would be taken for the next call's.
            await self._give_up(line)
            raise
        finally:
            mine.set()

    async def facts(self) -> dict[str, str]:
        """What the server at the other end says of itself now."""

        async def ask(command: Command) -> Any:
            return (await self.call(command)).reply

        return await facts_of(ask)

    @property
    def leads_to(self) -> tuple[str, int] | None:
        """The server at the other end; None while there is no connection."""
        connection: Any = self._line and self._line.connection
        return (connection.host, connection.port) if connection else None

    async def give_up(self) -> None:
        """Close the connection; the next call opens another. Calls that wait for their answer lose it."""
        if self._line:
            await self._give_up(self._line)

    async def _connect(self) -> Line:
        connection = await self._pool.get_connection()

        async def ask(command: Command) -> Any:
            await connection.send_packed_command(pack_command(command), check_health=False)
            return await connection.read_response()

        try:
            # The same name may lead to another server now, or to the same one with other settings.
            try:
                facts = await facts_of(ask)
            except ResponseError:
                facts = {}  # INFO is refused: `admit` decides about a server of which nothing is known
            self.admit(facts)
        except BaseException:
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
            raise
        self._line = Line(connection, facts)
        return self._line

    async def _give_up(self, line: Line) -> None:
        if line is self._line:
            self._line = None
            await line.connection.disconnect(nowait=True)
            await self._pool.release(line.connection)
