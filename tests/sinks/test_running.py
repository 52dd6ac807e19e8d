"""Projections that run: from the backlog to live, through what goes away and comes back."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import pytest
from prometheus_client import CollectorRegistry

from audit_stream.chain import START, Event
from audit_stream.errors import ChainBroken, Refused
from audit_stream.sinks import projections as projections_module
from audit_stream.sinks import running
from audit_stream.sinks.postgres import schema
from audit_stream.sinks.projection import Projection
from audit_stream.sinks.projections import Projections
from audit_stream.sinks.reading import Batch, Chain, linked
from audit_stream.sinks.sink import Name, Position, Sink, SinkFailed
from tests.client.front import front_of
from tests.faults.processes import free_port
from tests.harness import ServerProcess, running_server
from tests.postgres.servers import Database, Postgres, a_postgres, binaries
from tests.sinks.chains import ids_in, numbered, settings
from tests.sinks.projecting import ALL, append, assert_each_once, environ_of, project_once, until


def ids_of(database: Database) -> list[int]:
    return [row[0] for row in database.run("SELECT event_id FROM audit_events.events ORDER BY 1")]


def heads(projections: Projections) -> dict[str, int]:
    return {progress.sink: progress.head.event_id for progress in projections.progress}


def everywhere(projections: Projections, newest: int) -> bool:
    return set(heads(projections).values()) == {newest}


def test_every_sink_takes_the_backlog_and_then_what_comes_live(
    spine: ServerProcess, database: Database, tmp_path: Path
) -> None:
    chosen = settings(ALL, tmp_path, AUDIT_STREAM_URL=spine.url, DATABASE_URL=database.url)

    async def project() -> int:
        newest = append(spine, 300)
        async with running(chosen) as projections:
            await until(lambda: everywhere(projections, newest))
            for _ in range(5):
                newest = await asyncio.to_thread(append, spine, 20)
            await until(lambda: everywhere(projections, newest))
        return newest

    newest = asyncio.run(project())
    assert_each_once(tmp_path, newest)
    assert ids_of(database) == list(range(1, newest + 1))
    assert database.run("SELECT * FROM audit_events.verify()") == []


def test_a_database_that_is_away_stops_no_file_and_catches_up_when_it_is_back(
    spine: ServerProcess, tmp_path: Path
) -> None:
    registry = CollectorRegistry()

    def metric(name: str, sink: str) -> float:
        value = registry.get_sample_value(f"audit_stream_projection_{name}", {"sink": sink})
        assert value is not None
        return value

    async def project(server: Postgres, database: Database) -> int:
        chosen = settings(ALL, tmp_path, AUDIT_STREAM_URL=spine.url, DATABASE_URL=database.url)
        newest = append(spine, 10)
        async with running(chosen, registry=registry) as projections:
            await until(lambda: everywhere(projections, newest))
            await asyncio.to_thread(server.stop, "immediate")
            before, newest = newest, await asyncio.to_thread(append, spine, 10)
            files = {"purview": newest, "trust": newest, "jsonl": newest}
            await until(
                lambda: heads(projections) == {"postgres": before, **files} and bool(metric("failing", "postgres"))
            )
            assert (metric("lag_events", "postgres"), metric("lag_events", "trust")) == (10, 0)
            assert metric("lag_seconds", "postgres") > 0
            assert (metric("failing", "trust"), metric("failures_total", "trust")) == (0, 0)
            await asyncio.to_thread(server.start)
            await until(lambda: everywhere(projections, newest))
            assert (metric("failing", "postgres"), metric("event_id", "postgres")) == (0, newest)
            assert metric("events_total", "postgres") == newest
        return newest

    with a_postgres(max(binaries())) as server:
        assert isinstance(server, Postgres)
        database = server.database("away")
        schema.init(database.url)
        newest = asyncio.run(project(server, database))
        assert ids_of(database) == list(range(1, newest + 1))
    assert_each_once(tmp_path, newest)


def test_a_spine_that_is_killed_and_comes_back_leaves_no_gap(redis_url: str, chain: str, tmp_path: Path) -> None:
    port = free_port()
    serving = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, "PORT": str(port)}
    chosen = settings("jsonl,trust", tmp_path, AUDIT_STREAM_URL=f"http://127.0.0.1:{port}")

    async def project() -> int:
        async with running(chosen) as projections:  # there is no server yet
            await until(lambda: all(progress.failing for progress in projections.progress))
            await until(lambda: projections.spine_away)
            with running_server(**serving) as server:
                newest = await asyncio.to_thread(append, server, 30)
                await until(lambda: everywhere(projections, newest))
                server.stop(9)
            with running_server(**serving) as server:
                newest = await asyncio.to_thread(append, server, 30)
                await until(lambda: everywhere(projections, newest))
        return newest

    assert_each_once(tmp_path, asyncio.run(project()))


def test_time_without_events_is_no_lag(spine: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projections_module, "LOOK_EVERY_S", 0.01)
    chosen = settings("jsonl", tmp_path, AUDIT_STREAM_URL=spine.url)

    async def project() -> None:
        newest = append(spine, 1)
        async with running(chosen) as projections:
            await until(lambda: everywhere(projections, newest))
            (progress,) = projections.progress
            for _ in range(3):
                before = progress.caught_up_at
                await until(lambda: progress.caught_up_at > before)  # noqa: B023 - it is waited for here

    asyncio.run(project())


# --- what is no chain is not projected


def test_another_chain_is_not_mixed_into_what_was_projected(
    spine: ServerProcess, server: ServerProcess, database: Database, tmp_path: Path
) -> None:
    append(spine, 3)
    append(server, 5, other=True)
    sinks = "postgres,trust,jsonl"
    failed, first = project_once(environ_of(sinks, spine.url, tmp_path, database.url))
    assert failed == {}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "trust" / "trust.cursor").unlink()  # the lines alone tell as well
    failed, _ = project_once(environ_of(sinks, server.url, tmp_path, database.url))
    assert len(failed) == 3
    for sink, said in failed.items():
        assert f"event #{first[sink]} was projected with the hash" in said
    (tmp_path / "trust" / "trust.cursor").write_bytes(before[tmp_path / "trust" / "trust.cursor"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_events_that_do_not_follow_from_each_other_are_not_projected() -> None:
    events = numbered(5)
    assert linked(events, START).event_id == 5
    for broken in ([*events[:2], *events[3:]], [*events[:2], events[2]._replace(payload=b'{"n":7}'), *events[3:]]):
        with pytest.raises(ChainBroken, match="nothing from there on is projected"):
            linked(broken, START)


def test_an_address_of_something_else_is_named(spine: ServerProcess, tmp_path: Path) -> None:
    with front_of(spine.url, "portal") as front:
        failed, _ = project_once(environ_of("jsonl", front.url, tmp_path))
    assert "is it an audit-stream server?" in failed["jsonl"]


def test_an_answer_that_is_cut_off_is_asked_for_again_from_where_it_ended(spine: ServerProcess, tmp_path: Path) -> None:
    newest = append(spine, 10)
    with front_of(spine.url, "cut after") as front:
        failed, _ = project_once(environ_of("jsonl", front.url, tmp_path))
        assert "was lost" in failed["jsonl"]
        assert project_once(environ_of("jsonl", front.url, tmp_path))[0] == {}
    assert_each_once(tmp_path, newest)


# --- a sink of its own making


class Stub:
    """A sink that fails as it is told, then takes everything; and a chain of three events."""

    name: Name = "jsonl"

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.taken = list[Event]()
        self.closed = 0

    async def open(self) -> Position:
        return Position(START, START)

    async def write(self, events: Sequence[Event]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.taken = list(events)

    async def rest(self) -> None:
        pass

    async def close(self) -> None:
        self.closed += 1


class ThreeEvents:
    async def check(self, _: object) -> None:
        pass

    async def batches(self, _: object):  # type: ignore[no-untyped-def]
        yield Batch(numbered(3), live=False)
        yield Batch([], live=True)
        await asyncio.Event().wait()


FAILURES: dict[Literal["WARNING", "ERROR"], list[Exception]] = {
    "WARNING": [SinkFailed("away"), OSError("No space left on device"), Refused("no events")],
    "ERROR": [TypeError("a mistake of ours")],
}


@pytest.mark.parametrize("level", FAILURES)
def test_whatever_a_sink_raises_it_is_closed_and_tried_again(
    level: Literal["WARNING", "ERROR"], caplog: pytest.LogCaptureFixture
) -> None:
    sink = Stub(*FAILURES[level])
    projection = Projection(cast("Sink", sink), cast("Chain", ThreeEvents()))

    async def project() -> None:
        with caplog.at_level(logging.INFO, "audit_stream.project"):
            task = asyncio.create_task(projection.run())
            await until(lambda: len(sink.taken) == 3)
            await until(lambda: not projection.progress.failing)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    failures = list(sink.failures)
    asyncio.run(project())
    assert sink.closed == len(failures) + 1
    assert projection.progress.failures == len(failures)
    waits = [record for record in caplog.records if "waits" in record.getMessage()]
    assert [record.levelname for record in waits] == [level] * len(failures)
    assert all(bool(record.exc_info) == (level == "ERROR") for record in waits)
    assert "jsonl goes on behind event #0" in caplog.text


def test_leaving_waits_for_the_write_that_is_under_way(spine: ServerProcess, tmp_path: Path) -> None:
    append(spine, 2_000)
    newest = append(spine, 2_000)
    chosen = settings("jsonl", tmp_path, AUDIT_STREAM_URL=spine.url)

    async def project() -> None:
        async with running(chosen) as projections:
            await until(lambda: heads(projections)["jsonl"] > 0)

    for _ in range(3):
        asyncio.run(project())
        (ids,) = ids_in(tmp_path).values()
        assert ids == list(range(1, len(ids) + 1))
    assert project_once(environ_of("jsonl", spine.url, tmp_path))[0] == {}
    assert_each_once(tmp_path, newest)
