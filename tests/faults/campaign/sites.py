"""The kinds of sites: which Redis holds the chain, and how the servers reach it."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from audit_stream.chain import Event
from tests.cluster import Cluster, a_cluster
from tests.faults.campaign.partition import Partition, a_partition
from tests.faults.campaign.readers import Reader
from tests.faults.campaign.site import CHAIN, GOES_ON, HASHINGS, Kind, Site, allow_open_files
from tests.faults.campaign.valkey import Valkey
from tests.faults.proxy import proxy_to

USER = "app"
"""The servers' user. It has every right, until a fault takes one away."""


class OneSite(Site):
    """One Valkey behind proxies, and a 201 that means fsync."""

    def _start_redis(self, stack: ExitStack) -> list[str]:
        self.primary = self._valkey("primary", stack)
        self.proxies = [stack.enter_context(proxy_to(self.primary.url)) for _ in HASHINGS]
        return [proxy.url.replace("redis://", f"redis://{USER}:secret@") for proxy in self.proxies]

    def _valkey(self, name: str, stack: ExitStack, replica_of: Valkey | None = None) -> Valkey:
        return stack.enter_context(
            Valkey(self.disk / name, replica_of=replica_of, user=f"{USER} on >secret ~* &* +@all")
        )

    @property
    def chain_url(self) -> str:
        return self.primary.url

    def head(self) -> int:
        newest: Any = self.primary.client.xrevrange(f"{{{CHAIN}}}:events", count=1)
        return int(newest[0][0].partition(b"-")[0])


class PairSite(OneSite):
    """A primary and its replica, and a 201 that means that both hold the event."""

    ack = "fsync,replicas=1"
    _failed_over = False
    """Since all readers were last seen to follow."""

    def _start_redis(self, stack: ExitStack) -> list[str]:
        addresses = super()._start_redis(stack)
        self.replica = self._valkey("replica", stack, replica_of=self.primary)
        return addresses

    def promote(self) -> None:
        """The replica becomes the primary that everyone is led to; the dead one comes back as its replica."""
        self.primary, self.replica = self.replica, self.primary
        self.primary.client.replicaof("NO", "ONE")
        for proxy in self.proxies:
            proxy.redirect(self.primary.url)
        self.replica.start(replica_of=self.primary)
        self.chain_has_moved()
        self._failed_over = True

    def _read_to_the_end(self, events: Sequence[Event], *, from_the_start: bool = False) -> None:
        """A reader that was shown what only the dead primary had begins anew; that was answered to nobody."""
        if self._failed_over:
            answered = {event["hash"].encode() for answer in self._answers() for event in answer.events}
            for turn, reader in enumerate(self.readers):
                in_vain = reader.shown_in_vain(events)
                assert not in_vain & answered, f"answered, shown and lost: {in_vain & answered}"
                if in_vain or reader.gave_up():
                    reader.process.kill()
                    self.readers[turn] = self._reader(turn)
        super()._read_to_the_end(events, from_the_start=from_the_start)
        self._failed_over = False


class SentinelSite(Site):
    """A primary, two replicas and three sentinels, between which the network can be cut.

    Nobody reads through a fault here: a primary that is cut off shows readers events that no replica has, and that
    were answered to nobody. So after each fault a reader begins anew.
    """

    ack = "fsync,replicas=1"
    readers_at_once = 0

    def _start_redis(self, stack: ExitStack) -> list[str]:
        self.net: Partition = stack.enter_context(a_partition(self.disk))
        return [self.net.watched.url for _ in HASHINGS]

    @property
    def chain_url(self) -> str:
        return self.net.primary.url

    def _read_to_the_end(self, events: Sequence[Event], *, from_the_start: bool = False) -> None:
        with Reader(self.urls) as reader:
            reader.check(events, from_the_start=True)


class ClusterSite(Site):
    """A cluster of three masters, of which one owns the chain's slot."""

    def _start_redis(self, stack: ExitStack) -> list[str]:
        self.cluster: Cluster = stack.enter_context(a_cluster(self.disk / "cluster"))
        return [self.cluster.url for _ in HASHINGS]

    @property
    def chain_url(self) -> str:
        return f"redis://{self.cluster.owner(CHAIN).address}"

    def move_slowly(self, rng: random.Random) -> None:
        """Move the chain's slot to another node, its keys a few at a time."""
        with self.cluster.moving(CHAIN, self.cluster.other(CHAIN)) as move:
            for key in rng.sample(("events", "time"), rng.randint(0, 2)):
                time.sleep(rng.uniform(0, 0.2))
                move.keys(f"{{{CHAIN}}}:{key}")
            time.sleep(rng.uniform(0, 0.2))
        self.chain_has_moved()


SITES: dict[Kind, type[Site]] = {"one": OneSite, "pair": PairSite, "sentinels": SentinelSite, "cluster": ClusterSite}


@contextmanager
def site_under_load(folder: Path, kind: Kind, rng: random.Random) -> Iterator[Site]:
    """The site, with producers appending and readers following. Nothing of it outlives the block."""
    allow_open_files(12_000)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        site = SITES[kind](folder, rng, stack)
        site.load.wait_for(GOES_ON)
        yield site
