"""Redis away, hung, full, demoted, or cut off in the middle of an answer: what clients hear, and what is stored."""

import json
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
CUTS = ("before", "after")
HASHINGS = ("checked", "script")


class Site(NamedTuple):
    """One Valkey, and servers on it: they write one chain."""

    valkey: EmbeddedValkey
    server: ServerProcess
    proxy: Proxy
    through: ServerProcess
    """It reaches its Redis through the proxy."""


@pytest.fixture(scope="module", params=HASHINGS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        hashing = {"AUDIT_STREAM_HASHING": str(request.param)}
        valkey = stack.enter_context(EmbeddedValkey(tmp_path_factory.mktemp("site")))
        server = stack.enter_context(server_on(valkey.url, **hashing))
        proxy = stack.enter_context(proxy_to(valkey.url))
        through = stack.enter_context(server_on(proxy.url, **hashing))
        yield Site(valkey, server, proxy, through)


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """The site of this hashing, in order: every test leaves it so, also when it fails."""
    yield shared
    shared.proxy.cut_next()
    shared.proxy.open()


def server_on(redis_url: str, **settings: str) -> Any:
    return running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=CHAIN, **settings)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "data") as running:
        yield running


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


def check_stored(redis_url: str, receipts: dict[str, list[dict[str, Any]]]) -> None:
    """The chain is sound, and of each of these requests it holds what its receipts say and nothing else."""
    events = check_sound(redis_url, CHAIN)
    for request, of_request in receipts.items():
        held = [event.event_id for event in events if json.loads(event.payload)["request"] == request]
        assert held == [receipt["event_id"] for receipt in of_request]
        assert held == list(range(held[0], held[0] + len(held)))
        check_receipts(events, of_request)


# --- away, and hung


@contextmanager
def killed(valkey: EmbeddedValkey) -> Iterator[None]:
    kill_valkey(valkey)
    try:
        yield
    finally:
        valkey.start()


@contextmanager
def hung(valkey: EmbeddedValkey) -> Iterator[None]:
    with stopped(valkey.pid):
        yield


@pytest.mark.parametrize("outage", [killed, hung])
def test_clients_hear_in_time_that_redis_is_away_and_the_server_resumes(
    site: Site, outage: Callable[[EmbeddedValkey], Any]
) -> None:
    before, meanwhile, after = (f"{when} it is {outage.__name__}" for when in ("before", "while", "after"))
    receipts = {before: append_until_answered(site.server, before)}
    with outage(site.valkey):
        check_heard_in_time(site.server, [("/events", meanwhile), *((path, "") for path in READS)])
    # The same key: whether the first try landed when a hung Redis woke is nothing that a client must know.
    receipts[meanwhile] = append_until_answered(site.server, meanwhile)
    receipts[after] = append_until_answered(site.server, after, size=3)
    while (answer := site.server.get("/readyz")).status_code != 200:
        check_pushback(answer)  # the live tail comes back by itself
    assert append(site.server, meanwhile).headers["idempotent-replayed"] == "true"
    check_stored(site.valkey.url, receipts)


def test_many_readers_hear_in_time_that_redis_hangs(site: Site) -> None:
    """More of them than there are connections to Redis."""
    with stopped(site.valkey.pid):
        check_heard_in_time(site.server, [("/events", "")] * 48)
    assert site.server.get("/events").status_code == 200


# --- cut off in the middle


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("size", [1, 40])
def test_an_append_that_is_cut_off_is_answered_and_stored_once(site: Site, cut: Cut, size: int) -> None:
    request = f"{size} cut {cut}"
    site.proxy.cut_next(cut)
    answer = append(site.through, request, size)
    assert site.proxy.has_cut.is_set()
    assert answer.status_code == 201, answer.text
    check_stored(site.valkey.url, {request: answer.json() if size > 1 else [answer.json()]})


@pytest.mark.parametrize("cut", CUTS)
def test_an_append_without_a_key_that_is_cut_off_again_and_again_is_stored_once(site: Site, cut: Cut) -> None:
    request = f"without a key, cut {cut}"
    site.proxy.cut_next(cut, cut, cut)
    answer = site.through.post(body(request))
    assert answer.status_code == 201, answer.text
    check_stored(site.valkey.url, {request: [answer.json()]})


