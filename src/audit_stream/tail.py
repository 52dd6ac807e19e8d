"""Following live: one blocking XREAD per process, many subscribers.

Each event is encoded once, into frames that all subscribers share. A subscriber owns nothing but its
cursor. Behind the frames kept in memory it reads from Redis; at their front it waits. So there is no
moment of switching over at which an event could be missed or come twice.
"""

import asyncio
import itertools
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from audit_stream.chain import Event, Head
from audit_stream.connection import end
from audit_stream.entries import Page
from audit_stream.errors import ChainBroken, Unreachable
from audit_stream.event import is_readable, to_json
from audit_stream.query import Filter, fetch, select
from audit_stream.stream import Stream
from audit_stream.tally import Tally

KEPT_EVENTS = 8 * 1024
KEPT_BYTES = 16 * 1024 * 1024
PRIMED_EVENTS = 256
"""The newest ones are read at the start: whoever reconnects a moment later is answered from memory."""
CHUNK_EVENTS = 256
CHUNK_BYTES = 256 * 1024
"""What a subscriber is sent at once ends at either bound: a reader that does not read holds no more than that."""
SHARED_CHUNKS = 64
REPLAY_PAGE = 2_000
HEARTBEAT_S = 15.0
BLOCK_S = 2.0
RECONNECT_S = 0.1
RETRY_MS = 2_000
LINGER_S = 10.0
"""Reading goes on for so long when the last one has left: most come back at once."""
WAKE_S = 50e-6
FRAME_S = 0.8e-6
"""Twice what it costs to wake a subscriber, and to send it one frame: following takes half of the process at most."""
LANES = 16
"""Subscribers are woken a lane at a time, and in between the server does what else there is to do."""
LATEST_S = 0.5
"""A subscriber is told this late at the latest, however many they are and however much is appended."""

log = logging.getLogger(__name__)


class Frame(NamedTuple):
    named: bytes
    plain: bytes


def frame(event: Event) -> Frame:
    """Encode an event as a server-sent event (WHATWG HTML §9.2)."""
    plain = b"id: %d\ndata: %b\n\n" % (event.event_id, to_json(event))
    return Frame(b"event: %b\n%b" % (event.kind, plain), plain)


class View(NamedTuple):
    """What a subscriber wants to see."""

    kind: str | None = None
    source: str | None = None
    named: bool = True
    """With an `event:` line; without one, a browser hands the frame to `onmessage`."""

    def shows(self, event: Event) -> bool:
        return (self.kind is None or self.kind.encode() == event.kind) and (
            self.source is None or self.source.encode() == event.source
        )

    def of(self, made: Frame) -> bytes:
        return made.named if self.named else made.plain


