"""Projections: a backlog of audit events into each sink, against reading and checking the same chain."""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any

from audit_stream.chain import START
from audit_stream.sinks.postgres import schema
from audit_stream.sinks.projections import Projections
from audit_stream.sinks.reading import Chain
from audit_stream.sinks.settings import SinkSettings
from audit_stream.sinks.sink import NAMES
from benchmarks.processes import a_folder, a_valkey, our_server
from benchmarks.rows.filling import post_all
from benchmarks.rows.postgres import a_server
from benchmarks.session import Session
from benchmarks.table import Line

A_CALL = 1_000
PAYLOAD: dict[str, Any] = {
    "audit_id": "0d7c7b9e-3f1c-4f0e-9f57-0c5b8f6f7a11",
    "correlation_id": "7e0f3a52-95a1-4a0e-8f0c-2b1f3f3f6c10",
    "timestamp": "2026-05-15T03:14:15.123+00:00",
    "operation": "query.execute",
    "command": "SELECT * FROM claims WHERE region = $1",
    "args": {"region": "eu", "limit": 100},
    "actor": "user-4711",
    "status": "success",
    "duration_ms": 12.5,
    "client_app": "forge",
    "trust_score": 0.92,
    "purview_compatible": True,
    "metadata": {"policy": "eu-ai-act/v3", "rows": 100},
}


def each_sink(session: Session) -> list[Line]:
    events = max(session.scale.chain_events // 5 // A_CALL, 1) * A_CALL
    with ExitStack() as stack:
        ours = stack.enter_context(our_server(stack.enter_context(a_valkey())))
        folder = stack.enter_context(a_folder())
        database = stack.enter_context(a_server()).database("projection")
        schema.init(database.url)
        body = json.dumps([{"kind": "other", "source": "forge", "payload": PAYLOAD}] * A_CALL).encode()
        post_all(ours.url, [body] * (events // A_CALL))

        def project(sink: str) -> float:
            database.run("TRUNCATE audit_events.events", "CHECKPOINT")
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                environ = {"PROJECT_TO": sink, "AUDIT_STREAM_URL": ours.url, "LOG_DIR": fresh}
                settings = SinkSettings.from_env({**environ, "DATABASE_URL": database.url})
                return events / asyncio.run(_seconds(settings, events))

        sides: dict[str, Callable[[], float]] = {name: partial(project, name) for name in NAMES}
        sides["all"] = partial(project, ",".join(NAMES))
        sides["reading"] = lambda: events / asyncio.run(_read_through(ours.url))
        found = session.take_turns(sides)
    row, peer = f"project a backlog of {events:,} events", "reading and checking it"
    lines = [Line(f"{row}: {name}", "events/s", found[name], peer, found["reading"]) for name in NAMES]
    return [*lines, Line(f"{row}: all four at once", "events/s", found["all"], peer, found["reading"])]


async def _seconds(settings: SinkSettings, events: int) -> float:
    projections = Projections(settings)
    began = time.perf_counter()
    failed = await projections.run_to_the_end()
    took = time.perf_counter() - began
    if failed or any(progress.events != events for progress in projections.progress):
        raise RuntimeError(f"not all of {events} events were projected: {failed}, {projections.progress}")
    return took


async def _read_through(url: str) -> float:
    chain = Chain(url, {})
    began = time.perf_counter()
    try:
        async with aclosing(chain.batches(START)) as batches:
            async for _, live in batches:
                if live:
                    break
    finally:
        took = time.perf_counter() - began
        await chain.close()
    return took
