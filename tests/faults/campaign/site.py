"""The site that is broken: servers, their Redis behind proxies, producers and readers, all of them processes."""

import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tests.faults.campaign.disk import small_disk
from tests.faults.campaign.ledger import Ledger
from tests.faults.campaign.prober import Prober
from tests.faults.campaign.readers import Reader
from tests.faults.campaign.valkey import Valkey
from tests.faults.evidence import check_load
from tests.faults.load import Answer, Load, Spec
from tests.faults.processes import free_port
from tests.faults.proxy import proxy_to
from tests.harness import ROOT, ServerProcess, running_server

Kind = Literal["one", "pair"]
"""One Valkey and a 201 that means fsync; or a primary and its replica, and a 201 that means both hold it."""

CHAIN = "campaign"
HASHINGS = ("checked", "script")
"""Of the two servers: they write one chain in two ways."""
PRODUCERS = 2
GOES_ON = 8


class Recovery(NamedTuple):
    acknowledged: int
    """Events answered since the last recovery."""
    appends_s: float
    """From the end of the fault until every server has answered an append."""
    readers_s: float
    """And until every reader has seen all that was stored by then."""


class Site:
    """See `site_under_load`."""

    def __init__(self, folder: Path, kind: Kind, rng: random.Random, stack: ExitStack) -> None:
        self.kind: Kind = kind
        self._stack = stack
        self.disk = folder / "disk"
        self.why_no_small_disk = stack.enter_context(small_disk(self.disk))
        self.primary = stack.enter_context(Valkey(self.disk / "primary"))
        self.replica: Valkey | None = None
        if kind == "pair":
            self.replica = stack.enter_context(Valkey(self.disk / "replica", replica_of=self.primary))
        self.proxies = [stack.enter_context(proxy_to(self.primary.url)) for _ in HASHINGS]
        self.clock_set_back = folder / "set-back"
        self.ports = [free_port() for _ in HASHINGS]
        self.servers: list[ServerProcess] = [self._server(number) for number in range(len(HASHINGS))]
        self.urls = [server.url for server in self.servers]
        self.prober = Prober()
        stack.callback(self.prober.close)
        self.readers = [stack.enter_context(Reader(self.urls[turn:] + self.urls[:turn])) for turn in range(2)]
        self._ledger = Ledger(CHAIN)
        seed = rng.getrandbits(32)
        specs = [
            Spec(name=f"producer-{n}", urls=self.urls, seed=seed, tasks=4, largest=4, think_s=0.05)
            for n in range(PRODUCERS)
        ]
        self.load = stack.enter_context(Load(*specs))

    # --- the servers

    def _server(self, number: int) -> ServerProcess:
        """The second one has a clock that can be set back."""
        clock = Path(__file__).parent / "clock"
        settings = {"PYTHONPATH": f"{clock}:{ROOT / 'src'}", "AUDIT_STREAM_TEST_CLOCK": str(self.clock_set_back)}
        return self._stack.enter_context(
            running_server(
                PORT=str(self.ports[number]),
                AUDIT_STREAM_REDIS_URL=self.proxies[number].url,
                AUDIT_STREAM_CHAIN=CHAIN,
                AUDIT_STREAM_HASHING=HASHINGS[number],
                AUDIT_STREAM_ACK="fsync,replicas=1" if self.kind == "pair" else "fsync",
                **(settings if number else {}),
            )
        )

    def kill_server(self, number: int) -> None:
        assert self.servers[number].stop(signal.SIGKILL) == -signal.SIGKILL

    def start_server(self, number: int) -> None:
        self.servers[number] = self._server(number)

    # --- its Redis

    def head(self) -> int:
        newest: Any = self.primary.client.xrevrange(f"{{{CHAIN}}}:events", count=1)
        return int(newest[0][0].partition(b"-")[0])

    def promote(self) -> None:
        """The replica becomes the primary that everyone is led to; the dead one comes back as its replica."""
        assert self.replica
        self.primary, self.replica = self.replica, self.primary
        self.primary.client.replicaof("NO", "ONE")
        for proxy in self.proxies:
            proxy.redirect(self.primary.url)
        self.replica.start(replica_of=self.primary)
        self._ledger.forget()

    # --- what must hold

    def recovered(self) -> Recovery:
        """Wait until everyone is served again, then check every invariant."""
        lifted = time.monotonic()
        for url in self.urls:
            self.prober.until_appended(url)
        appends_s = time.monotonic() - lifted
        self.load.wait_for(GOES_ON)
        acknowledged = self._ledger.check(self.primary.url, self._answers())
        for reader in self.readers:
            reader.check(self._ledger.events)
        readers_s = time.monotonic() - lifted
        # What was answered while the readers caught up belongs to this fault as well.
        acknowledged += self._ledger.check(self.primary.url, self._answers())
        return Recovery(acknowledged, appends_s, readers_s)

    def finish(self) -> int:
        """Let everyone come to an end, and hold everything against everything once more. Returns the events stored."""
        self.load.finish()
        self.prober.settle(self.urls[0])
        events = check_load(self.primary.url, CHAIN, self._answers())
        for server in self.servers:
            verdict = server.verify()
            assert (verdict["valid"], verdict["checked"]) == (True, len(events)), verdict
        for reader in self.readers:
            reader.check(events, from_the_start=True)
        return len(events)

    def _answers(self) -> list[Answer]:
        return self.load.answers() + self.prober.answers


def allow_open_files(count: int) -> bool:
    """Raise this process' limit, which the servers started later inherit, as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= count
    if enough and soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return enough


@contextmanager
def site_under_load(folder: Path, kind: Kind, rng: random.Random) -> Iterator[Site]:
    """The site, with producers appending and readers following. Nothing of it outlives the block."""
    allow_open_files(12_000)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        site = Site(folder, kind, rng, stack)
        site.load.wait_for(GOES_ON)
        yield site
