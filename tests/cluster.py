"""A real Redis cluster: masters on free loopback ports, and a slot that moves between them while it is used."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import redis
from redis.crc import key_slot

from audit_stream.embedded import find_server_binary
from tests.faults.processes import free_port

SLOTS = 16384
PATIENCE_S = 30


class Node:
    """One valkey-server in cluster mode."""

    def __init__(self, folder: Path, **options: str) -> None:
        self.folder = folder
        self.port, self.bus_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.client = redis.Redis(port=self.port, protocol=2, socket_timeout=10)
        self._options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "cluster-enabled": "yes",
            "cluster-port": str(self.bus_port),
            "cluster-node-timeout": "2000",
            "cluster-config-file": "nodes.conf",
            "dir": str(folder),
            "logfile": str(folder / "valkey.log"),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
        } | {name.replace("_", "-"): value for name, value in options.items()}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start it on the data it has, without waiting for it to answer."""
        command = [str(find_server_binary())]
        for name, value in self._options.items():
            command += [f"--{name}", value]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def cluster(self, *words: object) -> Any:
        """Send a CLUSTER command; return the reply as it came."""
        connection = self.client.connection_pool.get_connection()
        try:
            connection.send_command("CLUSTER", *words)
            reply = connection.read_response()
        finally:
            self.client.connection_pool.release(connection)
        return reply.decode() if isinstance(reply, bytes) else reply

    @property
    def node_id(self) -> str:
        return str(self.cluster("MYID"))


class Cluster:
    """Masters that own a part of the slots each."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.nodes)

    def owner(self, chain: str) -> Node:
        """The node that owns the chain's slot, as the nodes agree."""
        slot = slot_of(chain)
        for first, last, master, *_ in self.nodes[0].cluster("SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise AssertionError(f"nobody owns slot {slot}")

    def other(self, chain: str) -> Node:
        """A node that does not own it."""
        owner = self.owner(chain)
        return next(node for node in self.nodes if node is not owner)

    @contextmanager
    def moving(self, chain: str, target: Node) -> Iterator["Move"]:
        """Begin to move the chain's slot; its keys move when told, the slot itself with the end of the block."""
        move = Move(self, slot_of(chain), self.owner(chain), target)
        move.begin()
        yield move
        move.finish()

    def move(self, chain: str, target: Node) -> None:
        """Move the chain's slot with all its keys."""
        with self.moving(chain, target):
            pass


class Move:
    """A slot on its way. In between, keys are at one node or at the other."""

    def __init__(self, cluster: Cluster, slot: int, source: Node, target: Node) -> None:
        self._cluster, self._slot = cluster, slot
        self.source, self.target = source, target

    def begin(self) -> None:
        self.target.cluster("SETSLOT", self._slot, "IMPORTING", self.source.node_id)
        self.source.cluster("SETSLOT", self._slot, "MIGRATING", self.target.node_id)

    def keys(self, *only: str) -> None:
        """Move these keys, or all that are there."""
        keys = [key.encode() for key in only] or self.source.cluster("GETKEYSINSLOT", self._slot, 100)
        while keys:
            self.source.client.execute_command("MIGRATE", "127.0.0.1", self.target.port, "", 0, 10_000, "KEYS", *keys)
            keys = [] if only else self.source.cluster("GETKEYSINSLOT", self._slot, 100)

    def finish(self) -> None:
        self.keys()
        # The target first: a source that gives the slot away before would send everybody in a circle.
        for node in (self.target, self.source, *self._cluster.nodes):
            node.cluster("SETSLOT", self._slot, "NODE", self.target.node_id)


def slot_of(chain: str) -> int:
    return key_slot(b"{%b}" % chain.encode())


@contextmanager
def a_cluster(folder: Path, *, masters: int = 3, **options: str) -> Iterator[Cluster]:
    """Start a cluster and wait until all its nodes agree on who owns what; `options` are valkey.conf's."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(Node(folder / f"node-{n}", **options)) for n in range(masters)]
        until(nodes, lambda: all(node.client.ping() for node in nodes))
        for n, node in enumerate(nodes):
            node.cluster("ADDSLOTSRANGE", SLOTS * n // masters, SLOTS * (n + 1) // masters - 1)
            node.cluster("SET-CONFIG-EPOCH", n + 1)
            for known in nodes[:n]:
                node.cluster("MEET", "127.0.0.1", known.port, known.bus_port)
        until(nodes, lambda: all(_agrees(node, masters) for node in nodes))
        yield Cluster(nodes)


def _agrees(node: Node, masters: int) -> bool:
    lines = node.cluster("INFO").split()
    return {"cluster_state:ok", f"cluster_known_nodes:{masters}", f"cluster_size:{masters}"} <= set(lines)


def until(nodes: list[Node], holds: Callable[[], bool]) -> None:
    """Wait until it holds; fail when a node ends, or after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for node in nodes:
            ended = node.process.poll()
            assert ended is None, f"a node ended: {(node.folder / 'valkey.log').read_text()[-600:]}"
        try:
            if holds():
                return
        except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
            pass
        time.sleep(0.01)
    raise AssertionError("the cluster does not come together")
