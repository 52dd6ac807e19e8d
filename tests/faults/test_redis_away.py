"""Redis away, hung, full, demoted, or cut off in the middle of an answer: what clients hear, and what is stored."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import redis

from audit_stream.embedded import EmbeddedValkey, find_server_binary
from tests.faults.evidence import check_load, check_receipts, check_sound
from tests.faults.load import Load, Spec
from tests.faults.processes import free_port, kill_valkey, stopped
from tests.faults.proxy import Cut, Proxy, proxy_to
from tests.harness import ServerProcess, running_server

HEARD_WITHIN_S = 2.0
READS = ("/events", "/events/1", "/events?kind=other", "/stats", "/verify", "/readyz", "/stream")
CHAIN = "away"
both_hashings = pytest.mark.parametrize("hashing", ["checked", "script"])
both_cuts = pytest.mark.parametrize("cut", ["before", "after"])
both_promises = pytest.mark.parametrize("ack", ["fsync", "fsync,replicas=1"])


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "data") as running:
        yield running


def server_on(redis_url: str, **settings: str) -> Any:
    return running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=CHAIN, **settings)


def body(request: str, place: int = 0, size: int = 1) -> dict[str, Any]:
    return {"kind": "other", "source": "s", "payload": {"request": request, "place": place, "size": size}}


def append(server: ServerProcess, request: str, size: int = 1) -> httpx.Response:
    """POST an event, or a batch of `size`, under the request's name as its idempotency key."""
    key = {"Idempotency-Key": request}
    if size == 1:
        return server.post(body(request), **key)
    return server.post_batch([body(request, place, size) for place in range(size)], **key)


def append_until_answered(server: ServerProcess, request: str, size: int = 1) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 30
    while (answer := append(server, request, size)).status_code == 503:
        check_pushback(answer)
        assert time.monotonic() < deadline, answer.text
    assert answer.status_code in (200, 201), answer.text
    receipts: list[dict[str, Any]] = answer.json() if size > 1 else [answer.json()]
    return receipts


def check_pushback(answer: httpx.Response, *words: str) -> str:
    """A 503 as clients need it: when to come back, and why. Returns the reason."""
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["title"]) == (503, "Service Unavailable")
    for word in words:
        assert word in problem["detail"]
    assert "EVALSHA" not in problem["detail"]  # what was sent to Redis is nobody's business
    return str(problem["detail"])


def ask(client: httpx.Client, path: str, request: str = "") -> tuple[httpx.Response, float]:
    """The answer, and how long it took. With a request's name it is a POST."""
    begun = time.monotonic()
    if request:
        answer = client.post(path, json=body(request), headers={"Idempotency-Key": request})
    else:
        answer = client.get(path)
    return answer, time.monotonic() - begun


def check_heard_in_time(server: ServerProcess, questions: Sequence[tuple[str, str]]) -> None:
    """All these (path, request), asked at once, are answered 503 in time.

    This machine may be busy with other things. How busy, a route that needs no Redis tells meanwhile; and a
    server that is too slow is so every time.
    """
    slowest = []
    with httpx.Client(base_url=server.url, timeout=10, limits=httpx.Limits(), trust_env=False) as client:
        for _ in range(5):
            with ThreadPoolExecutor(len(questions)) as threads:
                asked = [threads.submit(ask, client, *question) for question in questions]
                busy_s = 0.0
                while not all(question.done() for question in asked):
                    alive, took = ask(client, "/healthz")
                    assert alive.status_code == 200
                    busy_s = max(busy_s, took)
            for answer, _ in (question.result() for question in asked):
                check_pushback(answer)
            slowest.append(max(question.result()[1] for question in asked))
            if slowest[-1] <= HEARD_WITHIN_S + busy_s:
                return
    raise AssertionError(f"heard after {slowest} seconds")


