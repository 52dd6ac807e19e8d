"""Many processes on one chain: writers that race, server processes, and the workers of one server."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from audit_stream.settings import Hashing
from tests.faults.campaign.valkey import Valkey
from tests.faults.evidence import check_load, check_receipts, check_sound, report, turns
from tests.faults.load import Answer, Load, Spec
from tests.faults.processes import children, endings, needs_linux, stopped, valkeys_of, workers_of
from tests.harness import ServerProcess, running_server

WRITERS = 4
EVENTS = 500
WORKERS = 3
HASHINGS: tuple[Hashing, ...] = ("checked", "script")


def run_to_the_end(specs: Sequence[Spec]) -> list[Answer]:
    with Load(*specs) as load:
        return load.finish()


@pytest.mark.parametrize("hashing", HASHINGS)
def test_four_writers_with_an_appender_each_make_one_chain(redis_url: str, chain: str, hashing: Hashing) -> None:
    answers = run_to_the_end(
        [
            Spec(name=f"writer-{n}", events=EVENTS, redis_url=redis_url, chain=chain, hashing=hashing)
            for n in range(WRITERS)
        ]
    )
    events = check_load(redis_url, chain, answers)
    assert len(events) == WRITERS * EVENTS
    assert turns(events) > WRITERS
    assert not any(answer.replayed for answer in answers)


@pytest.mark.parametrize("hashing", HASHINGS)
def test_four_producers_over_two_servers_make_one_chain(redis_url: str, chain: str, hashing: Hashing) -> None:
    settings = {
        "AUDIT_STREAM_REDIS_URL": redis_url,
        "AUDIT_STREAM_CHAIN": chain,
        "AUDIT_STREAM_HASHING": hashing,
    }
    with running_server(**settings) as one, running_server(**settings) as other:
        urls = [one.url, other.url]
        answers = run_to_the_end(
            # Each server is asked first by two of them, and then in turn.
            [Spec(name=f"producer-{n}", events=EVENTS, urls=urls[:: (-1) ** n]) for n in range(WRITERS)]
        )
        for server in (one, other):
            assert server.get("/stats").json()["batches"] > 0
            verdict = server.verify()
            assert (verdict["valid"], verdict["checked"]) == (True, WRITERS * EVENTS)
    events = check_load(redis_url, chain, answers)
    assert len(events) == WRITERS * EVENTS
    assert not any(answer.replayed for answer in answers)


def test_the_replicas_of_redis_are_counted_and_pinned_only_when_they_hold_the_event(tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    with Valkey(tmp_path / "primary") as primary, Valkey(tmp_path / "replica", replica_of=primary) as replica:
        settings = {
            "AUDIT_STREAM_REDIS_URL": primary.url,
            "AUDIT_STREAM_ACK": "fsync,replicas=1",
            "AUDIT_STREAM_PIN": str(pin),
        }
        with running_server(**settings) as server:
            assert server.get("/stats").json()["replicas"] == 1
            receipt = server.post({"kind": "other", "source": "s"}).json()
            replica.kill()
            assert server.post({"kind": "other", "source": "s"}).status_code == 503
            assert server.verify()["checked"] == 2
            primary.until(lambda: primary.replicas() == 0)
            assert server.get("/stats").json()["replicas"] == 0
        assert pin.read_text() == f"1:{receipt['hash']}\n"


# --- serve --workers


@pytest.fixture(params=["embedded", "given"])
def many(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with several workers, over an embedded Valkey or a given Redis."""
    if request.param == "embedded":
        settings = {"AUDIT_STREAM_DATA_DIR": str(tmp_path / "data")}
    else:
        settings = {
            "AUDIT_STREAM_REDIS_URL": request.getfixturevalue("redis_url"),
            "AUDIT_STREAM_CHAIN": request.getfixturevalue("chain"),
        }
    with running_server("--workers", str(WORKERS), **settings) as server:
        yield server


