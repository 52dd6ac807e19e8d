"""Loads the Lua scripts and calls them, one typed function per script."""

from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from audit_stream.chain import Head
from audit_stream.pipelined import Pipelined

_HERE = Path(__file__).parent


@cache
def source(name: str) -> str:
    """Return the text of a script: from the installed package, else from the checkout."""
    for folder in (_HERE / "lua", _HERE.parents[1] / "lua"):
        path = folder / f"{name}.lua"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"{name}.lua is neither in the package nor in the checkout")


@cache
def append_script() -> tuple[str, str]:
    """Return append.lua with sha256.lua in front of it, and the SHA-1 Redis knows it by."""
    text = source("sha256") + source("append")
    return text, sha1(text.encode()).hexdigest()


class Linked(NamedTuple):
    """An event as append.lua takes it."""

    timestamp: bytes
    kind: bytes
    source: bytes
    payload: bytes
    quoted: bytes
    """The source as a JSON string where that is more than the source in quotes; else nothing."""
    hash: bytes
    """Nothing when the script is to hash."""
    kind_key: bytes
    source_key: bytes
    once_key: bytes
    """Nothing without an idempotency key."""


class Appended(NamedTuple):
    first_id: int
    refused: str
    """The index writes that Redis refused; empty when all is well."""
    prev_hash: bytes
    """Of the first event."""
    hashes: list[bytes]
    """In order, when the script computed them; else empty."""
    replicas: int
    """How many replicas hold the write, when that was asked for; else 0."""


class Moved(NamedTuple):
    """Nothing was written: the head is another one."""

    head: Head


class Seen(NamedTuple):
    """Nothing was written: these positions of the batch (from 0) were appended before, as these event_ids."""

    event_ids: dict[int, int]


class Landed(NamedTuple):
    """Nothing was written now: this very batch was, earlier, starting at this event_id."""

    first_id: int


async def append(
    redis: Pipelined,
    events_key: bytes,
    time_key: bytes,
    token_key: bytes,
    batch: Sequence[Linked],
    *,
    believed: Head,
    promised: Head,
    ttl_ms: int,
    committed: Sequence[int] = (),
    replicas: int = 0,
    replicas_timeout_ms: int = 0,
) -> Appended | Moved | Seen | Landed:
    """Call append.lua; with `replicas`, wait on the same connection until that many hold the write.

    Loads the script when Redis does not know it (restart, failover, SCRIPT FLUSH). Raises what redis-py raises.
    """
    keys: list[bytes] = [events_key, time_key, token_key]
    argv: list[bytes | int] = [*believed, *promised, ttl_ms, b",".join(b"%d" % ms for ms in committed)]
    for event in batch:
        keys += (event.kind_key, event.source_key, event.once_key) if event.once_key else event[6:8]
        argv += event[:6]
        argv.append(b"1" if event.once_key else b"")
    text, sha = append_script()
    try:
        answered = await redis.call(("EVALSHA", sha, len(keys), *keys, *argv))
    except NoScriptError:
        answered = await redis.call(("EVAL", text, len(keys), *keys, *argv))
    reply = answered.reply
    match reply[0]:
        case b"appended":
            held = 0
            if replicas:
                # WAIT speaks of the writes of the connection that it comes on.
                held = int((await redis.call(("WAIT", replicas, replicas_timeout_ms), on=answered.line)).reply)
            return Appended(reply[1], reply[2].decode(), reply[3], reply[4:], held)
        case b"moved":
            return Moved(Head(reply[1], reply[2]))
        case b"seen":
            return Seen({position - 1: event_id for position, event_id in zip(reply[1::2], reply[2::2], strict=True)})
        case b"landed":
            return Landed(reply[1])
    raise RuntimeError(f"append.lua answered {reply!r}")


async def probe(redis: Redis) -> bool:
    """Whether Redis runs our scripts: it takes append.lua, and computes SHA-256 right."""
    await redis.script_load(append_script()[0])
    text = source("sha256") + "return sha256(ARGV[1])"
    return bool(await redis.execute_command("EVAL", text, 0, b"") == _EMPTY)


_EMPTY = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # FIPS 180-4 of no bytes