def check_only(redis_url: str, receipts: Sequence[dict[str, Any]]) -> None:
    """These receipts are the whole chain."""
    events = check_sound(redis_url, CHAIN)
    assert sorted(receipt["event_id"] for receipt in receipts) == [event.event_id for event in events]
    check_receipts(events, receipts)


# --- away, and hung


@contextmanager
def killed(valkey: EmbeddedValkey) -> Iterator[None]:
    kill_valkey(valkey)
    yield
    valkey.start()


@contextmanager
def hung(valkey: EmbeddedValkey) -> Iterator[None]:
    with stopped(valkey.pid):
        yield


@both_hashings
@pytest.mark.parametrize("outage", [killed, hung])
def test_clients_hear_in_time_that_redis_is_away_and_the_server_resumes(
    valkey: EmbeddedValkey, outage: Callable[[EmbeddedValkey], Any], hashing: str
) -> None:
    with server_on(valkey.url, AUDIT_STREAM_HASHING=hashing) as server:
        receipts = append_until_answered(server, "before")
        with outage(valkey):
            check_heard_in_time(server, [("/events", "meanwhile"), *((path, "") for path in READS)])
        # The same key: whether the first try landed when a hung Redis woke is nothing that a client must know.
        receipts += append_until_answered(server, "meanwhile")
        receipts += append_until_answered(server, "after", size=3)
        while server.get("/readyz").status_code != 200:
            assert server.process.poll() is None
        assert append(server, "meanwhile").headers["idempotent-replayed"] == "true"
        check_only(valkey.url, receipts)


def test_many_readers_hear_in_time_that_redis_hangs(valkey: EmbeddedValkey) -> None:
    """More of them than there are connections to Redis."""
    with server_on(valkey.url) as server:
        append_until_answered(server, "one")
        with stopped(valkey.pid):
            check_heard_in_time(server, [("/events", "")] * 48)
        assert server.get("/events").status_code == 200


# --- cut off in the middle


class Through(NamedTuple):
    valkey: EmbeddedValkey
    proxy: Proxy
    server: ServerProcess


@pytest.fixture
def through(valkey: EmbeddedValkey, request: pytest.FixtureRequest) -> Iterator[Through]:
    """A server that reaches its Redis through a proxy. It has appended one event, "first"."""
    settings = getattr(request, "param", {})
    with proxy_to(valkey.url) as proxy, server_on(proxy.url, **settings) as server:
        append(server, "first")
        yield Through(valkey, proxy, server)
        proxy.close()  # before the server: whatever it still waits for ends now


through_both_hashings = pytest.mark.parametrize(
    "through", [{"AUDIT_STREAM_HASHING": hashing} for hashing in ("checked", "script")], indirect=True, ids=str
)


@through_both_hashings
@both_cuts
@pytest.mark.parametrize("size", [1, 40])
def test_an_append_that_is_cut_off_is_answered_and_stored_once(through: Through, cut: Cut, size: int) -> None:
    through.proxy.cut_next(cut)
    answer = append(through.server, "cut", size)
    assert through.proxy.has_cut.is_set()
    assert answer.status_code == 201, answer.text
    check_only(through.valkey.url, [append(through.server, "first").json(), *as_list(answer)])


@through_both_hashings
@both_cuts
def test_an_append_without_a_key_that_is_cut_off_is_stored_once(through: Through, cut: Cut) -> None:
    through.proxy.cut_next(cut, cut, cut)
    answer = through.server.post(body("cut"))
    assert answer.status_code == 201, answer.text
    check_only(through.valkey.url, [append(through.server, "first").json(), answer.json()])


@through_both_hashings
@both_cuts
def test_an_append_in_doubt_at_the_deadline_is_stored_once_under_its_key(through: Through, cut: Cut) -> None:
    through.proxy.cut_next(cut, then_closed=True)
    check_pushback(append(through.server, "cut", 3), "under the same idempotency key")
    through.proxy.open()
    receipts = append_until_answered(through.server, "cut", 3)
    check_only(through.valkey.url, [append(through.server, "first").json(), *receipts])


