"""One chain on Redis: its events and the server that holds them. What else stands in Redis are parts of `Stream`.

The events stream alone is the truth; the index streams beside it can be rebuilt from it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from audit_stream import scripts
from audit_stream.chain import Event, Head, quoted
from audit_stream.commit_times import CommitTimeSearch
from audit_stream.connection import READ_TIMEOUT_S, Clients, connect, reaching, reading
from audit_stream.entries import LAST_SEQUENCE, Page, head_of, page_of
from audit_stream.errors import Unreachable
from audit_stream.event import Draft
from audit_stream.facts import facts_of, is_rewriting
from audit_stream.indexes import Indexes
from audit_stream.kept_verdict import KeptVerdict
from audit_stream.keys import Keys
from audit_stream.known_sources import KnownSources
from audit_stream.lease import Lease
from audit_stream.lost_end import LostEnd
from audit_stream.pipelined import Command, Line, Pipelined
from audit_stream.reader import Reader
from audit_stream.rebuilding import Rebuilding
from audit_stream.scripts import Appended, Landed, Linked, Moved, Seen
from audit_stream.session_key import SessionKey
from audit_stream.settings import FSYNC, Ack
from audit_stream.tally import Tally

REPLICAS_TIMEOUT_MS = 1000

NOTHING = Head(0, b"")
"""No belief, for the script to hash; no promise given yet."""


class End(NamedTuple):
    """How the chain ends, all of it read in one step."""

    page: Page
    """The events behind the cursor that was asked about."""
    written: int
    """The highest event_id ever written; more than the head's when the end was cut."""
    indexes: list[tuple[int, int]]
    """Of each index asked about, its length and last event_id; (-1, 0) for a key that is no stream."""


