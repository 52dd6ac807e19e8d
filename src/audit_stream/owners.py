"""Who takes a chain's writes now: asked of the sentinels, or of the cluster, for each new connection.

    owner       finds the server; every pool of a chain's clients shares one
    pool        its connections lead to the owner of the moment; those that lead elsewhere are opened anew
    client      follows MOVED and ASK for single commands

A cluster needs no client of redis-py's for clusters: all keys of a chain lie in one slot, so on one node.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain as joined
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, RedisSSLContext, SSLConnection
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from audit_stream.addresses import Address, Node
from audit_stream.errors import Denied, Unreachable
from audit_stream.replies import Elsewhere, code_of, leads_astray, redirection, text_of, unreachable

ASK_TIMEOUT_S = 0.5
"""For one sentinel or node to answer who the owner is, its connection included. All are asked at once."""
MOST_ASKED = 16
REDIRECTS = 3


class NoOwner(RedisConnectionError):
    """No owner was found; the cause says why."""


class Owner(ABC):
    """Finds the server that takes the chain's writes."""

    def __init__(self, nodes: Sequence[Node], login: Mapping[str, Any], tls: Mapping[str, Any] | None) -> None:
        self._nodes = tuple(nodes)
        self._login, self._tls = login, tls
        self._context: RedisSSLContext | None = None
        self.at: Node = ("", 0)
        """Where it was found last."""
        self.generation = 0
        """Rises when the owner is another one than before; connections of an older generation are opened anew."""

    async def locate(self) -> Node:
        """Ask for the owner. Raises Unreachable when nobody knows it now, Denied when waiting does not help."""
        node = await self._find()
        if node != self.at:
            self.at = node
            self.generation += 1
        return node

    @abstractmethod
    async def _find(self) -> Node: ...

    async def confirm(self, connection: Connection) -> None:  # noqa: B027 — a cluster's nodes say MOVED
        """Look at the server that was found, before the connection is used. Raises Unreachable."""

    def doubt(self, error: Exception, node: Node) -> None:  # noqa: B027 — sentinels are asked each time
        """Take note that this node does not take the chain's writes now."""

    async def _ask(self, node: Node, *command: str) -> Any:
        options: dict[str, Any] = {
            "socket_timeout": ASK_TIMEOUT_S,
            "socket_connect_timeout": ASK_TIMEOUT_S,
            "protocol": 2,
        }
        options |= {"host": node[0], "port": node[1], **self._login, **(self._tls or {})}
        connection: Connection
        if self._tls is None:
            connection = Connection(**options)
        else:
            connection = SSLConnection(**options)
            # Else each would read the machine's certificates anew, which takes longer than to ask.
            self._context = connection.ssl_context = self._context or connection.ssl_context
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await connection.connect()
                await connection.send_command(*command, check_health=False)
                return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)

    async def _ask_all(self, nodes: Sequence[Node], *command: str) -> list[tuple[Node, Any]]:
        """The answers of all nodes, an exception where there is none."""
        replies = await asyncio.gather(*(self._ask(node, *command) for node in nodes), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, Exception):
                raise reply
        return list(zip(nodes, replies, strict=True))