class Tail:
    """The newest events of one chain, for any number of subscribers. Start it with `async with`."""

    def __init__(self, stream: Stream, *, heartbeat_s: float = HEARTBEAT_S, tally: Tally | None = None) -> None:
        self._stream = stream
        self._tally = tally or Tally()
        self._heartbeat_s = heartbeat_s
        self._events: list[Event] = []
        self._ids: list[int] = []
        self._frames: dict[int, Frame] = {}
        """Encoded when the first subscriber wants them, then shared by all."""
        self._size_bytes = 0
        self._floor = 0
        """Every event behind this id and up to `newest` is in `_events`."""
        self.newest = 0
        self._newest_hash = b""
        self.subscribers = 0
        self._followed = asyncio.Event()
        """Set while there are any: reading for nobody would cost every append a tenth."""
        self.connected = False
        self._beats = 0
        self._lost = 0
        """How often Redis came back with less than it had."""
        self._closing = False
        self._news = [asyncio.Event() for _ in range(LANES)]
        self._lanes_to_wake: deque[int] = deque()
        self._next_lane = itertools.cycle(range(LANES))
        self._woken_at = 0.0
        self._told = 0
        """The newest event when subscribers were last woken."""
        self._waking: asyncio.TimerHandle | None = None
        self._chunks: dict[tuple[int, View], tuple[int, bytes]] = {}

    async def __aenter__(self) -> "Tail":
        await self._begin_at(await self._stream.head())
        self.connected = True
        self._tasks = [asyncio.create_task(self._read(), name="tail"), asyncio.create_task(self._beat(), name="beat")]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await end(*self._tasks)

    def close(self) -> None:
        """End every subscription; they resume elsewhere by id. May be called from a signal handler's callback."""
        self._closing = True
        self._wake()

    # --- the one reader

    async def _read(self) -> None:
        at, current = b"%d-0" % self.newest, True
        while True:
            try:
                # It rests only with all well: a tail that is not connected keeps its replica out of service.
                if self.connected and not self._followed.is_set():
                    await self._followed.wait()
                    current = False
                if not current:
                    at = await self._catch_up(at)
                    current = self.connected = True
                page = await self._stream.wait(at, count=500, block_s=BLOCK_S)
            except Unreachable as error:
                if self.connected:
                    log.warning("the live tail waits: %s", error)
                current = self.connected = False
                await asyncio.sleep(RECONNECT_S)
                continue
            except ChainBroken as error:
                log.error("the live tail waits: %s", error)
                await asyncio.sleep(1)
                continue
            at = page.last_entry or at
            self._publish(_shown(page))

    async def _catch_up(self, at: bytes) -> bytes:
        """Where to read on after a pause in which Redis was away, or nobody followed."""
        head = await self._stream.head()
        kept = head.event_id >= self.newest and await self._still_holds_newest()
        if kept and head.event_id <= self.newest + KEPT_EVENTS:
            return at
        if not kept:
            # Redis came back with less than it had. Nobody may wait for ids that are, or will be, given out again.
            log.error("event #%d was seen here, and is not there any more: open streams are closed", self.newest)
            self._lost += 1
        await self._begin_at(head)
        self._wake()
        return b"%d-0" % self.newest

    async def _begin_at(self, head: Head) -> None:
        """Know the head and the few events before it, and nothing else."""
        floor = max(0, head.event_id - PRIMED_EVENTS)
        page = await self._stream.page(floor, upto=head.event_id, count=PRIMED_EVENTS)
        whole = page.events and page.events[-1].hash == head.hash and len(page.events) == head.event_id - floor
        events = page.events if whole and all(map(is_readable, page.events)) else []
        self._events, self._ids, self._frames = events, [event.event_id for event in events], {}
        self._size_bytes = sum(len(event.payload) for event in events)
        self.newest, self._newest_hash = head
        self._floor = floor if events else self.newest

    async def _still_holds_newest(self) -> bool:
        try:
            event = await self._stream.get(self.newest) if self.newest else None
        except ChainBroken:
            return False
        return self.newest == 0 or (event is not None and event.hash == self._newest_hash)

    def _publish(self, events: list[Event]) -> None:
        if not events:
            return
        self._events += events
        self._ids += [event.event_id for event in events]
        self._size_bytes += sum(len(event.payload) for event in events)
        self.newest, self._newest_hash = events[-1].event_id, events[-1].hash
        if len(self._ids) > KEPT_EVENTS or self._size_bytes > KEPT_BYTES:
            self._forget()
        self._wake_in_time()

    def _forget(self) -> None:
        """Drop the older half, or as much more as brings the bytes below the limit."""
        drop = len(self._ids) // 2
        size_bytes = sum(len(event.payload) for event in self._events[drop:])
        while size_bytes > KEPT_BYTES and drop < len(self._ids) - 1:
            size_bytes -= len(self._events[drop].payload)
            drop += 1
        if drop:
            self._floor = self._ids[drop - 1]
            for event_id in self._ids[:drop]:
                self._frames.pop(event_id, None)
            del self._ids[:drop], self._events[:drop]
            self._size_bytes = size_bytes

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            self._beats += 1
            self._wake()

    def _wake_in_time(self) -> None:
        """Wake now; or later, when many were woken a moment ago: they get more at once, and appends go first."""
        if self._waking is None:
            self._wake_when_due()

    def _wake_when_due(self) -> None:
        loop = asyncio.get_running_loop()
        share_s = WAKE_S + FRAME_S * (self.newest - self._told)
        due = self._woken_at + min(self.subscribers * share_s, LATEST_S)
        if loop.time() >= due:
            self._wake()
        else:
            self._waking = loop.call_at(due, self._wake_when_due)

    def _wake(self) -> None:
        if self._waking:
            self._waking.cancel()
            self._waking = None
        self._woken_at, self._told = asyncio.get_running_loop().time(), self.newest
        self._chunks.clear()
        under_way = bool(self._lanes_to_wake)
        self._lanes_to_wake = deque(range(LANES))
        if not under_way:
            self._wake_lane()

    def _wake_lane(self) -> None:
        lane = self._lanes_to_wake.popleft()
        news, self._news[lane] = self._news[lane], asyncio.Event()
        news.set()
        if self._lanes_to_wake:
            asyncio.get_running_loop().call_soon(self._wake_lane)

    def _rest(self) -> None:
        if not self.subscribers:
            self._followed.clear()

    # --- subscribers

    async def follow(self, cursor: int, view: View, *, bare_ids: bool = False) -> AsyncIterator[bytes]:
        """Yield frames of every event behind `cursor`, in order, each once, then live ones as they come.

        Under a filter the cursor moves past events that are not sent. With `bare_ids` the client is told so, by blocks
        of nothing but an id: by the standard they move its Last-Event-ID along and dispatch no event. Not every client
        keeps to that. Without them it resumes from the last event it has seen, to the same effect: the server finds
        what comes after it by the indexes.

        Ends when the server stops, when the reader falls further behind than the frames kept here, or when
        the chain turns out damaged: the client resumes by the last id it has seen, and loses nothing.
        """
        # No blank line: by the standard a block without data dispatches nothing, yet some libraries hand one out for
        # each blank line. So `retry` is part of the first block with data, and a comment is a line of its own.
        yield b"retry: %d\n: audit-stream\n" % RETRY_MS
        lane = next(self._next_lane)
        told, beats, lost, live = cursor, self._beats, self._lost, False
        self._count(1)
        self._followed.set()
        try:
            while not self._closing and lost == self._lost:
                news = self._news[lane]
                if cursor < self._floor:
                    if live:
                        self._tally.count("sse_drops")
                        yield b": too far behind; resume from your last id\n"
                        return
                    try:
                        async for reached, chunk in self._replay(cursor, view):
                            cursor = reached
                            told = cursor if chunk else told
                            yield chunk
                            if self._closing:
                                return
                    except Unreachable:
                        await self._news_or(news, RECONNECT_S)
                    except ChainBroken as error:
                        yield b": %b\n" % str(error).encode()
                        return
                elif cursor < self.newest:
                    cursor, chunk = self._chunk(cursor, view)
                    if chunk:
                        told, live = cursor, True
                        yield chunk
                else:
                    await news.wait()
                if beats != self._beats:
                    beats = self._beats
                    if told < cursor and bare_ids:
                        yield b"id: %d\n\n" % cursor
                        told = cursor
                    else:
                        yield b": heartbeat\n"
        finally:
            self._count(-1)
            if not self.subscribers:
                asyncio.get_running_loop().call_later(LINGER_S, self._rest)

    def _count(self, come_or_gone: int) -> None:
        self.subscribers += come_or_gone
        self._tally.hold("sse_subscribers", self.subscribers)

    async def _replay(self, cursor: int, view: View) -> AsyncIterator[tuple[int, bytes]]:
        upto = self.newest
        wanted = Filter(view.kind, view.source, after=cursor, before=upto + 1, limit=REPLAY_PAGE)
        selection = await select(self._stream, wanted)
        async for events in fetch(self._stream, selection.event_ids):
            cursor = events[-1].event_id
            yield cursor, b"".join(view.of(frame(event)) for event in events)
        yield selection.event_ids[-1] if selection.more else upto, b""

    def _chunk(self, cursor: int, view: View) -> tuple[int, bytes]:
        """The next frames behind the cursor, joined once for all subscribers that stand at the same place."""
        chunk = self._chunks.get((cursor, view))
        if chunk is None:
            start = bisect_right(self._ids, cursor)
            frames: list[bytes] = []
            size_bytes = 0
            for event in self._events[start : start + CHUNK_EVENTS]:
                if view.shows(event):
                    made = view.of(self._frame(event))
                    size_bytes += len(made)
                    if frames and size_bytes > CHUNK_BYTES:
                        break
                    frames.append(made)
                cursor_after = event.event_id
            if len(self._chunks) == SHARED_CHUNKS:
                self._chunks.clear()
            chunk = self._chunks[cursor, view] = (cursor_after, b"".join(frames))
        return chunk

    def _frame(self, event: Event) -> Frame:
        made = self._frames.get(event.event_id)
        if made is None:
            made = self._frames[event.event_id] = frame(event)
        return made

    async def _news_or(self, news: asyncio.Event, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await news.wait()
        except TimeoutError:
            pass


def _shown(page: Page) -> list[Event]:
    """What of a page can be shown. The rest is evidence for verify, and no reason to leave everyone waiting."""
    try:
        return page.unbroken()
    except ChainBroken as error:
        log.error("left out of the live tail: %s", error)
        return [event for event in page.events if is_readable(event)]
