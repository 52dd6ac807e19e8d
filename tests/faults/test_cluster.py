"""A chain in a Redis cluster: its slot moves while it is written, read and followed."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from audit_stream.errors import Denied, Misconfigured, Unreachable
from audit_stream.settings import Settings
from audit_stream.spine import check
from audit_stream.stream import Stream
from tests.cluster import Cluster, a_cluster, slot_of, until
from tests.e2e.terminal import run
from tests.faults.campaign.valkey import Valkey
from tests.faults.evidence import check_load, check_sound
from tests.faults.load import Load, Spec
from tests.harness import ServerProcess, running_server

pytestmark = pytest.mark.anyio

EVENT = {"kind": "other", "source": "s"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with a_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def server_on(cluster: Cluster, chain: str) -> Any:
    return running_server(AUDIT_STREAM_REDIS_URL=cluster.url, AUDIT_STREAM_CHAIN=chain)


def url_of_owner(cluster: Cluster, chain: str) -> str:
    return f"redis://{cluster.owner(chain).address}"


class Follower(threading.Thread):
    """Reads GET /stream on one connection, from the first event on."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__()
        self._server, self.ids = server, list[int]()
        self._news = threading.Condition()

    def run(self) -> None:
        try:
            with httpx.stream("GET", f"{self._server.url}/stream?after=0", timeout=30) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        with self._news:
                            self.ids.append(json.loads(line.removeprefix("data: "))["event_id"])
                            self._news.notify_all()
        except httpx.TransportError:
            pass

    def wait_for(self, event_id: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: bool(self.ids) and self.ids[-1] >= event_id, 30), self.ids[-3:]


@contextmanager
def following(server: ServerProcess) -> Iterator[Follower]:
    """It ends with its server."""
    follower = Follower(server)
    follower.start()
    yield follower
    server.stop()
    follower.join()