class Sentinels(Owner):
    """The master of a name, as the sentinel with the newest configuration sees it."""

    def __init__(self, address: Address) -> None:
        super().__init__(address.nodes, address.sentinel_login, address.sentinel_tls)
        self._master = address.master

    async def _find(self) -> Node:
        """Ask every sentinel: one that a partition has cut off still names the master of before."""
        answers = await self._ask_all(self._nodes, "SENTINEL", "MASTER", self._master)
        views = [_fields(reply) for _, reply in answers if not isinstance(reply, Exception)]
        up = [view for view in views if not {"s_down", "o_down"} & set(view["flags"].split(","))]
        if up:
            newest = max(up, key=lambda view: int(view.get("config-epoch", "0")))
            return newest["ip"], int(newest["port"])
        if views:
            where = f"{views[0]['ip']}:{views[0]['port']}"
            raise Unreachable(
                f"the sentinels see their master {self._master!r} at {where} as down: it must come back, or they must"
                " agree on another",
                in_doubt=True,
            )
        raise self._nobody_knows(answers)

    def _nobody_knows(self, answers: "list[tuple[Node, Any]]") -> Unreachable:
        # What a sentinel answered says more than that another did not.
        node, error = min(answers, key=lambda answer: not isinstance(unreachable(answer[1]), Denied))
        why = unreachable(error)
        where = f"{node[0]}:{node[1]}"
        if "No such master" in str(error):
            return Denied(
                f"the sentinel at {where} watches no master {self._master!r}: correct the name in the address"
            )
        if "unknown command" in str(error).lower():
            return Denied(
                f"the server at {where} is not a sentinel: write its address as redis://{where}, or name the"
                " sentinels, whose port is mostly 26379"
            )
        if isinstance(why, Denied):
            return Denied(f"the sentinel at {where}: {why} (the options sentinel_… are for sentinels)")
        names = ", ".join(f"{host}:{port}" for host, port in self._nodes)
        return Unreachable(f"no sentinel answers at {names}: {why}", in_doubt=True)

    async def confirm(self, connection: Connection) -> None:
        """Refuse a server that is not a primary: the sentinels are wrong, or in the middle of a failover."""
        await connection.send_command("INFO", "replication", check_health=False)
        if "role:master" not in _text(await connection.read_response()):
            raise Unreachable(
                f"the sentinels name {connection.host}:{connection.port} as the master {self._master!r}, but it is a"
                " replica: let their failover end, or correct what they watch",
                in_doubt=True,
            )


class Cluster(Owner):
    """The node that owns the slot in which all keys of a chain lie."""

    def __init__(self, address: Address, chain: str) -> None:
        super().__init__(address.nodes, address.login, address.tls)
        self._seeds = self._nodes
        self._slot = key_slot(b"{%b}" % chain.encode())
        self._found: Node | None = None
        self._hint: Node | None = None
        """What a MOVED named: it knows better than any table."""

    async def _find(self) -> Node:
        if self._hint:
            self._found, self._hint = self._hint, None
            return self._found
        # The one that was right is asked alone: after a migration the others know of it a moment later.
        first = [self._found] if self._found else []
        self._found = None
        errors: list[tuple[Node, Exception]] = []
        answered = False
        for nodes in (first, self._nodes[:MOST_ASKED]):
            answers = await self._ask_all(nodes, "CLUSTER", "SLOTS")
            for node, reply in answers:
                if isinstance(reply, Exception):
                    errors.append((node, reply))
                    continue
                answered = True
                if owner := self._owner_in(reply, node):
                    self._found = owner
                    return owner
        raise self._nobody_knows(errors, answered=answered)

    def _owner_in(self, table: list[Any], asked: Node) -> Node | None:
        owner, known = None, []
        for first, last, *nodes in table:
            # A node that does not know its own name leaves it out: it is the one that was asked.
            named = [(_text(host) or asked[0], int(port)) for host, port, *_ in nodes]
            known += named
            if first <= self._slot <= last and named:
                owner = named[0]
        if known:
            self._nodes = tuple(dict.fromkeys([*self._seeds, *known]))
        return owner

    def _nobody_knows(self, errors: list[tuple[Node, Exception]], *, answered: bool) -> Unreachable:
        for node, error in errors:
            where = f"{node[0]}:{node[1]}"
            if "cluster support disabled" in str(error):
                return Denied(
                    f"the server at {where} does not belong to a cluster: write its address as redis://{where}"
                )
            if isinstance(why := unreachable(error), Denied):
                return Denied(f"the cluster's node at {where}: {why}")
        if answered:
            what = f"no node of the Redis cluster owns the chain's slot {self._slot}: assign it to one"
        else:
            names = ", ".join(f"{host}:{port}" for host, port in self._nodes)
            what = f"no node of the Redis cluster answers at {names}: {unreachable(errors[-1][1])}"
        return Unreachable(what, in_doubt=True)

    def doubt(self, error: Exception, node: Node) -> None:
        self._found = None
        if moved_to := redirection(error, "MOVED"):
            self._hint = (moved_to[0] or node[0], moved_to[1])


# --- connections


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
        astray = [
            connection
            for connection in cast(
                "Iterable[Connection]", joined(self._available_connections, self._in_use_connections)
            )
            if connection.is_connected and (connection.host, connection.port) != node
        ]
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


def _fields(reply: list[bytes]) -> dict[str, str]:
    texts = [_text(part) for part in reply]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
