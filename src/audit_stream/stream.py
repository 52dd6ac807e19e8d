"""The chain on Redis. Every Redis command but the scripts' stands in this file.

The events stream alone is the truth; the index streams beside it can be rebuilt from it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple, cast

from redis.exceptions import RedisError, ResponseError, WatchError

from audit_stream import scripts
from audit_stream.chain import START, Event, Head, quoted
from audit_stream.connection import READ_TIMEOUT_S, Clients, connect, reaching, reading
from audit_stream.errors import ChainBroken, Unreachable
from audit_stream.event import Draft, is_readable
from audit_stream.facts import facts_of, is_rewriting
from audit_stream.pipelined import Command, Line, Pipelined
from audit_stream.scripts import Appended, Landed, Linked, Moved, Seen
from audit_stream.settings import FSYNC, Ack
from audit_stream.tally import Tally

FIELDS = [b"timestamp", b"kind", b"source", b"payload", b"prev_hash", b"hash"]
"""Of an entry of the events stream, in this order."""

LAST_SEQUENCE = 2**64 - 1
"""The id behind every other that begins with the same number ends so."""

REPLICAS_TIMEOUT_MS = 1000
RUN_GAP = 8
"""Commit times of events so near to each other are read in one go, those between included."""
VERDICT_BYTES = 4096
"""No verdict is longer."""

NOTHING = Head(0, b"")
"""No belief, for the script to hash; no promise given yet."""


class Keys(NamedTuple):
    """The keys of one chain. One hash tag, so one slot in a cluster."""

    chain: str

    @property
    def events(self) -> bytes:
        return b"{%b}:events" % self.chain.encode()

    @property
    def time(self) -> bytes:
        return b"{%b}:time" % self.chain.encode()

    def kind(self, kind: bytes) -> bytes:
        return b"{%b}:kind:%b" % (self.chain.encode(), kind)

    def source(self, source: bytes) -> bytes:
        return b"{%b}:source:%b" % (self.chain.encode(), source)

    def once(self, key: bytes) -> bytes:
        return b"{%b}:once:%b" % (self.chain.encode(), key)

    def batch(self, token: bytes) -> bytes:
        """Names a batch that the script hashes, so that a lost reply can be settled."""
        return b"{%b}:batch:%b" % (self.chain.encode(), token)

    @property
    def verifier(self) -> bytes:
        """Names the server that verifies in the background."""
        return b"{%b}:verifier" % self.chain.encode()

    @property
    def verdict(self) -> bytes:
        """The last verdict of any server, so that a known break outlives them all."""
        return b"{%b}:verdict" % self.chain.encode()

    def rebuilt(self, token: bytes, key: bytes) -> bytes:
        """Where the index that is to stand at `key` grows until it is whole."""
        return b"{%b}:rebuilt:%b:%b" % (self.chain.encode(), token, key.partition(b"}:")[2])


class Page(NamedTuple):
    events: list[Event]
    """Up to the first entry that is not ours."""
    foreign: ChainBroken | None
    """That entry, where there is one."""
    last_entry: bytes = b""
    """Id of the last entry read, ours or not; nothing on an empty page."""

    def unbroken(self) -> list[Event]:
        """The events; raises ChainBroken when an entry among them is not ours, or cannot be shown as JSON."""
        for event in self.events:
            if not is_readable(event):
                raise ChainBroken(f"event #{event.event_id} is damaged: its fields are no text", at=event.event_id)
        if self.foreign:
            raise self.foreign
        return self.events


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

    def __init__(self, clients: Clients, chain: str, tally: Tally | None = None) -> None:
        self._clients = clients
        self._write, self._read, self._tail = clients.write, clients.read, clients.tail
        self._appends = Pipelined(self._write)
        self._tally = tally or Tally()
        self.keys = Keys(chain)
        self._last_time = (0, b"0-0")
        """The event whose commit time was read last, and its entry: who reads on needs no search."""
        self._link_keys = lru_cache(maxsize=8192)(self._make_link_keys)

    @classmethod
    def at(cls, url: str, chain: str = "audit", tally: Tally | None = None) -> "Stream":
        return cls(connect(url, chain), chain, tally)

    async def close(self) -> None:
        for client in (self._tail, self._write, self._read):
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
            text, kind_key, source_key = self._link_keys(draft.kind, draft.source)
            once_key = self.keys.once(draft.once) if draft.once else b""
            batch.append(Linked(*draft[:4], text, offered, kind_key, source_key, once_key))
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

    def _make_link_keys(self, kind: bytes, source: bytes) -> tuple[bytes, bytes, bytes]:
        # What Lua would have to escape, it is given escaped: it never encodes JSON.
        text = quoted(source)
        return b"" if text == b'"%b"' % source else text, self.keys.kind(kind), self.keys.source(source)

    # --- read

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        began = perf_counter()
        async with reading():
            yield
        self._tally.redis_read_seconds.observe(perf_counter() - began)

    async def head(self) -> Head:
        """The newest event; START for an empty chain."""
        async with self._reading():
            reply = await self._read.execute_command("XREVRANGE", self.keys.events, "+", "-", "COUNT", 1)
        events = _page(reply).unbroken()
        return Head(events[0].event_id, events[0].hash) if events else START

    async def get(self, event_id: int) -> Event | None:
        events = (await self.page(event_id - 1, upto=event_id, count=1)).unbroken()
        return events[0] if events else None

    async def page(self, after: int, *, upto: int | None = None, count: int) -> Page:
        """Up to `count` events in order, from the one behind the cursor `after` to `upto`."""
        # From the very first id behind event `after`, so that an entry squeezed in between is seen as well.
        start, end = b"(%d-0" % after, b"+" if upto is None else b"%d" % upto
        async with self._reading():
            return _page(await self._read.execute_command("XRANGE", self.keys.events, start, end, "COUNT", count))

    async def pick(self, event_ids: Sequence[int]) -> list[Event]:
        """The events of these ids, in this order; one that is not there is left out."""
        found = await self._pick_at_once(event_ids)
        # Not there: or named in vain, for a server that takes the repeated name for one (fakeredis does).
        for event_id in [event_id for event_id in event_ids if event_id not in found]:
            if event := await self.get(event_id):
                found[event_id] = event
        return [found[event_id] for event_id in event_ids if event_id in found]

    async def _pick_at_once(self, event_ids: Sequence[int]) -> dict[int, Event]:
        """In one command and one reply: an XREAD that names the stream once for each event."""
        names = [self.keys.events] * len(event_ids)
        before = [b"%d-%d" % (event_id - 1, LAST_SEQUENCE) for event_id in event_ids]
        async with self._reading():
            reply = await self._read.execute_command("XREAD", "COUNT", 1, "STREAMS", *names, *before)
        page = _page([entries[0] for _, entries in reply or []])
        # Where an event is missing the one behind it came instead.
        wanted = set(event_ids)
        asked_for = [event for event in page.events if event.event_id in wanted]
        return {event.event_id: event for event in Page(asked_for, page.foreign).unbroken()}

    async def wait(self, after: bytes, *, count: int, block_s: float) -> Page:
        """Up to `count` events behind the entry `after`, on the tail's own connection; waits until there is one."""
        command = ("XREAD", "COUNT", count, "BLOCK", int(block_s * 1000), "STREAMS", self.keys.events, after)
        with reaching():
            # A half-open connection never answers; redis-py closes it when the wait is cancelled.
            async with asyncio.timeout(block_s + READ_TIMEOUT_S):
                reply = await self._tail.execute_command(*command)
        return _page(reply[0][1]) if reply else Page([], None)

    async def end(self, after: int, *, count: int, indexes: Sequence[bytes] = ()) -> End:
        """Read up to `count` events behind `after`, the highest id ever written and how indexes end, in one step."""
        async with self._reading():
            entries, last_id, about = await scripts.read_end(
                self._read, self.keys.events, indexes, after=after, count=count
            )
        written = int(last_id.partition(b"-")[0] or 0)
        found = [
            (length, self._event_id(key, newest) if newest else 0)
            for key, (length, newest) in zip(indexes, about, strict=True)
        ]
        return End(_page(entries), written, found)

    # --- indexes

    def _event_id(self, key: bytes, entry_id: bytes) -> int:
        ms_or_id, _, id_or_zero = entry_id.partition(b"-")
        return int(id_or_zero if key == self.keys.time else ms_or_id)

    async def index(
        self, key: bytes, *, low: int, high: int | None, count: int, newest_first: bool = False
    ) -> list[int]:
        """Up to `count` event_ids from the index at `key`, between `low` and `high`, both included."""
        first, last = b"%d" % max(low, 0), b"+" if high is None else b"%d" % max(high, 0)
        command, bounds = ("XREVRANGE", (last, first)) if newest_first else ("XRANGE", (first, last))
        async with self._reading():
            reply = await self._read.execute_command(command, key, *bounds, "COUNT", count)
        return [int(entry_id.partition(b"-")[0]) for entry_id, _ in reply]

    async def in_index(self, key: bytes, event_ids: Sequence[int]) -> list[int]:
        """Those of the ids that the index at `key` holds."""
        async with self._reading(), self._read.pipeline(transaction=False) as pipeline:
            for event_id in event_ids:
                pipeline.execute_command("XRANGE", key, b"%d-0" % event_id, b"%d-0" % event_id)
            replies = await pipeline.execute()
        return [event_id for event_id, reply in zip(event_ids, replies, strict=True) if reply]

    async def lengths(self, keys: Sequence[bytes]) -> list[int]:
        """How many entries each of these streams holds."""
        async with self._reading(), self._read.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.xlen(key)
            return list(await pipeline.execute())

    async def first_at(self, ms: int) -> int | None:
        """The first event committed at or after this Unix time in milliseconds."""
        async with self._reading():
            reply = await self._read.execute_command("XRANGE", self.keys.time, b"%d" % max(ms, 0), "+", "COUNT", 1)
        return int(reply[0][0].partition(b"-")[2]) if reply else None

    async def last_before(self, ms: int) -> int | None:
        """The last event committed before this Unix time in milliseconds."""
        bound = b"(%d-0" % max(ms, 1)
        async with self._reading():
            reply = await self._read.execute_command("XREVRANGE", self.keys.time, bound, "-", "COUNT", 1)
        return int(reply[0][0].partition(b"-")[2]) if reply else None

    async def time_index(self, after: bytes, *, count: int) -> list[tuple[bytes, int]]:
        """Up to `count` (entry id, event_id) of the index by commit time, behind the entry `after`."""
        async with self._reading():
            reply = await self._read.execute_command("XRANGE", self.keys.time, b"(" + after, "+", "COUNT", count)
        return [(entry_id, int(entry_id.partition(b"-")[2])) for entry_id, _ in reply]

    async def commit_times(self, event_ids: Sequence[int]) -> list[int | None]:
        """When each of these events, ascending, was committed, as Unix time in milliseconds.

        None for an event that the index by commit time does not hold, or holds where a search does not come to.
        """
        runs: list[list[int]] = []
        for event_id in event_ids:
            if runs and event_id <= runs[-1][1] + RUN_GAP:
                runs[-1][1] = event_id
            else:
                runs.append([event_id, event_id])
        found: dict[int, int] = {}
        try:
            if len(runs) == 1 and runs[0][0] == self._last_time[0] + 1:
                found = await self._times_from({runs[0][0]: b"(" + self._last_time[1]}, runs)
            if event_ids and event_ids[0] not in found:
                found = await self._times_from(await self._search_times([first for first, _ in runs]), runs)
        except ChainBroken:
            pass  # the key is no stream: the events are the truth, and can be read without it
        return [found.get(event_id) for event_id in event_ids]

    async def _times_from(self, places: dict[int, bytes], runs: Sequence[Sequence[int]]) -> dict[int, int]:
        """The times in the index of each run of events, read from the place where its first is or would be."""
        found: dict[int, int] = {}
        there = [(places[first], last - first + 1) for first, last in runs if first in places]
        async with self._reading(), self._read.pipeline(transaction=False) as pipeline:
            for place, count in there:
                pipeline.execute_command("XRANGE", self.keys.time, place, "+", "COUNT", count)
            for entries in await pipeline.execute():
                for entry_id, _ in entries:
                    ms, _, event_id = entry_id.partition(b"-")
                    found.setdefault(int(event_id), int(ms))
                if entries:
                    self._last_time = int(event_id), entry_id
        return found

    async def _search_times(self, event_ids: Sequence[int]) -> dict[int, bytes]:
        """Where the time index holds each event, or the next one that it does: a search by halves, for all at once.

        Along the index both the time and the event_id grow, and its entries can be asked for by time alone.
        """
        places: dict[int, bytes] = {}
        async with self._reading(), self._read.pipeline(transaction=False) as pipeline:
            for command, bounds in (("XRANGE", ("-", "+")), ("XREVRANGE", ("+", "-"))):
                pipeline.execute_command(command, self.keys.time, *bounds, "COUNT", 1)
            ends = [int(entries[0][0].partition(b"-")[0]) for entries in await pipeline.execute() if entries]
        spans = dict.fromkeys(event_ids, (ends[0], ends[1])) if ends else {}
        while spans:
            async with self._reading(), self._read.pipeline(transaction=False) as pipeline:
                for event_id, (low, high) in spans.items():
                    place = b"%d-%d" % ((low + high) // 2, event_id)
                    pipeline.execute_command("XRANGE", self.keys.time, place, "+", "COUNT", 1)
                replies = await pipeline.execute()
            for (event_id, (low, high)), entries in zip(list(spans.items()), replies, strict=True):
                ms, indexed = map(int, entries[0][0].split(b"-")) if entries else (0, LAST_SEQUENCE)
                if indexed < event_id:
                    low = ms
                else:
                    high = (low + high) // 2 - 1
                    if entries:
                        places[event_id] = entries[0][0]
                spans[event_id] = low, high
                if indexed == event_id or low > high:
                    del spans[event_id]
        return places

    async def index_keys(self) -> list[bytes]:
        """The keys of every kind and source index that is there."""
        with reaching():
            # No node of a cluster says that it is the wrong one for SCAN; for a key it does.
            await self._read.exists(self.keys.events)
            pattern = b"{%b}:" % self.keys.chain.encode()
            return [
                key
                async for key in self._read.scan_iter(match=_literally(pattern) + b"*", count=1000)
                if key.startswith((pattern + b"kind:", pattern + b"source:"))
            ]

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
        async with self._reading():
            return await facts_of(lambda command: self._read.execute_command(*command))

    async def runs_scripts(self) -> bool:
        """Whether Redis runs our Lua and it computes SHA-256 right."""
        async with self._reading():
            return await scripts.probe(self._read)

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
            ready = await scripts.dry_run(
                self._appends, self.keys.events, self.keys.time, self.keys.batch(b"probe"), promised=promised
            )
        return ready.head

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
        async with self._reading():
            return _text(await self._read.type(key))

    async def now_ms(self) -> int:
        """The clock of the Redis, as Unix time in milliseconds."""
        with reaching():
            seconds, microseconds = await self._read.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    # --- whose turn it is to verify

    async def take_lease(self, token: bytes, lease_ms: int) -> bool:
        """Take the verifier's lease, or keep it for another `lease_ms`; False while another token holds it."""
        key = self.keys.verifier
        async with self._reading():
            if await self._read.set(key, token, nx=True, px=lease_ms):
                return True
            return await self._if_held(token, lambda pipeline: pipeline.pexpire(key, lease_ms))

    async def let_go(self, token: bytes) -> bool:
        """Give the lease back, so that another need not wait until it runs out."""
        async with self._reading():
            return await self._if_held(token, lambda pipeline: pipeline.unlink(self.keys.verifier))

    async def _if_held(self, token: bytes, change: Callable[[Any], object]) -> bool:
        async with self._read.pipeline(transaction=True) as pipeline:
            await pipeline.watch(self.keys.verifier)
            if await cast("Awaitable[bytes | None]", pipeline.get(self.keys.verifier)) != token:
                return False
            pipeline.multi()
            change(pipeline)
            try:
                await pipeline.execute()
            except WatchError:
                return False  # it ran out in this moment
        return True

    # --- what was last found

    async def verdict(self) -> bytes:
        """The text at the key of the last verdict, cut to VERDICT_BYTES; empty when there is none."""
        async with self._reading():
            return await _short_text(self._read, self.keys.verdict)

    async def exchange_verdict(self, decide: Callable[[bytes], bytes | None]) -> bool:
        """Give `decide` that text and put what it returns in its place; False when another server was first."""
        key = self.keys.verdict
        async with self._reading(), self._read.pipeline(transaction=True) as pipeline:
            await pipeline.watch(key)
            text = decide(await _short_text(pipeline, key))
            if text is None:
                return True
            pipeline.multi()
            pipeline.set(key, text)
            try:
                await pipeline.execute()
            except WatchError:
                return False
        return True

    # --- rebuilding the indexes

    async def fill_indexes(self, entries: Sequence[tuple[bytes, bytes]], *, kept_s: int) -> None:
        """Add (key, entry id) to indexes that nobody reads yet; Redis forgets these after `kept_s` without a call."""
        with reaching():
            async with self._write.pipeline(transaction=False) as pipeline:
                for key, entry_id in entries:
                    pipeline.execute_command("XADD", key, entry_id, b"", b"")
                for key in {key for key, _ in entries}:
                    pipeline.expire(key, kept_s)
                await pipeline.execute()

    async def swap_indexes(
        self,
        after: int,
        times_after: bytes | None,
        count: int,
        finish: Callable[[list[Event], list[tuple[bytes, int]]], "Swap | None"],
    ) -> bool:
        """Put new indexes in place in one step, unless the chain moves meanwhile; return whether that was done.

        `finish` is given up to `count` events behind `after`, and the entries of the time index behind
        `times_after`; it says what is still to be added and moved, or that it is not ready.
        """
        with reaching():
            async with self._write.pipeline(transaction=True) as pipeline:
                await pipeline.watch(self.keys.events)
                # Having watched, a pipeline sends each command at once, until `multi`.
                ask = cast("Callable[..., Awaitable[list[Any]]]", pipeline.execute_command)
                events = await ask("XRANGE", self.keys.events, b"(%d-0" % after, "+", "COUNT", count)
                times = await ask("XRANGE", self.keys.time, b"(" + times_after, "+") if times_after else []
                swap = finish(
                    _page(events).unbroken(),
                    [(entry_id, int(entry_id.partition(b"-")[2])) for entry_id, _ in times],
                )
                if swap is None:
                    return False
                pipeline.multi()
                for key, entry_id in swap.entries:
                    pipeline.execute_command("XADD", key, entry_id, b"", b"")
                for key in swap.drop:
                    pipeline.unlink(key)
                for new, key in swap.moves:
                    pipeline.unlink(key)
                    pipeline.rename(new, key)
                    pipeline.persist(key)
                try:
                    await pipeline.execute()
                except WatchError:
                    return False
        return True

    async def drop(self, keys: Sequence[bytes]) -> None:
        """Forget indexes."""
        with reaching():
            for start in range(0, len(keys), 1000):
                await self._write.unlink(*keys[start : start + 1000])

    # --- after a loss

    async def forget_lost_keys(self) -> int:
        """Forget idempotency keys that name an event behind the head; return how many there were.

        Their events are lost, and a producer that sends one again is to have it stored.
        """
        count = 0
        with reaching():
            pattern = _literally(self.keys.once(b"")) + b"*"
            names: list[bytes] = []
            async for name in self._read.scan_iter(match=pattern, count=1000):
                names.append(name)
                if len(names) == 1000:
                    count += await self._forget_lost(names)
                    names = []
            return count + await self._forget_lost(names)

    async def _forget_lost(self, names: Sequence[bytes]) -> int:
        values = await self._read.mget(names) if names else []
        # Asked after the keys: a key is written with its event, so one that names a later event has lost it.
        head = (await self.head()).event_id
        lost = [name for name, value in zip(names, values, strict=True) if value and int(value) > head]
        if lost:
            await self._write.unlink(*lost)
        return len(lost)

    async def end_at(self, head: Head) -> None:
        """Have Redis give the id behind `head` next, whatever ids were given before to events that are gone.

        Raises ChainBroken when the chain does not end with this event, Unreachable when it moves meanwhile.
        """
        async with self._reading(), self._write.pipeline(transaction=True) as pipeline:
            await pipeline.watch(self.keys.events)
            ask = cast("Callable[..., Awaitable[list[Any]]]", pipeline.execute_command)
            last = _page(await ask("XREVRANGE", self.keys.events, "+", "-", "COUNT", 1)).unbroken()
            if (Head(last[0].event_id, last[0].hash) if last else START) != head:
                raise ChainBroken(f"the chain no longer ends with event #{head.event_id}", at=head.event_id)
            info = await self._read.xinfo_stream(self.keys.events)
            pipeline.multi()
            if last:
                last_id = b"%d-0" % head.event_id
                if "max-deleted-entry-id" in info:
                    # Valkey does not go below an id that XDEL has removed, so that mark is set back first.
                    bound = (info["last-generated-id"], "ENTRIESADDED", head.event_id, "MAXDELETEDID", last_id)
                    pipeline.execute_command("XSETID", self.keys.events, *bound)
                pipeline.execute_command("XSETID", self.keys.events, last_id)
            else:
                pipeline.unlink(self.keys.events)
            try:
                await pipeline.execute()
            except WatchError as error:
                raise Unreachable("somebody else writes to this chain; run the command again") from error


class Swap(NamedTuple):
    """The last step of rebuilding the indexes."""

    entries: Sequence[tuple[bytes, bytes]]
    """(key, entry id) to add to the new indexes first."""
    moves: Sequence[tuple[bytes, bytes]]
    """(where the new index grew, the key it belongs to)."""
    drop: Sequence[bytes]
    """Old indexes that have no successor."""


async def _short_text(client: Any, key: bytes) -> bytes:
    try:
        # Not GET: anyone who can write to Redis decides how long it is.
        text: bytes = await client.getrange(key, 0, VERDICT_BYTES - 1)
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return b"(not a string)"
    return text


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _literally(pattern: bytes) -> bytes:
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]\\" else bytes([c]) for c in pattern)


_new = tuple.__new__  # a NamedTuple's own constructor is Python, and takes as long as half of this loop


def _page(entries: list[Any]) -> Page:
    events: list[Event] = []
    for entry_id, fields in entries:
        number, _, sequence = entry_id.partition(b"-")
        if sequence != b"0" or fields[::2] != FIELDS:
            what = "its fields are not an event's" if sequence == b"0" else "its id is not an event's"
            foreign = ChainBroken(f"entry {entry_id.decode()} is not an event: {what}", at=int(number))
            return Page(events, foreign, entry_id)
        _, timestamp, _, kind, _, source, _, payload, _, prev_hash, _, hash_ = fields
        events.append(_new(Event, (int(number), timestamp, kind, source, payload, prev_hash, hash_)))
    return Page(events, None, entries[-1][0] if entries else b"")
