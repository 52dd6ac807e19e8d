"""What is not known to be written or not written is treated as both: it is neither lost nor stored twice."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from audit_stream.bus.log import Log
from audit_stream.client import AuditClient
from audit_stream.client.http import Http
from audit_stream.client.spool import Spool
from audit_stream.client.wire import Incoming, Request
from audit_stream.errors import Unreachable
from tests.client.clients import UnhurriedWire, numbers_in
from tests.client.front import front_of
from tests.client.spools import NOWHERE, client_of, fill
from tests.harness import ServerProcess


def request_of(number: int, **fields: Any) -> bytes:
    return msgspec.json.encode(
        {"kind": "other", "source": "tests", "payload": {"n": number}, "idempotency_key": f"k{number}"} | fields
    )


def cursor_of(path: Path) -> Any:
    return json.loads(Path(f"{path}.cursor").read_text())


def test_an_event_that_comes_between_the_last_look_and_the_emptying_is_drained(
    server: ServerProcess, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path, 1)
    empty = Log.empty

    def another_came_before(self: Log, *, size: int) -> bool:
        monkeypatch.undo()
        Spool(path).put([request_of(2)])
        return empty(self, size=size)

    monkeypatch.setattr(Log, "empty", another_came_before)
    with client_of(server.url, path) as client:
        assert client.drain().stored == 2
    assert numbers_in(server) == [1, 2]


def test_a_batch_whose_answer_was_lost_stays_noted_and_one_that_was_never_sent_does_not(
    server: ServerProcess, path: Path
) -> None:
    fill(path, 1)
    with client_of(NOWHERE, path) as client:
        client.drain()
    assert "asked_at" not in cursor_of(path)
    with front_of(server.url, "cut after", "cut before") as front, client_of(front.url, path) as client:
        client.drain()
        asked_at = cursor_of(path)["asked_at"]
        client.drain()
        assert cursor_of(path)["asked_at"] == asked_at
    with client_of(NOWHERE, path) as client:
        client.drain()  # this attempt settles nothing about the one before it
    assert cursor_of(path)["asked_at"] == asked_at


def test_an_equal_event_of_another_time_is_not_taken_for_the_one_in_doubt(server: ServerProcess, path: Path) -> None:
    times = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"]
    waiting = [request_of(7, timestamp=at, idempotency_key=at) for at in times]
    server.post(json.loads(waiting[1]))
    Spool(path).put(waiting)
    Path(f"{path}.cursor").write_text(json.dumps({"asked_at": time.time() - 100 * 3600}))
    with client_of(server.url, path) as client:
        client.drain()
        assert sorted(event.timestamp for event in client.query()) == times


class FailingWire(UnhurriedWire):
    """Every attempt fails, each with the next error and then with the last one."""

    def __init__(self, *errors: httpx.TransportError) -> None:
        super().__init__("http://h", {}, httpx.Timeout(1))
        self._errors = [*errors[:-1]]
        self._last = errors[-1]

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Incoming]:
        raise self._errors.pop(0) if self._errors else self._last
        yield


LOST, NOBODY = httpx.ReadError("reset"), httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("errors", "method", "in_doubt"),
    [
        ((LOST, NOBODY), "POST", True),
        ((NOBODY, LOST, NOBODY), "POST", True),
        ((NOBODY, NOBODY), "POST", False),
        ((LOST, NOBODY), "GET", False),
    ],
)
def test_one_attempt_of_unknown_end_leaves_the_whole_request_in_doubt(
    errors: tuple[httpx.TransportError, ...], method: str, in_doubt: bool
) -> None:
    wire = FailingWire(*errors)

    async def ask() -> None:
        await Http(wire, "http://h").ask(Request(method, "events"), patience_s=0.5)

    with pytest.raises(Unreachable, match="no server at http://h: refused") as raised:
        asyncio.run(ask())
    assert wire.pauses_s
    assert raised.value.in_doubt is in_doubt


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes every request, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_takes_a_request_and_says_nothing_leaves_it_in_doubt(silent: str) -> None:
    with AuditClient(silent, timeout_s=0.1, patience_s=0) as client:
        with pytest.raises(Unreachable, match="was lost") as raised:
            client.append("other", "tests")
        assert raised.value.in_doubt
