"""Walks over the chain: who shares one, how many go on at a time, and that none goes on for nobody."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from audit_stream.appender import Appender
from audit_stream.event import PublishRequest, draft
from audit_stream.kinds import BUILT_IN
from audit_stream.server.app import create_app
from audit_stream.settings import Settings
from audit_stream.stream import Stream
from audit_stream.verifier import Report, Shared, TooManyWalks, Verifier, Walk
from tests.harness import running_server

EVENTS = 12


class Gate:
    """Walks wait at it, and are noted when they end."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun: list[Walk] = []
        self.two_began = asyncio.Event()
        self.cancelled: list[Walk] = []

    async def walking(self, walk: Walk) -> Report:
        self.begun.append(walk)
        if len(self.begun) == 2:
            self.two_began.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(walk)
            raise
        return await walk.run()


@asynccontextmanager
async def gated(redis_url: str, chain: str) -> AsyncIterator[tuple[Verifier, Gate, Stream]]:
    stream, gate = Stream.at(redis_url, chain), Gate()
    verifier = Verifier(stream, walking=gate.walking)
    try:
        async with Appender(stream) as appender:
            requests = [PublishRequest("other", f"s{n % 3}", payload={"n": n}) for n in range(EVENTS)]
            await appender.append([draft(request, frozenset(BUILT_IN)) for request in requests])
        yield verifier, gate, stream
    finally:
        await verifier.close()
        await stream.close()


Scenario = Callable[[Verifier, Gate, Stream], Awaitable[None]]


@pytest.fixture
def on_a_chain(redis_url: str, chain: str) -> Callable[[Scenario], None]:
    async def run(scenario: Scenario) -> None:
        async with gated(redis_url, chain) as (verifier, gate, stream), asyncio.timeout(60):
            await scenario(verifier, gate, stream)

    return lambda scenario: asyncio.run(run(scenario))


async def begun(shared: Shared) -> None:
    await asyncio.sleep(0)  # a task begins in its first step


def test_a_deep_request_is_not_answered_by_a_shallow_walk(on_a_chain: Any) -> None:
    async def scenario(verifier: Verifier, gate: Gate, stream: Stream) -> None:
        # Each index is as long as before, but #1 and #2 stand under each other's source.
        redis: Any = stream._clients.write
        for name, ids in ((b"s0", (2, 4, 7, 10)), (b"s1", (1, 5, 8, 11))):
            await redis.delete(stream.keys.source(name))
            for event_id in ids:
                await redis.xadd(stream.keys.source(name), {"": ""}, id=f"{event_id}-0")
        async with verifier.join() as shallow, verifier.join(deep=True) as deep:
            assert deep is not shallow
            gate.open.set()
            assert (await shallow.report()).indexes == "agree"
            assert (await deep.report()).indexes == "disagree"

    on_a_chain(scenario)


def test_a_shallow_request_joins_a_deep_walk(on_a_chain: Any) -> None:
    async def scenario(verifier: Verifier, gate: Gate, _: Stream) -> None:
        async with verifier.join(deep=True) as deep, verifier.join() as shallow:
            assert shallow is deep
            gate.open.set()
            assert (await shallow.report()).indexes == "agree"

    on_a_chain(scenario)


def test_a_walk_ends_when_nobody_waits_for_it_and_not_before(on_a_chain: Any) -> None:
    async def scenario(verifier: Verifier, gate: Gate, _: Stream) -> None:
        async with verifier.join() as shared:
            async with verifier.join() as other:
                assert other is shared
                await begun(shared)
            assert gate.cancelled == []
        assert gate.cancelled == gate.begun == [shared.walk]
        # The next one begins anew, and is not answered by what has ended.
        gate.open.set()
        assert (await verifier.verify()).verdict.checked == EVENTS

    on_a_chain(scenario)


