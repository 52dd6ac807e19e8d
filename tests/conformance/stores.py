"""Where the conformance suite runs a chain, and replicas that go wrong on purpose."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple, TypeVar

import redis

from audit_stream.appender import Appender
from audit_stream.chain import Event, verify
from audit_stream.connection import Clients, as_it_came, connect
from audit_stream.errors import Unreachable
from audit_stream.event import Draft, PublishRequest, draft
from audit_stream.keys import Keys
from audit_stream.kinds import BUILT_IN
from audit_stream.settings import FSYNC, Ack, Hashing
from audit_stream.stream import Stream
from audit_stream.submission import Receipt
from audit_stream.verifier import Walk
from tests import fake_redis

StoreName = Literal["redis", "fakeredis"]
S = TypeVar("S", bound=Stream)
KINDS = frozenset(BUILT_IN)


class Store(NamedTuple):
    """A Redis, real or not."""

    name: StoreName
    clients: Callable[[], Clients]
    """New connections, as a replica opens them."""
    raw: redis.Redis
    """For looking, and for doing what nobody should."""


def real_store(url: str) -> Store:
    return Store("redis", lambda: connect(url, "any"), redis.Redis.from_url(url))


def fake_store() -> Store:
    server = fake_redis.FakeServer()

    def client() -> Any:
        made: Any = fake_redis.FakeAsyncRedis(server=server, protocol=2)
        for command in ("XRANGE", "XREVRANGE", "XREAD"):
            made.set_response_callback(command, as_it_came)
        return made

    return Store("fakeredis", lambda: Clients(client(), client(), client()), fake_redis.FakeRedis(server=server))


class Chain:
    """One chain on one store, and the replicas that a test opens on it."""

    def __init__(self, store: Store, name: str, hashing: Hashing) -> None:
        self.store, self.name, self.hashing = store, name, hashing
        self.keys = Keys(name)
        self.raw: Any = store.raw

    @asynccontextmanager
    async def stream(self, kind: type[S]) -> AsyncIterator[S]:
        stream = kind(self.store.clients(), self.name)
        try:
            yield stream
        finally:
            await stream.close()

    @asynccontextmanager
    async def replica(self, stream: Stream | None = None, *, ack: Ack = FSYNC) -> AsyncIterator[Appender]:
        """A replica of its own, on a stream of its own where none is given."""
        if stream is None:
            async with self.stream(Stream) as own, Appender(own, hashing=self.hashing, ack=ack) as appender:
                yield appender
        else:
            async with Appender(stream, hashing=self.hashing, ack=ack) as appender:
                yield appender

    async def stored(self) -> list[Event]:
        """All of the chain; fails when it does not verify, or when an index disagrees with it."""
        async with self.stream(Stream) as stream:
            events = (await stream.page(0, count=100_000)).unbroken()
            assert verify(events).reason is None
            report = await Walk(stream, 1, None).run()
            assert (report.verdict.reason, report.verdict.checked) == (None, len(events))
            assert report.indexes == "agree"
            return events

    async def assert_is_made_of(self, *receipts: Sequence[Receipt]) -> None:
        """Fail unless the chain holds each of these receipts' events once and nothing else."""
        receipted = [receipt.event for group in receipts for receipt in group]
        stored = await self.stored()
        assert stored == sorted(receipted)
        assert [event.event_id for event in stored] == list(range(1, len(receipted) + 1))

    def forget_everything(self) -> None:
        """What a Redis without a disk does at its restart."""
        for key in self.raw.keys(b"{%b}:*" % self.name.encode()):
            self.raw.delete(key)


def drafted(text: str = "", *, key: str | None = None, **fields: Any) -> Draft:
    request = PublishRequest(**{"kind": "other", "source": "conformance", "payload": {"text": text}} | fields)
    return draft(request, KINDS, once=key)


def drafts(count: int, text: str = "", **fields: Any) -> list[Draft]:
    return [drafted(f"{text}{number}", **fields) for number in range(count)]


def texts(events: Sequence[Event]) -> list[bytes]:
    """The payloads of `drafted`, for telling events apart."""
    return [event.payload.removeprefix(b'{"text":"').removesuffix(b'"}') for event in events]


async def nothing() -> None:
    pass


Fault = Literal["request lost", "reply lost", "refused"]


class Lossy(Stream):
    """A stream whose connection fails at the next appends: before they reach Redis, or after they have landed."""

    def __init__(self, clients: Clients, chain: str) -> None:
        super().__init__(clients, chain)
        self.faults: deque[Fault] = deque()
        self.meanwhile: Callable[[], Awaitable[object]] = nothing
        """What happens before the replica asks again."""
        self.calls = 0

    async def append(self, *drafts: Any, **options: Any) -> Any:
        self.calls += 1
        fault = self.faults.popleft() if self.faults else None
        if fault == "refused":
            raise Unreachable("out of memory")
        reply = None if fault == "request lost" else await super().append(*drafts, **options)
        if fault is None:
            return reply
        await self.meanwhile()
        raise Unreachable("the connection broke", in_doubt=True)


class Held(Stream):
    """A stream whose appends wait at a gate."""

    def __init__(self, clients: Clients, chain: str) -> None:
        super().__init__(clients, chain)
        self.open = asyncio.Event()
        self.reached = asyncio.Event()
        """An append stands at the gate."""

    async def append(self, *drafts: Any, **options: Any) -> Any:
        self.reached.set()
        await self.open.wait()
        return await super().append(*drafts, **options)


def handed_in(appender: Appender, *submissions: Sequence[Draft]) -> list["asyncio.Task[list[Receipt]]"]:
    """Start appending each; they are queued, in this order, once the loop has run."""
    return [asyncio.create_task(appender.append(drafts)) for drafts in submissions]


async def behind_the_gate(
    held: Held, appender: Appender, *submissions: Sequence[Draft]
) -> list["asyncio.Task[list[Receipt]]"]:
    """The first submission stands at the gate, alone in its batch; the others wait behind it together."""
    first = handed_in(appender, submissions[0])
    await held.reached.wait()
    rest = handed_in(appender, *submissions[1:])
    await asyncio.sleep(0)  # a task queues its drafts in its first step
    return first + rest
