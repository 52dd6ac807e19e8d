"""Every step of a write, failed and failed but persisted: what is told, what is stored, and that it can be repaired."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.faults.evidence import check_receipts, check_sound
from tests.faults.house import CHAIN, PATIENCE_S, House, body, key
from tests.faults.processes import needs_linux, stopped
from tests.faults.proxy import Cut
from tests.faults.steps import as_markdown, outcomes
from tests.harness import ROOT, clean_environ

EVENTS = f"{{{CHAIN}}}:events"
pytestmark = needs_linux


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(tmp_path_factory.mktemp("house"), stack)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(tmp_path, stack, replicas=1)


# --- one driver a cell: it breaks the step, yields what the client was told, and mends what is an operator's to mend

Told = Iterator[httpx.Response | None]


def body_cut_short(house: House, request: str) -> Told:
    yield house.server.post(json.dumps(body(request)).encode()[:-9], **key(request))


def server_dies_with_a_full_queue(house: House, request: str) -> Told:
    house.proxy.hush("all", new=True)
    in_flight = house.posting(f"before {request}")
    assert house.proxy.has_dropped.wait(PATIENCE_S)
    waiting = house.posting(request)
    assert house.server.get("/healthz").status_code == 200
    house.server.stop(signal.SIGKILL)
    assert in_flight.answer() is None
    yield waiting.answer()
    house.proxy.speak()
    house.start_server()


def _cut(house: House, request: str, cut: Cut) -> httpx.Response:
    house.proxy.cut_next(cut)
    answer = house.post(request)
    assert house.proxy.has_cut.is_set()
    return answer


def request_lost(house: House, request: str) -> Told:
    yield _cut(house, request, "before")


def answers_dropped(house: House, request: str) -> Told:
    house.proxy.hush("answers", new=True)
    yield house.post(request)
    house.proxy.speak()


@contextmanager
def _no_memory(house: House) -> Iterator[None]:
    house.primary.client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        house.primary.client.config_set("maxmemory", 0)


def out_of_memory(house: House, request: str) -> Told:
    with _no_memory(house):
        yield house.post(request)


def redis_hangs(house: House, request: str) -> Told:
    with stopped(house.primary.process.pid):
        answer = house.post(request)
    house.until_stored(request)
    yield answer


def chain_ends_too_early(house: House, request: str) -> Told:
    """As if its newest events were cut off: ids beyond its end were given out."""
    assert house.post(f"before {request}").status_code == 201
    head = house.primary.client.xinfo_stream(EVENTS)["last-generated-id"]
    house.primary.client.execute_command("XSETID", EVENTS, f"{int(head.partition(b'-')[0]) + 5}-0")
    yield house.post(request)
    house.primary.client.execute_command("XSETID", EVENTS, head)


def index_refuses(house: House, request: str) -> Told:
    house.primary.client.set(f"{{{CHAIN}}}:source:{request}", "not an index")
    yield house.post(request)
    house.primary.client.delete(f"{{{CHAIN}}}:source:{request}")
    environ = clean_environ(AUDIT_STREAM_REDIS_URL=house.primary.url, AUDIT_STREAM_CHAIN=CHAIN)
    subprocess.run(
        [sys.executable, "-m", "audit_stream", "reindex", "--yes"], env=environ, check=True, capture_output=True
    )


def _redis_dies_before_it_answers(house: House, request: str, *, torn: bool) -> Told:
    known = house.primary.written_bytes()
    house.proxy.hush("answers", new=True)
    posting = house.posting(request)
    house.primary.until(lambda: house.primary.written_bytes() > known)
    house.primary.kill()
    yield posting.answer()
    if torn:
        os.truncate(house.primary.log_of_writes, (known + house.primary.written_bytes()) // 2)
    house.proxy.speak()
    house.primary.start()


def log_torn(house: House, request: str) -> Told:
    yield from _redis_dies_before_it_answers(house, request, torn=True)


def log_written(house: House, request: str) -> Told:
    yield from _redis_dies_before_it_answers(house, request, torn=False)


def refusal_lost(house: House, request: str) -> Told:
    with _no_memory(house):
        yield _cut(house, request, "after")


def success_lost(house: House, request: str) -> Told:
    yield _cut(house, request, "after")


def primary_lost(pair: House, request: str) -> Told:
    pair.replicas[0].kill()
    yield pair.post(request)
    pair.primary.kill()
    lost, pair.primary = pair.primary, pair.replicas[0]
    pair.primary.start()
    pair.proxy.redirect(pair.primary.url)
    lost.start(replica_of=pair.primary)


def replica_away(pair: House, request: str) -> Told:
    pair.replicas[0].kill()
    yield pair.post(request)
    pair.replicas[0].start(replica_of=pair.primary)


def producer_gone(house: House, request: str) -> Told:
    content, address = json.dumps(body(request)), urlsplit(house.server.url)
    head = f"POST /events HTTP/1.1\r\nHost: {address.netloc}\r\nIdempotency-Key: {request}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0), PATIENCE_S) as connection:
        connection.sendall(f"{head}{content}".encode())
        house.until_stored(request)
    yield None


DRIVERS: dict[str, Callable[[House, str], Told]] = {
    "request decoded: failed": body_cut_short,
    "event waits in the queue: failed": server_dies_with_a_full_queue,
    "EVALSHA sent: failed": request_lost,
    "EVALSHA sent: failed but persisted": answers_dropped,
    "script runs: failed": out_of_memory,
    "script runs: failed but persisted": redis_hangs,
    "XADDs applied: failed": chain_ends_too_early,
    "XADDs applied: failed but persisted": index_refuses,
    "fsync: failed": log_torn,
    "fsync: failed but persisted": log_written,
    "reply travels: failed": refusal_lost,
    "reply travels: failed but persisted": success_lost,
    "WAIT for replicas: failed": primary_lost,
    "WAIT for replicas: failed but persisted": replica_away,
    "201 travels: failed but persisted": producer_gone,
}


def sent_again(house: House, request: str) -> httpx.Response:
    """As a producer does: until it is answered."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := house.post(request)).status_code == 503:
        assert time.monotonic() < deadline, answer.text
    return answer


@pytest.mark.parametrize("name", outcomes())
def test_a_write_step_that_fails_ends_as_the_table_says(name: str, request: pytest.FixtureRequest) -> None:
    cell = outcomes()[name]
    house: House = request.getfixturevalue("pair" if name.startswith("WAIT") else "house")
    event = name.replace(" ", "-").replace(":", "")
    house.settle()
    with contextmanager(DRIVERS[name])(house, event) as answer:
        assert (answer.status_code if answer is not None else None) == cell.status, answer and answer.text
        if cell.status == 503:
            assert answer is not None
            assert int(answer.headers["retry-after"]) >= 1
            assert ("same idempotency key" in answer.text) == ("same key" in cell.told)
    assert house.count(event) == (1 if cell.stored == "once" else 0)
    again = sent_again(house, event)
    assert again.status_code == cell.sent_again, again.text
    assert again.headers.get("idempotent-replayed") == ("true" if cell.sent_again == 200 else None)
    check_receipts(check_sound(house.primary.url, CHAIN), [again.json()])
    assert house.count(event) == 1
    if cell.status == 201 and answer is not None:
        assert answer.json() == again.json()


def test_every_cell_of_the_table_has_its_driver() -> None:
    assert list(DRIVERS) == list(outcomes())


def test_the_docs_show_the_table_that_is_driven() -> None:
    assert as_markdown() in (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
