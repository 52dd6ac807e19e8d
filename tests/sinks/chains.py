"""Chains for sinks, and what sinks have made of them."""

import asyncio
import json
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

from audit_stream.chain import START, Event, Head, link_hash
from audit_stream.event import canonical_text
from audit_stream.sinks.choosing import sinks_of
from audit_stream.sinks.folder import FolderSink
from audit_stream.sinks.settings import SinkSettings
from audit_stream.sinks.sink import Position

TIME = "2026-05-15T03:14:15.123+00:00"

AUDITED: dict[str, Any] = {
    "audit_id": "0d7c7b9e-3f1c-4f0e-9f57-0c5b8f6f7a11",
    "correlation_id": "corr-1",
    "timestamp": "2026-05-15T23:59:59.5-02:00",
    "operation": "query.execute",
    "command": "SELECT 1",
    "args": {"limit": 10, "tags": ["a", None]},
    "actor": "alice@example.com",
    "status": "success",
    "duration_ms": 12.5,
    "result_signature": "sig-1",
    "client_app": "forge",
    "trust_score": 0.92,
    "purview_compatible": True,
    "metadata": {"region": "eu", "nested": {"n": 1}},
    "caller_ip_address": "192.0.2.7",
    "federated_source": "partner-a",
    "query_intent": "report",
    "bypass_llm": False,
    "schema_version": "1.0",
    "tenant_id": "11111111-2222-3333-4444-555555555555",
}
"""A payload that says everything the schema has a field for."""


def an_event(payload: Mapping[str, Any], *, kind: str = "other", source: str = "forge", at: str = TIME) -> Event:
    return chained([(payload, kind, source, at)])[0]


def numbered(count: int, *, behind: Head = START, days: Iterable[str] = ("2026-05-15",)) -> list[Event]:
    """Events with `n` in their payload, on these days in turn."""
    cycle = list(days)
    return chained(
        [({"n": n}, "other", "tests", f"{cycle[n % len(cycle)]}T12:00:00+00:00") for n in range(count)], behind=behind
    )


def chained(events: Iterable[tuple[Mapping[str, Any], str, str, str]], *, behind: Head = START) -> list[Event]:
    found, head = list[Event](), behind
    for payload, kind, source, at in events:
        fields = (head.event_id + 1, at.encode(), kind.encode(), source.encode(), canonical_text(dict(payload)))
        event = Event(*fields, head.hash, link_hash(*fields, head.hash))
        found.append(event)
        head = head_of(event)
    return found


def head_of(event: Event) -> Head:
    return Head(event.event_id, event.hash)


def settings(to: str, folder: Path | str = "", **environ: str) -> SinkSettings:
    return SinkSettings.from_env({"PROJECT_TO": to, "LOG_DIR": str(folder), "METRICS_LISTEN": "off", **environ})


def folder_sink(to: str, folder: Path, **environ: str) -> FolderSink:
    (sink,) = sinks_of(settings(to, folder, **environ))
    assert isinstance(sink, FolderSink)
    return sink


def fill(sink: FolderSink, *batches: list[Event]) -> Position:
    """Open it, write the batches, close it; where it wanted to go on."""

    async def filled() -> Position:
        try:
            position = await sink.open()
            for batch in filter(None, batches):
                await sink.write(batch)
            await sink.rest()
            return position
        finally:
            await sink.close()

    position: Position = done(filled())
    return position


def done(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def lines_in(folder: Path) -> dict[str, list[Any]]:
    """The lines of each file, by its name."""
    return {
        path.name: list(map(json.loads, path.read_bytes().splitlines())) for path in sorted(folder.rglob("*.jsonl"))
    }


def ids_in(folder: Path) -> dict[str, list[int]]:
    """The event_ids in each file, by its name."""
    return {name: [event_id(line) for line in lines] for name, lines in lines_in(folder).items()}


def event_id(line: dict[str, Any]) -> int:
    found: int = line.get("event_id") or line["properties"]["event_id"]
    return found
