"""Connections that lead to the owner of the moment: those that lead elsewhere are opened anew.

A cluster needs no client of redis-py's for clusters: all keys of a chain lie in one slot, so on one node.
"""

import asyncio
from collections.abc import Iterable
from itertools import chain as joined
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from audit_stream.addresses import Node
from audit_stream.errors import Unreachable
from audit_stream.owners import ASK_TIMEOUT_S, Owner
from audit_stream.replies import Elsewhere, code_of, leads_astray, redirection, text_of

REDIRECTS = 3


class NoOwner(RedisConnectionError):
    """No owner was found; the cause says why."""


class FollowingConnection(Connection):
    """A connection that asks the owner where to go, each time it connects."""

    def __init__(self, *, owner: Owner, **options: Any) -> None:
        self.owner = owner
        self.generation = -1
        super().__init__(**options, redis_connect_func=self._confirmed)

    async def _connect(self) -> None:
        try:
            self.host, self.port = await self.owner.locate()
        except Unreachable as error:
            # redis-py lets no other exceptions through whole.
            raise NoOwner(str(error)) from error
        self.generation = self.owner.generation
        await super()._connect()  # type: ignore[no-untyped-call]

    async def _confirmed(self, _connection: Connection) -> None:
        try:
            async with asyncio.timeout(2 * ASK_TIMEOUT_S):
                await self.on_connect()
                await self.owner.confirm(self)
        except TimeoutError as error:
            raise RedisTimeoutError(f"the server at {self.host}:{self.port} does not answer") from error
        except InvalidResponse:
            what = f"the server at {self.host}:{self.port}, which we were sent to, does not answer as a Redis does"
            raise NoOwner(what) from Unreachable(what)
        except Unreachable as error:
            raise NoOwner(str(error)) from error

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except RedisError as error:
            if leads_astray(error):
                self.owner.doubt(error, (self.host, self.port))
                self.generation = -1
            if code_of(error) in ("MOVED", "READONLY"):
                raise Elsewhere(text_of(error)) from error
            raise


class FollowingSSLConnection(FollowingConnection, SSLConnection):
    pass


class FollowingPool(BlockingConnectionPool):
    """Hands out connections to the owner of the moment."""

    async def ensure_connection(self, connection: Any) -> None:
        if connection.is_connected and connection.generation != connection.owner.generation:
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)

    async def leave_all_but(self, node: Node) -> bool:
        """Close the connections to other servers, those in use too; return whether there were any."""
        every = cast("Iterable[Connection]", joined(self._available_connections, self._in_use_connections))
        astray = [one for one in every if one.is_connected and (one.host, one.port) != node]
        for connection in astray:
            await connection.disconnect(nowait=True)
        return bool(astray)


class FollowingRedis(Redis):
    """Sends a single command again where a MOVED or an ASK leads: Redis did not execute it before."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        for _ in range(REDIRECTS):
            try:
                return await self._execute(args, options)
            except Elsewhere:
                continue
        return await self._execute(args, options)

    async def _execute(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if not (node := redirection(error, "ASK")):
                raise
        # The slot is being moved, and its new node answers for this key already, when it is asked so.
        connection = self._connection_to(node)
        try:
            await connection.connect()
            await connection.send_command("ASKING", check_health=False)
            await connection.read_response()
            await connection.send_command(*args, check_health=False)
            return await self.parse_response(connection, args[0], **options)
        except ResponseError as error:
            if code_of(error) == "MOVED":  # and has been moved back
                raise Elsewhere(text_of(error)) from error
            raise
        finally:
            await connection.disconnect(nowait=True)

    def _connection_to(self, node: Node) -> Connection:
        pool = self.connection_pool
        options = dict(pool.connection_kwargs)
        host = node[0] or options["owner"].at[0]
        del options["owner"]
        kind = SSLConnection if issubclass(pool.connection_class, SSLConnection) else Connection
        return kind(host=host, port=node[1], **options)