@through_both_hashings
@both_cuts
def test_an_append_that_is_cut_off_finds_its_event_behind_another_replicas(through: Through, cut: Cut) -> None:
    """The head has moved meanwhile, so the settling cannot stop at the head."""
    with server_on(through.valkey.url) as other, ThreadPoolExecutor(1) as thread:
        append_until_answered(other, "other's first")
        through.proxy.cut_next(cut, then_closed=True)
        answering = thread.submit(append_until_answered, through.server, "cut", 3)
        assert through.proxy.has_cut.wait(10)
        others = [append_until_answered(other, f"other {n}")[0] for n in range(3)]
        through.proxy.open()
        receipts = answering.result()
        known = [append(other, request).json() for request in ("first", "other's first")]
    check_only(through.valkey.url, [*known, *others, *receipts])


@pytest.mark.parametrize("through", [{"AUDIT_STREAM_ACK": "fsync,replicas=1"}], indirect=True, ids=str)
def test_a_producer_hears_in_time_when_redis_dies_while_a_replay_waits_for_replicas(through: Through) -> None:
    through.proxy.swallow_wait = True
    # No tighter than that: what fails here hangs for good.
    with httpx.Client(base_url=through.server.url, timeout=2 * HEARD_WITHIN_S, trust_env=False) as client:
        check_pushback(client.post("/events", json=body("first"), headers={"Idempotency-Key": "first"}))


def as_list(answer: httpx.Response) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] | dict[str, Any] = answer.json()
    return found if isinstance(found, list) else [found]


# --- Redis takes no writes


@contextmanager
def out_of_memory(client: "redis.Redis") -> Iterator[str]:
    client.config_set("maxmemory", 1)
    yield "out of memory"
    client.config_set("maxmemory", 0)


@contextmanager
def demoted(client: "redis.Redis") -> Iterator[str]:
    client.replicaof("127.0.0.1", 1)
    yield "read-only"
    client.replicaof("NO", "ONE")


@both_promises
@pytest.mark.parametrize("trouble", [out_of_memory, demoted])
def test_writes_are_refused_with_the_reason_while_reads_go_on(
    valkey: EmbeddedValkey, trouble: Callable[["redis.Redis"], Any], ack: str
) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(valkey.url))
        server = stack.enter_context(server_on(valkey.url, AUDIT_STREAM_ACK=ack))
        append(server, "before")  # written, even where a replica is promised and is not there
        with trouble(client) as reason:
            for size in (1, 3):
                check_pushback(append(server, "meanwhile", size), reason)
            assert server.get("/events/1").json()["payload"]["request"] == "before"
            assert len(server.get("/events").json()) == 1
            assert server.verify()["valid"]
        if ack == "fsync":
            append_until_answered(server, "before")
            append_until_answered(server, "meanwhile", 3)
        else:
            check_pushback(append(server, "meanwhile", 3), "only 0 of the promised 1")
        assert [event["payload"]["request"] for event in server.get("/events").json()] == ["before"] + ["meanwhile"] * 3
        assert server.verify()["valid"]


@both_promises
def test_a_damaged_chain_is_a_conflict_whatever_is_promised(valkey: EmbeddedValkey, ack: str) -> None:
    with redis.Redis.from_url(valkey.url) as client, server_on(valkey.url, AUDIT_STREAM_ACK=ack) as server:
        append(server, "before")
        client.xadd(f"{{{CHAIN}}}:events", {"not": "ours"}, "2-0")
        answer = append(server, "after")
        assert answer.status_code == 409, answer.text
        assert "EVALSHA" not in answer.text


# --- Redis forgets


