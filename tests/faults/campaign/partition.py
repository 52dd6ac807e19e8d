"""A primary, replicas and sentinels on a network that can be cut in two: every way leads through a proxy."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults.campaign.valkey import Valkey
from tests.faults.proxy import Proxy, proxy_to
from tests.sentinels import Sentinel, Watched, a_sentinel

SERVERS = 3
SENTINELS = 3
DOWN_AFTER_MS = 1000


class Partition:
    """One sentinel stands on the side of the primary of the moment, the others on the side of the replicas."""

    def __init__(self, watched: Watched, ways: list[Proxy], way_to_sentinel: Proxy) -> None:
        self.watched = watched
        self._ways, self._way_to_sentinel = ways, way_to_sentinel
        *self._others, self._lonely = watched.sentinels
        self.primary = watched.servers[0]

    def cut(self) -> None:
        """The primary keeps its clients and one sentinel, and loses its replicas and the other sentinels.

        What the two sides say to each other is dropped without a word.
        """
        for server, way in zip(self.watched.servers, self._ways, strict=True):
            if server is self.primary:
                way.cut_off(b"PSYNC", *(sentinel.client_name for sentinel in self._others))
            else:
                way.cut_off(self._lonely.client_name)
        self._way_to_sentinel.cut_off(b"sentinel-")

    def promoted(self) -> tuple[Valkey, Valkey]:
        """Wait until the other side has a primary of its own that a replica follows; return the old and the new."""
        old = self.primary
        self.primary = self.watched.promoted_after(old, seen_by=self._others)
        self.primary.until(lambda: self.primary.replicas() == SERVERS - 2)
        return old, self.primary

    def still_believed(self) -> bool:
        """Whether the lonely sentinel still names another primary than the others do."""
        return self._lonely.view()["port"] != self._others[0].view()["port"]

    def heal(self, old: Valkey) -> None:
        """Join the two sides; the old primary becomes a replica, as the sentinels would have it after a while."""
        for way in (*self._ways, self._way_to_sentinel):
            way.cut_off()
        old.client.replicaof("127.0.0.1", self.primary.announced)
        self.primary.until(lambda: self.primary.replicas() == SERVERS - 1)
        self.watched.ready()


@contextmanager
def a_partition(folder: Path) -> Iterator[Partition]:
    with ExitStack() as stack:
        servers: list[Valkey] = []
        ways: list[Proxy] = []
        for number in range(SERVERS):
            server = Valkey(folder / f"server-{number}", replica_of=servers[0] if servers else None)
            ways.append(stack.enter_context(proxy_to(server.url)))
            server.announced = ways[-1].port
            servers.append(stack.enter_context(server))
        sentinels: list[Sentinel] = []
        for number in range(SENTINELS):
            quorum = SENTINELS // 2 + 1
            at = folder / f"sentinel-{number}"
            sentinel = a_sentinel(at, servers[0].announced, quorum=quorum, down_after_ms=DOWN_AFTER_MS)
            if number == SENTINELS - 1:
                way_to_sentinel = stack.enter_context(proxy_to(f"redis://127.0.0.1:{sentinel.port}"))
                sentinel.announce(way_to_sentinel.port)
            sentinels.append(stack.enter_context(sentinel))
        watched = Watched(servers, sentinels)
        watched.ready()
        yield Partition(watched, ways, way_to_sentinel)