@pytest.mark.parametrize("cut", CUTS)
def test_an_append_in_doubt_at_the_deadline_is_stored_once_under_its_key(site: Site, cut: Cut) -> None:
    request = f"in doubt, cut {cut}"
    site.proxy.cut_next(cut, then_closed=True)
    check_pushback(append(site.through, request, 3), "under the same idempotency key")
    site.proxy.open()
    check_stored(site.valkey.url, {request: append_until_answered(site.through, request, 3)})


@pytest.mark.parametrize("cut", CUTS)
def test_an_append_that_is_cut_off_finds_its_events_behind_another_replicas(site: Site, cut: Cut) -> None:
    """The head has moved meanwhile, so the settling cannot stop at the head."""
    request = f"overtaken, cut {cut}"
    receipts = {}
    with ThreadPoolExecutor(1) as thread:
        site.proxy.cut_next(cut, then_closed=True)
        answering = thread.submit(append_until_answered, site.through, request, 3)
        assert site.proxy.has_cut.wait(10)
        for n in range(3):
            receipts[f"{n} {request}"] = append_until_answered(site.server, f"{n} {request}")
        site.proxy.open()
        receipts[request] = answering.result()
    check_stored(site.valkey.url, receipts)


# --- Redis takes no writes


@contextmanager
def out_of_memory(client: "redis.Redis") -> Iterator[str]:
    client.config_set("maxmemory", 1)
    try:
        yield "out of memory"
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def demoted(client: "redis.Redis") -> Iterator[str]:
    client.replicaof("127.0.0.1", 1)
    try:
        yield "a replica"
    finally:
        client.replicaof("NO", "ONE")


@pytest.mark.parametrize("trouble", [out_of_memory, demoted])
def test_writes_are_refused_with_the_reason_while_reads_go_on(
    site: Site, trouble: Callable[["redis.Redis"], Any]
) -> None:
    request = f"while it is {trouble.__name__}"
    receipts = {f"not {request}": append_until_answered(site.server, f"not {request}")}
    with redis.Redis.from_url(site.valkey.url) as client, trouble(client) as reason:
        for size in (1, 3):
            check_pushback(append(site.server, request, size), reason)
        newest = site.server.get("/events?limit=1").json()
        assert newest == receipts[f"not {request}"]
        assert site.server.get(f"/events/{newest[0]['event_id']}").json() == newest[0]
        assert site.server.verify()["valid"]
    receipts[request] = append_until_answered(site.server, request, 3)
    check_stored(site.valkey.url, receipts)


def test_a_promise_of_replicas_hides_no_other_reason(pair: "Pair") -> None:
    client = pair.primary.client
    with server_on(pair.primary.url, AUDIT_STREAM_ACK="fsync,replicas=1") as server, stopped(pair.replica.process.pid):
        check_pushback(append(server, "one"), "only 0 of the promised 1 replicas")
        with out_of_memory(client) as reason:
            check_pushback(append(server, "two"), reason)
        client.xadd(f"{{{CHAIN}}}:events", {"not": "ours"}, "2-0")
        answer = append(server, "three")
        assert answer.status_code == 409, answer.text
        assert "EVALSHA" not in answer.text


@pytest.mark.parametrize("waits_answered", [0, 1])
def test_a_producer_hears_in_time_when_redis_dies_while_a_replay_waits_for_replicas(
    pair: "Pair", waits_answered: int
) -> None:
    with (
        stopped(pair.replica.process.pid),
        proxy_to(pair.primary.url) as proxy,
        server_on(proxy.url, AUDIT_STREAM_ACK="fsync,replicas=1") as server,
    ):
        check_pushback(append(server, "first"), "only 0 of the promised 1 replicas")
        proxy.waits_answered = waits_answered
        try:
            # No tighter than that: what fails here hangs for good.
            with httpx.Client(base_url=server.url, timeout=2 * HEARD_WITHIN_S, trust_env=False) as client:
                check_pushback(client.post("/events", json=body("first"), headers={"Idempotency-Key": "first"}))
        finally:
            proxy.close()  # before the server: whatever it still waits for ends now


# --- Redis forgets


