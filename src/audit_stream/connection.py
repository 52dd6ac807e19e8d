"""Connections to Redis, every timeout explicit, and what their errors mean to us."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from audit_stream.errors import ChainBroken, HashMismatch, Misconfigured, Unreachable

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


def connect(url: str) -> Clients:
    """Make the clients for redis:// rediss:// unix:// or redis+sentinel://host:port,host:port/master/db.

    Opens no connection yet. Raises Misconfigured for a URL that cannot be read.
    """
    again = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    try:
        return Clients(
            write=_client(url, connections=4, socket_timeout=None, retry=_NEVER_AGAIN),
            read=_client(url, connections=32, socket_timeout=READ_TIMEOUT_S, retry=again),
            tail=_client(url, connections=1, socket_timeout=None, retry=_NEVER_AGAIN),
        )
    except (ValueError, TypeError) as error:
        raise Misconfigured(f"the address of Redis cannot be read: {error}") from error


def _client(url: str, *, connections: int, socket_timeout: float | None, retry: Retry) -> Redis:
    options: dict[str, Any] = {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": retry,
        "health_check_interval": 0,
        "protocol": 2,
        "decode_responses": False,
    }
    pooling: dict[str, Any] = {"max_connections": connections, "timeout": 1}
    if url.startswith("redis+sentinel://"):
        client = _behind_sentinel(url, connections, options)
    else:
        if not url.startswith("unix://"):
            options["socket_keepalive"] = True
        client = Redis.from_pool(BlockingConnectionPool.from_url(url, **pooling, **options))
    for command in ("XRANGE", "XREVRANGE", "XREAD", "INFO"):
        client.set_response_callback(command, cast("Any", as_it_came))
    return client


def as_it_came(reply: Any, **_options: Any) -> Any:
    return reply


def _behind_sentinel(url: str, connections: int, options: dict[str, Any]) -> Redis:
    parts = urlsplit(url)
    path = [unquote(part) for part in parts.path.split("/") if part]
    if not path:
        raise ValueError("redis+sentinel:// names no master: redis+sentinel://host:26379,host:26379/mymaster/0")
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    sentinels = []
    for host in hosts.split(","):
        name, _, port = host.rpartition(":") if ":" in host else (host, "", "26379")
        sentinels.append((name, int(port)))
    query = parse_qs(parts.query)
    sentinel = Sentinel(
        sentinels,
        sentinel_kwargs={
            "socket_timeout": READ_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "retry": _NEVER_AGAIN,
            "password": query.get("sentinel_password", [None])[0],
        },
    )
    client: Redis = sentinel.master_for(
        path[0],
        connection_pool_class=SentinelConnectionPool,
        max_connections=connections,
        db=int(path[1]) if len(path) > 1 else 0,
        username=unquote(username) or None,
        password=unquote(password) or None,
        socket_keepalive=True,
        **options,
    )
    return client


# What Redis answers when it takes no writes for now, and what to tell the person who reads the 503.
_NOT_NOW = {
    "OOM": "Redis is out of memory (maxmemory reached) and takes no writes",
    "READONLY": "Redis is read-only: it was demoted to a replica",
    "MISCONF": "Redis cannot write its log to disk and takes no writes",
    "NOREPLICAS": "Redis has fewer replicas than min-replicas-to-write asks for and takes no writes",
    "MASTERDOWN": "Redis is a replica that has lost its primary",
    "CLUSTERDOWN": "the Redis cluster is down",
    "TRYAGAIN": "the Redis cluster is moving the chain's slot",
    "BUSY": "Redis is held up by a script",
    "LOADING": "Redis is loading its data",
    "NOPERM": "Redis does not permit this user what audit-stream needs",
    "NOAUTH": "Redis wants a password",
    "WRONGPASS": "Redis refuses the user name or password",
}


# What redis-py puts in front of an error that a command in a pipeline got; its version decides about the tuple.
_IN_PIPELINE = re.compile(r"""^Command # \d+ \(.*?\) of pipeline caused error: (\(['"])?""", re.S)


@contextmanager
def reaching() -> Iterator[None]:
    """Turn what redis-py raises into Unreachable, ChainBroken or HashMismatch."""
    try:
        yield
    except AuthenticationError as error:
        raise Unreachable(f"Redis refuses the user name or password: {error}") from error
    except ResponseError as error:
        raise _meaning(str(error)) from error
    except RuntimeError as error:
        # What uvloop raises for a write to a connection that the other side has just reset.
        if "closed" not in str(error):
            raise
        raise Unreachable(f"Redis is away: {error}", in_doubt=True) from error
    except (RedisError, OSError, TimeoutError) as error:
        raise Unreachable(f"Redis is away: {error or type(error).__name__}", in_doubt=True) from error


@asynccontextmanager
async def reading() -> AsyncIterator[None]:
    """`reaching`, for what is answered within READ_TIMEOUT_S in all: waiting for a connection and its handshake too."""
    with reaching():
        async with asyncio.timeout(READ_TIMEOUT_S):
            yield


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


def _meaning(text: str) -> Exception:
    text = _IN_PIPELINE.sub("", text)
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
    # redis-py cuts the code off the errors it has a class for.
    for word, meaning in _NOT_NOW.items():
        if code == word or (word == "OOM" and "used memory > 'maxmemory'" in text):
            return Unreachable(f"{meaning}: {text}")
    if "read only replica" in text:
        return Unreachable(f"{_NOT_NOW['READONLY']}: {text}")
    if "max number of clients" in text:
        return Unreachable(f"Redis takes no more connections: {text}")
    return Unreachable(f"Redis answered {text!r}")


def cut_end(end: int, written: int) -> ChainBroken:
    """The evidence that the newest events are gone."""
    return ChainBroken(
        f"chain ends at event #{end}, but #{written} was written",
        at=end + 1,
        expected=str(written),
        found=str(end),
    )