@both_hashings
def test_killed_connections_and_flushed_scripts_lose_nothing(valkey: EmbeddedValkey, hashing: str) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(valkey.url))
        server = stack.enter_context(server_on(valkey.url, AUDIT_STREAM_HASHING=hashing))
        load = stack.enter_context(Load(*(Spec(name=f"producer-{n}", urls=[server.url]) for n in range(2))))
        cut = 0
        for _ in range(15):
            load.wait_for(3)
            cut += client.client_kill_filter(_type="normal")
            load.wait_for(3)
            client.script_flush()
        assert cut >= 15
        load.wait_for(10)
        check_load(valkey.url, CHAIN, load.finish())


# --- replicas


class Plain:
    """A server on TCP, as replicas need it; ended with the block."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        data_dir.mkdir()
        settings = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(data_dir), "--save", ""]
        settings += ["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"]
        self.process = subprocess.Popen(
            [str(find_server_binary()), *settings, *options], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        self.client = redis.Redis.from_url(self.url)

    def __enter__(self) -> "Plain":
        self.until(lambda: bool(self.client.ping()))
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process.poll() is None
            try:
                if holds():
                    return
            except redis.exceptions.ConnectionError:
                pass  # not listening, or still loading
        raise AssertionError("it does not come to hold")


def follow(replica: Plain, primary: Plain) -> None:
    replica.client.replicaof("127.0.0.1", str(primary.port))
    primary.until(lambda: any(key == "slave0" and value["state"] == "online" for key, value in _replication(primary)))


def _replication(server: Plain) -> Any:
    return server.client.info("replication").items()


def test_a_201_waits_for_the_promised_replica(tmp_path: Path) -> None:
    with ExitStack() as stack:
        primary = stack.enter_context(Plain(tmp_path / "primary"))
        replica = stack.enter_context(Plain(tmp_path / "replica"))
        server = stack.enter_context(server_on(primary.url, AUDIT_STREAM_ACK="fsync,replicas=1"))
        for _ in range(2):  # written by the first try; not promised by any
            check_pushback(append(server, "one"), "only 0 of the promised 1 replicas")
        assert server.get("/readyz").status_code == 503

        follow(replica, primary)
        receipts = append_until_answered(server, "one")
        answer = append(server, "two", 3)
        assert answer.status_code == 201
        receipts += answer.json()
        assert server.get("/readyz").status_code == 200
        check_only(replica.url, receipts)


def test_a_replay_is_not_answered_before_the_replica_holds_the_event(tmp_path: Path) -> None:
    """Also over a new connection, which has written nothing that a WAIT could speak of."""
    with ExitStack() as stack:
        primary = stack.enter_context(Plain(tmp_path / "primary"))
        replica = stack.enter_context(Plain(tmp_path / "replica"))
        follow(replica, primary)
        server = stack.enter_context(server_on(primary.url, AUDIT_STREAM_ACK="fsync,replicas=1"))
        receipts = append_until_answered(server, "one")
        with stopped(replica.process.pid):
            check_pushback(append(server, "two"), "only 0 of the promised 1 replicas")
            primary.client.client_kill_filter(_type="normal")
            check_pushback(append(server, "two"), "only 0 of the promised 1 replicas")
        receipts += append_until_answered(server, "two")
        check_only(replica.url, receipts)


def test_a_failed_over_chain_goes_on_where_the_replica_took_it(tmp_path: Path) -> None:
    """Promised to a replica, an event is there after the primary is gone for good."""
    with ExitStack() as stack:
        primary = stack.enter_context(Plain(tmp_path / "primary"))
        replica = stack.enter_context(Plain(tmp_path / "replica"))
        follow(replica, primary)
        with server_on(primary.url, AUDIT_STREAM_ACK="fsync,replicas=1") as server:
            receipts = [append_until_answered(server, f"request {n}")[0] for n in range(20)]
            os.kill(primary.process.pid, signal.SIGKILL)
            check_pushback(append(server, "lost"))
        replica.client.replicaof("NO", "ONE")
        with server_on(replica.url) as server:
            receipts += append_until_answered(server, "lost")
            check_only(replica.url, receipts)