def over(server: ServerProcess) -> tuple[str, str]:
    """The Redis and the chain behind it, as the server was told them."""
    environ = dict(
        entry.partition("=")[::2]
        for entry in Path(f"/proc/{workers_of(server.pid)[0]}/environ").read_text().split("\0")
    )
    return environ["AUDIT_STREAM_REDIS_URL"], environ.get("AUDIT_STREAM_CHAIN", "audit")


@contextmanager
def alone(worker: int, workers: Sequence[int]) -> Iterator[None]:
    """Every other worker hangs, so whoever answers now is this one."""
    with stopped(*(pid for pid in workers if pid != worker)):
        yield


def post_anew(server: ServerProcess, request: str) -> httpx.Response:
    """POST over a connection of its own, which any worker may take."""
    body = {"kind": "other", "source": "s", "payload": {"request": request, "place": 0, "size": 1}}
    return httpx.post(f"{server.url}/events", json=body, headers={"Idempotency-Key": request}, timeout=20)


@needs_linux
def test_every_worker_takes_requests_and_all_write_one_chain(many: ServerProcess) -> None:
    workers = workers_of(many.pid)
    assert len(workers) == WORKERS
    # One Valkey for all of them, where it is theirs; and nobody has children that are not known here.
    assert len(valkeys_of(many.pid)) == ("embedded" in many.ready)
    assert children(many.pid) == sorted(workers + valkeys_of(many.pid))
    receipts = []
    for number, worker in enumerate(workers):
        with alone(worker, workers):
            answer = post_anew(many, f"only {number}")
        assert answer.status_code == 201
        receipts.append(answer.json())
    assert [receipt["event_id"] for receipt in receipts] == [1, 2, 3]
    check_receipts(check_sound(*over(many)), receipts)


@needs_linux
def test_a_killed_worker_is_replaced_and_no_answer_is_lost(many: ServerProcess) -> None:
    with Load(*(Spec(name=f"producer-{n}", urls=[many.url], seed=7) for n in range(2))) as load:
        for _ in range(2):
            load.wait_for(20)
            victim = workers_of(many.pid)[0]
            with endings([victim]) as ending:
                os.kill(victim, signal.SIGKILL)
                assert ending.left_after(5) == []
            load.wait_for(20)
        answers = load.finish()
    check_load(*over(many), answers)
    # The parent notices a death only when it wakes, so ask until the house is full again: each ask needs an answer.
    while len(workers := workers_of(many.pid)) < WORKERS:
        many.get("/healthz").raise_for_status()
    for worker in workers:
        with alone(worker, workers):  # a new one may still be starting: then the connection waits for it
            assert post_anew(many, f"after {worker}").status_code == 201
    assert report(*over(many)).verdict.valid


@needs_linux
@pytest.mark.parametrize(("many", "sig"), [("embedded", signal.SIGTERM), ("given", signal.SIGINT)], indirect=["many"])
def test_a_signal_to_the_parent_ends_every_process(many: ServerProcess, sig: signal.Signals) -> None:
    with endings(children(many.pid)) as ending:
        assert many.stop(sig, timeout=10) == 0
        assert ending.left_after(0) == []


@needs_linux
@pytest.mark.parametrize("many", ["given"], indirect=True)  # the next test has the embedded one
def test_the_kill_of_the_parent_ends_every_process(many: ServerProcess) -> None:
    family = children(many.pid)
    assert len(family) >= WORKERS
    with endings(family) as ending:
        many.stop(signal.SIGKILL)
        assert ending.left_after(10) == []


@needs_linux
def test_the_kill_of_the_parent_under_load_loses_no_answer(tmp_path: Path) -> None:
    settings = {"AUDIT_STREAM_DATA_DIR": str(tmp_path)}
    with ExitStack() as stack:
        first = stack.enter_context(running_server("--workers", "2", **settings))
        port = first.url.rpartition(":")[2]
        load = stack.enter_context(Load(Spec(name="producer", urls=[first.url])))
        load.wait_for(50)
        family = children(first.pid)
        with endings(family) as ending:
            first.stop(signal.SIGKILL)
            assert ending.left_after(10) == []
        second = stack.enter_context(running_server("--workers", "2", PORT=port, **settings))
        load.wait_for(50)
        check_load(*over(second), load.finish())
