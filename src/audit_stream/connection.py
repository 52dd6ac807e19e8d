"""Connections to Redis, every timeout explicit, and what their errors mean to us."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from audit_stream.addresses import Address, Node, parse
from audit_stream.errors import ChainBroken, HashMismatch, Misconfigured, Unreachable
from audit_stream.owners import Cluster, Owner, Sentinels
from audit_stream.pools import FollowingConnection, FollowingPool, FollowingRedis, FollowingSSLConnection
from audit_stream.replies import text_of, unreachable

CONNECT_TIMEOUT_S = 0.5
READ_TIMEOUT_S = 1.5

# redis-py 8 gives every socket a timeout of 5 s and repeats any failed command ten times by default.
# The first breaks a blocking XREAD, the second appends twice, so neither is left to a default.
_NEVER_AGAIN = Retry(NoBackoff(), 0)


class Clients(NamedTuple):
    write: Redis
    """Appends. Nothing is repeated: a lost reply is not a lost write, and the appender settles which."""
    read: Redis
    """Everything that can safely be asked twice; a connection found closed is opened again."""
    tail: Redis
    """One blocking XREAD. It keeps its connection; a shared pool would starve the others."""
    owner: Owner | None = None
    """Who says where they lead; None where the address names the server itself."""
    shown: str = "Redis"
    """The address without its passwords, for messages."""

    async def leave_all_but(self, node: Node) -> bool:
        """Close the connections that lead to any other server; return whether there were any."""
        pools = [cast("FollowingPool", client.connection_pool) for client in (self.write, self.read, self.tail)]
        return any([await pool.leave_all_but(node) for pool in pools])


def connect(url: str, chain: str) -> Clients:
    """Make the clients for an address (see addresses.py); in a cluster, of the node that owns the chain's slot.

    Opens no connection yet. Raises Misconfigured for an address, or a file of certificates, that cannot be read.
    """
    address = parse(url)
    _check_certificates(address)
    owner: Owner | None = None
    if address.kind == "sentinel":
        owner = Sentinels(address)
    elif address.kind == "cluster":
        owner = Cluster(address, chain)
    again = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    return Clients(
        write=_client(address, owner, connections=4, socket_timeout=None, retry=_NEVER_AGAIN),
        read=_client(address, owner, connections=32, socket_timeout=READ_TIMEOUT_S, retry=again),
        tail=_client(address, owner, connections=1, socket_timeout=None, retry=_NEVER_AGAIN),
        owner=owner,
        shown=address.shown,
    )


def _check_certificates(address: Address) -> None:
    for options in (address.tls, address.sentinel_tls):
        if options is not None:
            try:
                SSLConnection(**options).ssl_context.get()
            except (OSError, ssl.SSLError, ValueError) as error:
                files = ", ".join({value: None for name, value in options.items() if name.endswith(("certs", "file"))})
                why = getattr(error, "strerror", None) or error
                raise Misconfigured(
                    f"the TLS options of the address of Redis ({files}) cannot be used: {why}"
                ) from error


def _client(
    address: Address, owner: Owner | None, *, connections: int, socket_timeout: float | None, retry: Retry
) -> Redis:
    options: dict[str, Any] = {
        **address.login,
        **(address.tls or {}),
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": retry,
        "health_check_interval": 0,
        "protocol": 2,
        "decode_responses": False,
        "max_connections": connections,
        "timeout": 1,
    }
    if address.kind != "unix":
        options["socket_keepalive"] = True
    client: Redis
    if owner:
        kind = FollowingConnection if address.tls is None else FollowingSSLConnection
        client = FollowingRedis.from_pool(FollowingPool(connection_class=kind, owner=owner, **options))
    elif address.kind == "unix":
        pool = BlockingConnectionPool(connection_class=UnixDomainSocketConnection, path=address.path, **options)
        client = Redis.from_pool(pool)
    else:
        host, port = address.nodes[0]
        kind_of_one = Connection if address.tls is None else SSLConnection
        pool = BlockingConnectionPool(connection_class=kind_of_one, host=host, port=port, **options)
        client = Redis.from_pool(pool)
    for command in ("XRANGE", "XREVRANGE", "XREAD", "INFO"):
        client.set_response_callback(command, cast("Any", as_it_came))
    return client


def as_it_came(reply: Any, **_options: Any) -> Any:
    return reply


@contextmanager
def reaching() -> Iterator[None]:
    """Turn what redis-py raises into Unreachable, ChainBroken or HashMismatch."""
    try:
        yield
    except ResponseError as error:
        raise _evidence(text_of(error)) or unreachable(error) from error
    except RuntimeError as error:
        # What uvloop raises for a write to a connection that the other side has just reset.
        if "closed" not in str(error):
            raise
        raise Unreachable(f"Redis is away: {error}", in_doubt=True) from error
    except (RedisError, OSError, TimeoutError) as error:
        raise unreachable(error) from error


@asynccontextmanager
async def reading() -> AsyncIterator[None]:
    """`reaching`, for what is answered within READ_TIMEOUT_S in all: waiting for a connection and its handshake too."""
    with reaching():
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                yield
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"it did not answer within {READ_TIMEOUT_S} s") from error


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks that talk to Redis until they have ended; what they end with concerns nobody any more.

    To cancel once is not enough: redis-py sends with `asyncio.wait_for`, and before Python 3.12 that loses a
    cancellation which comes in the moment in which it is done (bpo-37658).
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)


def _evidence(text: str) -> ChainBroken | HashMismatch | None:
    """What append.lua, or a key of another type, says of the chain; None for any other answer."""
    code, _, rest = text.partition(" ")
    if code == "CHAINBROKEN":
        numbers = [int(number) for number in re.findall(r"\b\d+\b", rest)]
        if rest == " ".join(map(str, numbers)):
            return cut_end(*numbers)
        return ChainBroken(f"the chain is damaged: {rest}", at=numbers[0] if numbers else 0)
    if code == "HASHMISMATCH":
        return HashMismatch(f"Redis refused this replica's hash: {rest}; nothing was written")
    if "WRONGTYPE" in text:  # Redis 6.2 puts words of its own in front of a script's error
        return ChainBroken("a key of the chain holds another type than a stream", at=0)
    return None


def cut_end(end: int, written: int) -> ChainBroken:
    """The evidence that the newest events are gone."""
    return ChainBroken(
        f"chain ends at event #{end}, but #{written} was written",
        at=end + 1,
        expected=str(written),
        found=str(end),
    )
