"""Ready means that an append would succeed: /readyz, the metric and doctor agree with what a POST gets, in each state.

Each state is named by every witness within ten seconds, and so is its end.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from tests.cluster import a_cluster
from tests.e2e.terminal import run
from tests.faults.campaign.valkey import Valkey
from tests.faults.proxy import proxy_to
from tests.harness import ServerProcess, running_server

CHAIN = "ready"
WITHIN_S = 10.0
State = Callable[["redis.Redis"], Any]


class Site(NamedTuple):
    admin: Any
    url: str
    """With the user whose rights a test may change."""
    server: ServerProcess


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        valkey = stack.enter_context(Valkey(tmp_path_factory.mktemp("ready") / "primary"))
        valkey.client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
        url = valkey.url.replace("//", "//app:secret@")
        server = stack.enter_context(server_on(url))
        yield Site(valkey.client, url, server)


def server_on(url: str) -> Any:
    return running_server(AUDIT_STREAM_REDIS_URL=url, AUDIT_STREAM_CHAIN=CHAIN, AUDIT_STREAM_VERIFY_EVERY="off")


@contextmanager
def set_to(admin: Any, **settings: str) -> Iterator[None]:
    names = {name.replace("_", "-"): value for name, value in settings.items()}
    before = {name: admin.config_get(name)[name] for name in names}
    for name, value in names.items():
        admin.config_set(name, value)
    try:
        yield
    finally:
        for name, value in reversed(before.items()):
            admin.config_set(name, value)


@contextmanager
def without_xadd(admin: Any) -> Iterator[None]:
    admin.execute_command("ACL", "SETUSER", "app", "-xadd")
    try:
        yield
    finally:
        admin.execute_command("ACL", "SETUSER", "app", "+xadd")


@contextmanager
def cut(admin: Any) -> Iterator[None]:
    """The newest event is gone; what is left of it is what Redis keeps of its id, and what the server remembers."""
    events = f"{{{CHAIN}}}:events"
    [(entry_id, fields)] = admin.xrevrange(events, count=1)
    admin.xdel(events, entry_id)
    try:
        yield
    finally:
        # As a backup would bring it back: the last id must be lower again before the entry can be added.
        saved = [(key, value) for key, value in admin.xrange(events)]
        admin.delete(events)
        for key, value in [*saved, (entry_id, fields)]:
            admin.xadd(events, value, id=key)


STATES: dict[str, tuple[State, tuple[str, ...]]] = {
    "maxmemory": (lambda admin: set_to(admin, maxmemory="1"), ("out of memory", "maxmemory")),
    "appendfsync": (
        lambda admin: set_to(admin, appendfsync="everysec"),
        ("appendfsync", "everysec", "CONFIG SET appendfsync always"),
    ),
    "appendonly": (
        lambda admin: set_to(admin, appendonly="no"), ("appendonly", "CONFIG SET appendonly yes"),
    ),
    "eviction": (
        lambda admin: set_to(admin, maxmemory="1gb", maxmemory_policy="allkeys-lru"),
        ("maxmemory-policy", "allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
    ),
    "too few replicas": (
        lambda admin: set_to(admin, min_replicas_to_write="1"), ("min-replicas-to-write", "replicas"),
    ),
    "a command denied": (without_xadd, ("xadd", "ACL SETUSER app +xadd")),
    "chain cut": (cut, ("chain ends at event #", "was written", "audit-stream accept-loss")),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_every_witness_agrees_with_what_a_post_gets(site: Site, name: str) -> None:
    state, words = STATES[name]
    assert site.server.post(an_event()).status_code == 201
    with state(site.admin):
        if name != "appendfsync":  # which the server has to find out by itself
            assert site.server.get("/readyz").status_code == 503
        answer = eventually(site.server, lambda status: status != 201)
        assert answer.status_code == (409 if name == "chain cut" else 503)
        ready, told = witnesses(site, ready=False)
        assert ready == {"readyz": False, "metric": False, "doctor --url": False, "doctor --redis-url": False}
        for word in words:
            assert all(word in text for text in told.values()), (word, told)
        assert site.server.verify()["valid"] == (name != "chain cut")
        assert site.server.get("/stats").status_code == 200
        assert site.server.get("/events?kind=other&limit=1").status_code == 200
    eventually(site.server, lambda status: status == 201)
    assert site.server.verify()["valid"]
    assert site.server.get("/readyz").status_code == 200


def an_event() -> dict[str, Any]:
    return {"kind": "other", "source": "ready", "payload": {}}


def eventually(server: ServerProcess, holds: Callable[[int], bool]) -> Any:
    """The first answer to a POST of which that holds."""
    deadline = time.monotonic() + WITHIN_S
    while not holds((answer := server.post(an_event())).status_code):
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return answer


def witnesses(site: Site, *, ready: bool) -> tuple[dict[str, bool], dict[str, str]]:
    """Whether each takes the server for ready, and what those that give reasons say, after the time they may take."""
    deadline = time.monotonic() + WITHIN_S
    while (readyz := site.server.get("/readyz")).is_success != ready and time.monotonic() < deadline:
        time.sleep(0.05)
    metric = re.search(r"^audit_stream_ready (\S+)", site.server.get("/metrics").text, re.M)
    assert metric
    by_server = run("doctor", "--json", url=site.server.url)
    by_redis = run("doctor", "--json", "--redis-url", site.url, AUDIT_STREAM_CHAIN=CHAIN)
    found = {
        "readyz": readyz.is_success,
        "metric": float(metric[1]) == 1,
        "doctor --url": by_server.returncode == 0,
        "doctor --redis-url": by_redis.returncode == 0,
    }
    told = {"readyz": readyz.text, "doctor --url": by_server.stdout.decode()}
    return found, told | {"doctor --redis-url": by_redis.stdout.decode()}


def test_a_promoted_replica_without_a_log_gets_no_append(tmp_path: Path) -> None:
    """Not even the first one: what a server is, it says before an append goes over its connection."""
    with ExitStack() as stack:
        primary = stack.enter_context(Valkey(tmp_path / "primary"))
        replica = stack.enter_context(Valkey(tmp_path / "replica", replica_of=primary, appendonly="no"))
        proxy = stack.enter_context(proxy_to(primary.url))
        server = stack.enter_context(server_on(proxy.url))
        assert server.post(an_event()).status_code == 201
        replica.until(lambda: replica.client.xlen(f"{{{CHAIN}}}:events") == 1)
        primary.kill()
        replica.client.replicaof("NO", "ONE")
        proxy.redirect(replica.url)
        deadline = time.monotonic() + WITHIN_S
        while "appendonly is no" not in (answer := server.post(an_event())).text:
            assert (answer.status_code, time.monotonic() < deadline) == (503, True), answer.text
        assert answer.status_code == 503
        assert replica.client.xlen(f"{{{CHAIN}}}:events") == 1
        assert "CONFIG SET appendonly yes" in server.get("/readyz").text


def test_a_slot_that_has_moved_is_named_with_the_form_of_address_that_follows_it(tmp_path: Path) -> None:
    with a_cluster(tmp_path) as cluster:
        owner = cluster.owner(CHAIN)
        with server_on(f"redis://{owner.address}") as server:
            assert server.post(an_event()).status_code == 201
            cluster.move(CHAIN, cluster.other(CHAIN))
            answer = eventually(server, lambda status: status != 201)
            assert answer.status_code == 503
            for text in (answer.text, server.get("/readyz").text, run("doctor", url=server.url).stdout.decode()):
                assert "redis+cluster://" in text
            assert server.get("/readyz").status_code == 503