def test_a_slot_that_moves_under_load_loses_nothing_doubles_nothing_and_readers_go_on(
    cluster: Cluster, chain: str
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(server_on(cluster, chain))
        follower = stack.enter_context(following(server))
        specs = [Spec(name=f"producer-{n}", urls=[server.url], tasks=4, largest=10) for n in range(2)]
        load = stack.enter_context(Load(*specs))
        load.wait_for(20)
        for _ in range(3):
            cluster.move(chain, cluster.other(chain))
            load.wait_for(20)
        events = check_load(url_of_owner(cluster, chain), chain, load.finish())
        follower.wait_for(len(events))
    assert follower.ids == list(range(1, len(events) + 1))


def test_while_the_slot_moves_appends_are_pushed_back_and_queries_answered(cluster: Cluster, chain: str) -> None:
    with server_on(cluster, chain) as server:
        first = server.post(EVENT).json()
        with cluster.moving(chain, cluster.other(chain)) as move:
            for key in ("events", "time"):  # first some keys are at the one node, then nearly all at the other
                refused = server.post(EVENT, **{"Idempotency-Key": key})
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                assert "the Redis cluster is moving the chain's slot to another node" in refused.json()["detail"]
                move.keys(f"{{{chain}}}:{key}")
                assert server.get("/events/1").json() == first
                assert server.get("/events?source=s").json() == [first]
        until(cluster.nodes, lambda: server.post(EVENT, **{"Idempotency-Key": "events"}).status_code == 201)
        assert server.post(EVENT, **{"Idempotency-Key": "events"}).status_code == 200
    assert len(check_sound(url_of_owner(cluster, chain), chain)) == 2


async def test_a_reader_and_a_writer_follow_a_slot_that_moved_while_they_rested(cluster: Cluster, chain: str) -> None:
    stream = Stream.at(cluster.url, chain)
    try:
        assert await stream.type_of(stream.keys.events) == "none"
        await stream.rebuilding.fill([(stream.keys.kind(b"other"), b"1-0")], kept_s=60)
        assert not await stream.follow_owner()
        cluster.move(chain, cluster.other(chain))
        assert await stream.indexes.find_keys() == [stream.keys.kind(b"other")]
        assert await stream.type_of(stream.keys.kind(b"other")) == "stream"
        await stream.rebuilding.drop([stream.keys.kind(b"other")])
        assert await stream.type_of(stream.keys.kind(b"other")) == "none"
        cluster.move(chain, cluster.other(chain))
        assert await stream.type_of(stream.keys.events) == "none"
        assert await stream.follow_owner()  # the writing client was still connected to the node of before
        assert not await stream.follow_owner()
    finally:
        await stream.close()


async def test_one_node_of_the_cluster_that_is_reachable_is_enough(cluster: Cluster, chain: str) -> None:
    owner = cluster.owner(chain)
    for node in cluster.nodes:
        stream = Stream.at(f"redis+cluster://127.0.0.1:1,{node.address}", chain)
        try:
            assert (await stream.facts())["tcp_port"] == str(owner.port)
        finally:
            await stream.close()


# --- the wrong address


async def refusal_of(url: str, chain: str) -> str:
    settings = Settings.from_env({"AUDIT_STREAM_REDIS_URL": url, "AUDIT_STREAM_CHAIN": chain})
    stream = Stream.at(url, chain)
    try:
        with pytest.raises(Misconfigured) as caught:
            await check(stream, settings)
        assert isinstance(caught.value.__cause__, Denied)  # at once: it did not wait for anything to change
    finally:
        await stream.close()
    return str(caught.value)


async def test_a_plain_address_of_a_node_that_does_not_own_the_slot_names_the_address_to_write(
    cluster: Cluster, chain: str
) -> None:
    refusal = await refusal_of(f"redis://{cluster.other(chain).address}", chain)
    assert f"does not own the chain's slot, {cluster.owner(chain).address} does" in refusal
    assert "redis+cluster://" in refusal


def test_doctor_takes_a_wrong_node_for_no_damage_of_the_chain(cluster: Cluster, chain: str) -> None:
    done = run("doctor", "--redis-url", f"redis://{cluster.other(chain).address}", "--chain", chain)
    assert done.returncode == 1
    assert b"redis+cluster://" in done.stdout
    assert b"Find out who changed it" not in done.stdout
    assert run("doctor", "--redis-url", cluster.url, "--chain", chain).returncode == 0


async def test_a_cluster_address_of_a_server_that_is_in_no_cluster_is_refused(tmp_path: Path, chain: str) -> None:
    with Valkey(tmp_path / "single") as single:
        where = f"127.0.0.1:{single.port}"
        refusal = await refusal_of(f"redis+cluster://{where}", chain)
        assert f"the server at {where} does not belong to a cluster: write its address as redis://{where}" in refusal
        assert single.client.dbsize() == 0


async def test_a_cluster_of_which_nobody_answers_is_unavailable_and_named(chain: str) -> None:
    stream = Stream.at("redis+cluster://127.0.0.1:1,127.0.0.1:2", chain)
    with pytest.raises(Unreachable, match=r"no node of the Redis cluster answers at 127.0.0.1:1, 127.0.0.1:2"):
        await stream.facts()
    await stream.close()


def test_a_slot_that_nobody_serves_is_said_and_appends_resume_when_it_is_served_again(
    cluster: Cluster, chain: str
) -> None:
    with server_on(cluster, chain) as server:
        assert server.post(EVENT).status_code == 201
        owner, slot = cluster.owner(chain), slot_of(chain)
        # Otherwise a node that misses one slot serves none, and seconds longer than it misses it.
        owner.client.config_set("cluster-require-full-coverage", "no")
        owner.cluster("DELSLOTS", slot)
        refused = server.post(EVENT)
        assert refused.status_code == 503
        assert "the Redis cluster is down, or this node is cut off from it" in refused.json()["detail"]
        owner.cluster("ADDSLOTS", slot)
        until(cluster.nodes, lambda: server.post(EVENT).status_code == 201)
    assert len(check_sound(url_of_owner(cluster, chain), chain)) == 2
