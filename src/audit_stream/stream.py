"""The chain on Redis. Every Redis command but the scripts' stands in this file.

The events stream alone is the truth; the index streams beside it can be rebuilt from it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from time import perf_counter
from typing import Any, NamedTuple, cast

from redis.exceptions import RedisError, ResponseError, WatchError

from audit_stream import scripts
from audit_stream.chain import START, Event, Head, quoted
from audit_stream.connection import READ_TIMEOUT_S, Clients, connect, reaching, reading
from audit_stream.errors import ChainBroken
from audit_stream.event import Draft, is_readable
from audit_stream.pipelined import Pipelined
from audit_stream.scripts import Appended, Landed, Linked, Moved, Seen
from audit_stream.tally import Tally

FIELDS = [b"timestamp", b"kind", b"source", b"payload", b"prev_hash", b"hash"]
"""Of an entry of the events stream, in this order."""

LAST_SEQUENCE = 2**64 - 1
"""The id behind every other that begins with the same number ends so."""

RUN_GAP = 8
"""Commit times of events so near to each other are read in one go, those between included."""

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
        self._write, self._read, self._tail = clients
        self._appends = Pipelined(self._write)
        self._tally = tally or Tally()
        self.keys = Keys(chain)
        self._last_time = (0, b"0-0")
        """The event whose commit time was read last, and its entry: who reads on needs no search."""
        self._link_keys = lru_cache(maxsize=8192)(self._make_link_keys)

    @classmethod
    def at(cls, url: str, chain: str = "audit", tally: Tally | None = None) -> "Stream":
        return cls(connect(url), chain, tally)

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
        replicas: int,
        replicas_timeout_ms: int,
        committed: Sequence[int] = (),
    ) -> Appended | Moved | Seen | Landed:
        """Link the drafts as one batch: with hashes offered for the head `believed`, or hashed by the script.

        `committed`, Unix milliseconds, one for each draft, stands for now: for what is restored.
        Refused with ChainBroken when the chain does not reach to `promised`, or holds another event there.
        """
        batch = []
        for draft, offered in zip(drafts, hashes or [b""] * len(drafts), strict=True):
            text, kind_key, source_key = self._link_keys(draft.kind, draft.source)
            once_key = self.keys.once(draft.once) if draft.once else b""
            batch.append(Linked(*draft[:4], text, offered, kind_key, source_key, once_key))
        began = perf_counter()
        with reaching():
            reply = await scripts.append(
                self._appends,
                self.keys.events,
                self.keys.time,
                self.keys.batch(token),
                batch,
                believed=believed,
                promised=promised,
                ttl_ms=ttl_ms,
                committed=committed,
                replicas=replicas,
                replicas_timeout_ms=replicas_timeout_ms,
            )
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
            async with self._read.pipeline(transaction=True) as pipeline:
                pipeline.execute_command("XRANGE", self.keys.events, b"(%d-0" % after, "+", "COUNT", count)
                pipeline.xinfo_stream(self.keys.events)
                for key in indexes:
                    pipeline.execute_command("XLEN", key)
                    pipeline.execute_command("XREVRANGE", key, "+", "-", "COUNT", 1)
                entries, info, *about = await pipeline.execute(raise_on_error=False)
            if isinstance(entries, ResponseError):
                raise entries
        # Of a stream that is not there, XINFO is an error: then nothing was ever written.
        written = 0 if isinstance(info, ResponseError) else int(info["last-generated-id"].partition(b"-")[0])
        found = [(-1, 0) if isinstance(n, ResponseError) else (n, 0) for n in about[::2]]
        for place, newest in enumerate(about[1::2]):
            if newest and not isinstance(newest, ResponseError):
                found[place] = (found[place][0], self._event_id(indexes[place], newest[0][0]))
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
        """How many entries each of these streams holds, all read at once."""
        async with self._reading(), self._read.pipeline(transaction=True) as pipeline:
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
            pattern = b"{%b}:" % self.keys.chain.encode()
            return [
                key
                async for key in self._read.scan_iter(match=_literally(pattern) + b"*", count=1000)
                if key.startswith((pattern + b"kind:", pattern + b"source:"))
            ]

    # --- the server behind it

    async def facts(self) -> dict[str, str]:
        """What the Redis says of itself: INFO, and those settings that a promise depends on.

        A setting that this user may not read is left out.
        """
        async with self._reading():
            info = await self._read.info()
            facts = {name: str(value) for name, value in info.items()}
            for setting in _SETTINGS:
                try:
                    reply = await self._read.config_get(setting)
                except ResponseError:
                    continue
                facts.update({_text(name): _text(value) for name, value in reply.items()})
        return facts

    async def runs_scripts(self) -> bool:
        """Whether Redis runs our Lua and it computes SHA-256 right."""
        async with self._reading():
            return await scripts.probe(self._read)

    async def replicas_hold(self, replicas: int, timeout_ms: int) -> int:
        """How many replicas hold everything that was written before this call."""
        with reaching():
            async with asyncio.timeout(timeout_ms / 1000 + READ_TIMEOUT_S), self._write.client() as connection:
                # WAIT speaks of the writes of its own connection; this one is behind all that count.
                await connection.set(self.keys.batch(b"fence"), b"", px=60_000)
                return int(await connection.execute_command("WAIT", replicas, timeout_ms))

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


class Swap(NamedTuple):
    """The last step of rebuilding the indexes."""

    entries: Sequence[tuple[bytes, bytes]]
    """(key, entry id) to add to the new indexes first."""
    moves: Sequence[tuple[bytes, bytes]]
    """(where the new index grew, the key it belongs to)."""
    drop: Sequence[bytes]
    """Old indexes that have no successor."""


_SETTINGS = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy")


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