class Stream:
    """One chain. Raises Unreachable when Redis is away, ChainBroken when a key or an entry is not ours."""

    indexes_type: type[Indexes] = Indexes
    """Of `indexes`, for a subclass that has another."""

    def __init__(self, clients: Clients, chain: str, tally: Tally | None = None) -> None:
        self._clients = clients
        self._appends = Pipelined(clients.write)
        self._tally = tally or Tally()
        self._reader = reader = Reader(clients.read, self._tally)
        self.keys = keys = Keys(chain)
        self.indexes = self.indexes_type(reader, keys)
        self.commit_times = CommitTimeSearch(reader, keys)
        self.rebuilding = Rebuilding(clients.write, keys)
        self.lease = Lease(reader, keys.verifier)
        self.kept_verdict = KeptVerdict(reader, keys.verdict)
        self.session_key = SessionKey(reader, keys.session)
        self.known_sources = KnownSources(reader, keys)
        self.lost_end = LostEnd(reader, clients.write, keys)
        self._link_keys = lru_cache(maxsize=8192)(self._make_link_keys)

    @classmethod
    def at(cls, url: str, chain: str = "audit", tally: Tally | None = None) -> "Stream":
        return cls(connect(url, chain), chain, tally)

    async def close(self) -> None:
        for client in (self._clients.tail, self._clients.write, self._clients.read):
            with suppress(RedisError):  # all is answered: a connection that is slow to close costs nobody anything
                await client.aclose()

    # --- write

    async def append(
        self,
        drafts: Sequence[Draft],
        hashes: Sequence[bytes] | None,
        *,
        believed: Head = NOTHING,
        promised: Head = NOTHING,
        token: bytes,
        ttl_ms: int,
        committed: Sequence[int] = (),
        ack: Ack = FSYNC,
    ) -> Appended | Moved | Seen | Landed:
        """Link the drafts as one batch: with hashes offered for the head `believed`, or hashed by the script.

        Refused with ChainBroken when the chain does not reach to `promised`, or holds another event there.
        `committed` are commit times to restore, in Unix milliseconds, one per draft.
        """
        batch = []
        for draft, offered in zip(drafts, hashes or [b""] * len(drafts), strict=True):
            text, kind_key, source_key, own_once = self._link_keys(draft.kind, draft.source)
            once_keys = (self.keys.once(draft.once), own_once + draft.once) if draft.once else ()
            batch.append(Linked(*draft[:4], text, offered, kind_key, source_key, once_keys))
        began = perf_counter()
        with reaching():
            reply, line = await scripts.append(
                self._appends,
                self.keys.events,
                self.keys.time,
                self.keys.batch(token),
                batch,
                believed=believed,
                promised=promised,
                ttl_ms=ttl_ms,
                committed=committed,
            )
        if ack.replicas and isinstance(reply, Appended):
            reply = reply._replace(replicas=await self._replicas_with(ack, line))
        self._tally.redis_append_seconds.observe(perf_counter() - began)
        return reply

    def _make_link_keys(self, kind: bytes, source: bytes) -> tuple[bytes, bytes, bytes, bytes]:
        # What Lua would have to escape, it is given escaped: it never encodes JSON.
        text = quoted(source)
        escaped = b"" if text == b'"%b"' % source else text
        return escaped, self.keys.kind(kind), self.keys.source(source), self.keys.own_once(source)

    # --- read

    async def head(self) -> Head:
        """The newest event; START for an empty chain."""
        async with self._reader.asking() as redis:
            newest = await redis.execute_command("XREVRANGE", self.keys.events, "+", "-", "COUNT", 1)
        return head_of(newest)

    async def get(self, event_id: int) -> Event | None:
        events = (await self.page(event_id - 1, upto=event_id, count=1)).unbroken()
        return events[0] if events else None

    async def page(self, after: int, *, upto: int | None = None, count: int) -> Page:
        """Up to `count` events in order, from the one behind the cursor `after` to `upto`."""
        # From the very first id behind event `after`, so that an entry squeezed in between is seen as well.
        start, end = b"(%d-0" % after, b"+" if upto is None else b"%d" % upto
        async with self._reader.asking() as redis:
            return page_of(await redis.execute_command("XRANGE", self.keys.events, start, end, "COUNT", count))

    async def pick(self, event_ids: Sequence[int]) -> list[Event]:
        """The events of these ids, in this order; one that is not there is left out."""
        # One command and one reply: an XREAD that names the stream once for each event.
        names = [self.keys.events] * len(event_ids)
        before = [b"%d-%d" % (event_id - 1, LAST_SEQUENCE) for event_id in event_ids]
        async with self._reader.asking() as redis:
            reply = await redis.execute_command("XREAD", "COUNT", 1, "STREAMS", *names, *before)
        page = page_of([entries[0] for _, entries in reply or []])
        # Where an event is missing the one after it came instead.
        wanted = set(event_ids)
        asked_for = [event for event in page.events if event.event_id in wanted]
        found = {event.event_id: event for event in Page(asked_for, page.foreign).unbroken()}
        return [found[event_id] for event_id in event_ids if event_id in found]

    async def wait(self, after: bytes, *, count: int, block_s: float) -> Page:
        """Up to `count` events behind the entry `after`, on the tail's own connection; waits until there is one."""
        command = ("XREAD", "COUNT", count, "BLOCK", int(block_s * 1000), "STREAMS", self.keys.events, after)
        with reaching():
            # A half-open connection never answers; redis-py closes it when the wait is cancelled.
            async with asyncio.timeout(block_s + READ_TIMEOUT_S):
                reply = await self._clients.tail.execute_command(*command)
        return page_of(reply[0][1]) if reply else Page([], None)

    async def end(self, after: int, *, count: int, indexes: Sequence[bytes] = ()) -> End:
        """Read up to `count` events behind `after`, the highest id ever written and how indexes end, in one step."""
        async with self._reader.asking() as redis:
            entries, last_id, about = await scripts.read_end(redis, self.keys.events, indexes, after=after, count=count)
        written = int(last_id.partition(b"-")[0] or 0)
        found = [
            (length, self.indexes.event_id(key, newest) if newest else 0)
            for key, (length, newest) in zip(indexes, about, strict=True)
        ]
        return End(page_of(entries), written, found)

    # --- the server behind it

    @property
    def where(self) -> str:
        """The address of the Redis, without its passwords."""
        return self._clients.shown

    async def follow_owner(self) -> bool:
        """Ask the sentinels or the cluster who takes the chain's writes now, and leave every other server.

        Returns whether a connection led to another one. An address that names its server has nobody to ask: False.
        """
        owner = self._clients.owner
        if owner is None:
            return False
        async with reading():
            node = await owner.locate()
            # First, and whole: a call that came meanwhile would connect the same line anew, and what it carried
            # to the old server would be taken for written to the new one.
            astray = self._appends.leads_to not in (None, node)
            if astray:
                await self._appends.give_up()
            return await self._clients.leave_all_but(node) or astray

    async def facts(self) -> dict[str, str]:
        """What the Redis says of itself: INFO's fields, and the settings that durability depends on.

        A setting that this user may not read is left out.
        """
        async with self._reader.asking() as redis:
            return await facts_of(lambda command: redis.execute_command(*command))

    async def runs_scripts(self) -> bool:
        """Whether Redis runs our Lua and it computes SHA-256 right."""
        async with self._reader.asking() as redis:
            return await scripts.probe(redis)

    async def replicas_hold(self, ack: Ack) -> int:
        """How many replicas hold everything that was written before this call."""
        with reaching():
            # WAIT speaks of the writes of its own connection; this one comes after all that count.
            _, line = await self._appends.call(self._fence)
        return await self._replicas_with(ack, line)

    async def _replicas_with(self, ack: Ack, line: Line) -> int:
        """How many replicas hold what was written on the line. Whatever goes wrong here, it is written."""
        try:
            with reaching():
                async with asyncio.timeout(REPLICAS_TIMEOUT_MS / 1000 + READ_TIMEOUT_S):
                    return await scripts.wait_for_replicas(self._appends, ack, REPLICAS_TIMEOUT_MS, on=line)
        except Unreachable as error:
            detail = f"written, but how many replicas hold it is not known: {error}"
            raise Unreachable(detail, in_doubt=True, reason=error.reason) from error

    async def dry_run(self, promised: Head = NOTHING) -> Head:
        """Go the way of an append without writing anything; return the head.

        Raises Unreachable or ChainBroken, as an append would now.
        """
        with reaching():
            return await scripts.dry_run(
                self._appends, self.keys.events, self.keys.time, self.keys.batch(b"probe"), promised=promised
            )

    @property
    def _fence(self) -> Command:
        """A write without meaning, to wait for."""
        return ("SET", self.keys.batch(b"fence"), b"", "PX", 60_000)

    async def facts_of_writer(self, *, fsync: bool = False) -> dict[str, str]:
        """Return what the Redis that takes appends says of itself now: see `facts`.

        With `fsync`, `aof_synced` is "no" where it does not sync what is written now. INFO does not tell: after
        `CONFIG SET appendonly yes`, and on a replica after its first copy, nothing that is written survives a crash
        until the first rewrite of the file is done.
        """
        with reaching():
            facts = await self._appends.facts()
            if fsync and is_rewriting(facts) and not await scripts.syncs(self._appends, self._fence):
                facts["aof_synced"] = "no"
            return facts

    def admit_writers(self, admit: Callable[[Mapping[str, str]], None]) -> None:
        """Show the facts of each server that is to take appends to `admit`, which raises where it must not."""
        self._appends.admit = admit

    async def type_of(self, key: bytes) -> str:
        """What Redis holds at the key: stream, string, none …"""
        async with self._reader.asking() as redis:
            return _text(await redis.type(key))

    async def now_ms(self) -> int:
        """The clock of the Redis, as Unix time in milliseconds."""
        with reaching():
            seconds, microseconds = await self._clients.read.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