@pytest.mark.parametrize("hashing", HASHINGS)
def test_killed_connections_and_flushed_scripts_lose_nothing(valkey: EmbeddedValkey, hashing: str) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(valkey.url))
        server = stack.enter_context(server_on(valkey.url, AUDIT_STREAM_HASHING=hashing))
        load = stack.enter_context(Load(*(Spec(name=f"producer-{n}", urls=[server.url]) for n in range(2))))
        for _ in range(15):
            # Answers of before the last cut may still come in while no connection has been opened again.
            while not client.client_kill_filter(_type="normal"):
                load.wait_for(1)
            load.wait_for(3)
            client.script_flush()
            load.wait_for(3)
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
    """Until what the primary writes is on the replica's disk: at first it is busy with writing its first copy there."""
    replica.client.replicaof("127.0.0.1", str(primary.port))
    primary.client.set("follow", "me")
    primary.until(lambda: bool(primary.client.execute_command("WAITAOF", 1, 1, 100)[1]))


class Pair(NamedTuple):
    primary: Plain
    replica: Plain


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Plain(tmp_path / "primary") as primary, Plain(tmp_path / "replica") as replica:
        follow(replica, primary)
        yield Pair(primary, replica)


def test_a_201_waits_for_the_promised_replica(tmp_path: Path) -> None:
    with ExitStack() as stack:
        primary = stack.enter_context(Plain(tmp_path / "primary"))
        replica = stack.enter_context(Plain(tmp_path / "replica"))
        server = stack.enter_context(server_on(primary.url, AUDIT_STREAM_ACK="fsync,replicas=1"))
        check_pushback(append(server, "one"), "replicas is 0, should be 1 or more", "nothing was written")
        assert not primary.client.exists(f"{{{CHAIN}}}:events")
        assert server.get("/readyz").status_code == 503

        follow(replica, primary)
        one = append_until_answered(server, "one")
        answer = append(server, "two", 3)
        assert answer.status_code == 201
        assert server.get("/readyz").status_code == 200
        check_stored(replica.url, {"one": one, "two": answer.json()})


def test_with_fsync_a_replica_counts_when_the_event_is_on_its_disk(tmp_path: Path) -> None:
    """WAIT would count it as soon as it is in its memory."""
    with ExitStack() as stack:
        primary = stack.enter_context(Plain(tmp_path / "primary"))
        replica = stack.enter_context(Plain(tmp_path / "replica"))
        follow(replica, primary)
        server = stack.enter_context(server_on(primary.url, AUDIT_STREAM_ACK="fsync,replicas=1"))
        append_until_answered(server, "on both disks")
        replica.client.config_set("appendonly", "no")
        check_pushback(append(server, "in its memory alone"), "only 0 of the promised 1 replicas")
        replica.until(lambda: replica.client.xlen(f"{{{CHAIN}}}:events") == 2)
        replica.client.config_set("appendonly", "yes")
        append_until_answered(server, "in its memory alone")


def test_a_replay_is_not_answered_before_the_replica_holds_the_event(tmp_path: Path) -> None:
    """Also over a new connection, which has written nothing that a WAIT could speak of."""
    with ExitStack() as stack:
        primary = stack.enter_context(Plain(tmp_path / "primary"))
        replica = stack.enter_context(Plain(tmp_path / "replica"))
        follow(replica, primary)
        server = stack.enter_context(server_on(primary.url, AUDIT_STREAM_ACK="fsync,replicas=1"))
        append_until_answered(server, "one")
        with stopped(replica.process.pid):
            check_pushback(append(server, "two"), "only 0 of the promised 1 replicas")
            primary.client.client_kill_filter(_type="normal")
            check_pushback(append(server, "two"), "only 0 of the promised 1 replicas")
        check_stored(replica.url, {"two": append_until_answered(server, "two")})


def test_a_failed_over_chain_goes_on_where_the_replica_took_it(tmp_path: Path) -> None:
    """Promised to a replica, an event is there after the primary is gone for good."""
    with ExitStack() as stack:
        primary = stack.enter_context(Plain(tmp_path / "primary"))
        replica = stack.enter_context(Plain(tmp_path / "replica"))
        follow(replica, primary)
        with server_on(primary.url, AUDIT_STREAM_ACK="fsync,replicas=1") as server:
            receipts = {name: append_until_answered(server, name) for name in map(str, range(20))}
            os.kill(primary.process.pid, signal.SIGKILL)
            check_pushback(append(server, "lost"))
        replica.client.replicaof("NO", "ONE")
        with server_on(replica.url) as server:
            receipts["lost"] = append_until_answered(server, "lost")
            check_stored(replica.url, receipts)
