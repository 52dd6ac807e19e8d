"""Loads the Lua scripts and calls them, one typed function per script."""

from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import Any, Literal, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from audit_stream.chain import Head
from audit_stream.errors import Unreachable
from audit_stream.pipelined import Answered, Command, Line, Pipelined
from audit_stream.settings import Ack

_HERE = Path(__file__).parent
SYNCED_WITHIN_MS = 1000
"""Redis with appendfsync always syncs before it answers, so this is only waited for where it does not sync."""


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
    return _with_name(source("sha256") + source("append"))


@cache
def _reading_script(name: str) -> tuple[str, str]:
    return _with_name(source(name))


def _with_name(text: str) -> tuple[str, str]:
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
    once_keys: tuple[bytes, ...]
    """Of the idempotency key: the shared one and the source's own. Nothing without an idempotency key."""


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
) -> tuple[Appended | Moved | Seen | Landed, Line]:
    """Call append.lua; return its answer and the line that it came on.

    `committed` are the commit times to restore, in Unix milliseconds, one per event; without them it is now.
    Raises what redis-py raises.
    """
    keys: list[bytes] = [events_key, time_key, token_key]
    argv: list[bytes | int] = [*believed, *promised, ttl_ms, b",".join(b"%d" % ms for ms in committed)]
    for event in batch:
        keys += (event.kind_key, event.source_key, *event.once_keys)
        argv += event[:6]
        argv.append(b"2" if event.once_keys else b"")
    reply, line = await _append_lua(redis, keys, argv)
    match reply[0]:
        case b"appended":
            return Appended(reply[1], reply[2].decode(), reply[3], reply[4:], 0), line
        case b"moved":
            return Moved(Head(reply[1], reply[2])), line
        case b"seen":
            positions = zip(reply[1::2], reply[2::2], strict=True)
            return Seen({position - 1: event_id for position, event_id in positions}), line
        case b"landed":
            return Landed(reply[1]), line
    raise RuntimeError(f"append.lua answered {reply!r}")


async def dry_run(redis: Pipelined, events_key: bytes, time_key: bytes, token_key: bytes, *, promised: Head) -> Head:
    """Go the way of an append without writing anything; return the head. Raises what an append would."""
    reply, _ = await _append_lua(redis, [events_key, time_key, token_key], [0, b"", *promised, 0, b""])
    return Head(reply[1], reply[2])


async def _append_lua(redis: Pipelined, keys: Sequence[bytes], argv: Sequence[bytes | int]) -> Answered:
    """Loads the script when Redis does not know it (restart, failover, SCRIPT FLUSH)."""
    text, sha = append_script()
    try:
        return await redis.call(("EVALSHA", sha, len(keys), *keys, *argv))
    except NoScriptError:
        return await redis.call(("EVAL", text, len(keys), *keys, *argv))


async def wait_for_replicas(redis: Pipelined, ack: Ack, timeout_ms: int, *, on: Line) -> int:
    """Wait until the replicas that `ack` names hold what was written on the line; return how many do.

    They hold it on their disks where a 201 means a disk and the server knows WAITAOF, else in their memory.
    """
    if ack.fsync and on.knows_waitaof:
        (synced, held), _ = await redis.call(("WAITAOF", 1, ack.replicas, timeout_ms), on=on)
        if not synced:
            # A replica's disk is no substitute: if the primary is started again, it takes the chain back.
            raise Unreachable("Redis has not synced it to its own disk", in_doubt=True)
    else:
        held, _ = await redis.call(("WAIT", ack.replicas, timeout_ms), on=on)
    return int(held)


async def syncs(redis: Pipelined, fence: Command) -> bool:
    """Send the write `fence`, and return whether Redis syncs it to its disk. True where that cannot be asked."""
    try:
        _, line = await redis.call(fence)
        if not line.knows_waitaof:
            return True
        (synced, _), _ = await redis.call(("WAITAOF", 1, 0, SYNCED_WITHIN_MS), on=line)
    except ResponseError:
        return True
    return bool(synced)


async def read_end(
    redis: Redis, events_key: bytes, indexes: Sequence[bytes], *, after: int, count: int
) -> tuple[list[Any], bytes, list[tuple[int, bytes]]]:
    """Call read_end.lua: up to `count` entries after event `after`, the highest entry id that the chain ever had,
    and of each index its length (-1 where it is not a stream) and its newest entry id.
    """
    reply = await _read_only(redis, "read_end", (1 + len(indexes), events_key, *indexes, after, count))
    entries, last_id, *about = reply
    return entries, last_id, list(zip(about[::2], about[1::2], strict=True))


async def read_entries(redis: Redis, keys: Sequence[bytes], ranges: Sequence[bytes | int]) -> list[bytes | None]:
    """Call read_entries.lua: of each index the ids of its entries in a range, joined by commas; None for no stream.

    `ranges` are for each key the ids to read from and to, and how many entries at most.
    """
    reply: list[bytes | None] = await _read_only(redis, "read_entries", (len(keys), *keys, *ranges))
    return reply


async def _read_only(redis: Redis, name: str, keys_and_arguments: Sequence[Any]) -> Any:
    try:
        # A user without the right to write may call it so.
        return await _call(redis, "_RO", name, keys_and_arguments)
    except ResponseError as error:
        # These commands came with Redis 7.0; the user may be of a time before.
        if "unknown command" not in str(error).lower() and not isinstance(error, NoPermissionError):
            raise
        return await _call(redis, "", name, keys_and_arguments)


async def _call(redis: Redis, suffix: Literal["_RO", ""], name: str, keys_and_arguments: Sequence[Any]) -> Any:
    text, sha = _reading_script(name)
    try:
        return await redis.execute_command(f"EVALSHA{suffix}", sha, *keys_and_arguments)
    except NoScriptError:
        return await redis.execute_command(f"EVAL{suffix}", text, *keys_and_arguments)


async def probe(redis: Redis) -> bool:
    """Whether Redis runs our Lua, and it computes SHA-256 right."""
    text = source("sha256") + "return sha256(ARGV[1])"
    return bool(await redis.execute_command("EVAL", text, 0, b"") == _EMPTY)


_EMPTY = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # FIPS 180-4 of no bytes