def test_one_walk_over_a_part_at_a_time_is_for_each_who_asks_and_two_are_for_all(on_a_chain: Any) -> None:
    async def scenario(verifier: Verifier, gate: Gate, _: Stream) -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(verifier.join(2, 9, who="a"))
            with pytest.raises(TooManyWalks, match="one at a time"):
                await stack.enter_async_context(verifier.join(3, 9, who="a"))
            # The same part again is the same walk, and so is the whole chain for all.
            assert await stack.enter_async_context(verifier.join(2, 9, who="a")) is first
            assert await stack.enter_async_context(verifier.join(2, 9, who="c")) is first
            await stack.enter_async_context(verifier.join(4, who="b"))
            with pytest.raises(TooManyWalks, match="2 walks over parts") as caught:
                await stack.enter_async_context(verifier.join(5, who="c"))
            assert caught.value.retry_after >= 1
            whole = await stack.enter_async_context(verifier.join(who="a"))
            gate.open.set()
            assert (await whole.report()).verdict.checked == EVENTS
        assert (await verifier.verify(5)).verdict.checked == EVENTS - 4

    on_a_chain(scenario)


# --- by HTTP


class Asked:
    """One GET /verify of a client at an address, on ASGI itself, so that the client can leave."""

    def __init__(self, app: Any, query: str, address: str, accept: str = "application/json") -> None:
        self._leaves = asyncio.Event()
        self.answered = asyncio.Event()
        self.sent: list[Any] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/verify",
            "raw_path": b"/verify",
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"test"), (b"accept", accept.encode())],
            "client": (address, 1),
            "server": ("test", 80),
            "state": {},
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if not self._leaves.is_set():
            await self._leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self.answered.set()

    async def leave(self) -> None:
        self._leaves.set()
        await self.task

    async def status(self) -> int:
        await self.task
        return int(self.sent[0]["status"])


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_too_many_walks_are_a_429_and_one_whose_client_leaves_ends_and_makes_room(
    redis_url: str, chain: str, accept: str
) -> None:
    async def scenario() -> None:
        app = create_app(Settings(redis_url=redis_url, chain=chain, data_dir=Path("/nowhere"), verify_every=None))
        gate = Gate()
        async with app.lifespan(), asyncio.timeout(60):
            spine = app.state.spine
            spine.verifier._walking = gate.walking
            await spine.appender.append([draft(PublishRequest("other", "s"), frozenset(BUILT_IN))] * 5)
            one, two = Asked(app, "from=2", "10.0.0.1", accept), Asked(app, "from=3", "10.0.0.2", accept)
            await gate.two_began.wait()
            for query, address in (("from=4", "10.0.0.1"), ("from=4", "10.0.0.3")):
                refused = Asked(app, query, address)
                assert await refused.status() == 429
                assert int(dict(refused.sent[0]["headers"])[b"retry-after"]) >= 1
            if accept != "application/json":
                await one.answered.wait()  # also in the middle of its answer
            await one.leave()
            assert [walk.first for walk in gate.cancelled] == [2]
            three = Asked(app, "from=4", "10.0.0.3")
            gate.open.set()
            assert [await asked.status() for asked in (two, three)] == [200, 200]
            assert b'"valid":true' in two.sent[-1]["body"]

    asyncio.run(scenario())


def test_a_source_beyond_the_limit_is_a_422_with_its_place_and_known_ones_go_on(redis_url: str, chain: str) -> None:
    def event(source: str) -> dict[str, str]:
        return {"kind": "other", "source": source}

    with running_server(
        AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, AUDIT_STREAM_MAX_SOURCES="2"
    ) as server:
        assert server.post_batch([event("a"), event("b"), event("a")]).status_code == 201
        refused = server.post(event("c"))
        assert (refused.status_code, refused.json()["field"]) == (422, "source")
        assert "AUDIT_STREAM_MAX_SOURCES=2" in refused.json()["detail"]
        refused = server.post_batch([event("a"), event("c")])
        assert (refused.status_code, refused.json()["index"]) == (422, 1)
        assert server.post(event("b")).status_code == 201
        assert server.get("/stats").json()["count"] == 4
