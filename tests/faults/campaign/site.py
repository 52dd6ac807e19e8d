"""The site that is broken: servers, their Redis, producers and readers, all of them processes.

What kind of Redis it is, and how it is reached, is in `sites`.
"""

import random
import resource
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Literal, NamedTuple

from audit_stream.chain import Event
from tests.faults.campaign.disk import small_disk
from tests.faults.campaign.ledger import Ledger
from tests.faults.campaign.prober import Prober
from tests.faults.campaign.readers import Reader
from tests.faults.evidence import check_load
from tests.faults.load import Answer, Load, Spec
from tests.faults.processes import free_port
from tests.harness import ROOT, ServerProcess, logging_server, running_server

Kind = Literal["one", "pair", "sentinels", "cluster"]

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


class Site(ABC):
    """See `sites.site_under_load`."""

    ack = "fsync"
    readers_at_once = 2
    """They follow from the first event to the last, through every fault."""

    def __init__(self, folder: Path, rng: random.Random, stack: ExitStack) -> None:
        self._stack = stack
        self.folder = folder
        self.disk = folder / "disk"
        self.why_no_small_disk = stack.enter_context(small_disk(self.disk))
        self._addresses = self._start_redis(stack)
        self.clock_set_back = folder / "set-back"
        self.ports = [free_port() for _ in HASHINGS]
        self.servers: list[ServerProcess] = [self._server(number) for number in range(len(HASHINGS))]
        self.urls = [server.url for server in self.servers]
        self.prober = Prober()
        stack.callback(self.prober.close)
        self.readers = [self._reader(turn) for turn in range(self.readers_at_once)]
        self._ledger = Ledger(CHAIN)
        seed = rng.getrandbits(32)
        specs = [
            Spec(name=f"producer-{n}", urls=self.urls, seed=seed, tasks=4, largest=4, think_s=0.05)
            for n in range(PRODUCERS)
        ]
        self.load = stack.enter_context(Load(*specs))

    def _reader(self, turn: int) -> Reader:
        return self._stack.enter_context(Reader(self.urls[turn:] + self.urls[:turn]))

    @abstractmethod
    def _start_redis(self, stack: ExitStack) -> list[str]:
        """Start it, and return the address for each server."""

    @property
    @abstractmethod
    def chain_url(self) -> str:
        """Where the chain is now, past everything that breaks connections."""

    # --- the servers

    def _server(self, number: int, log: IO[bytes] | None = None) -> ServerProcess:
        """The second one has a clock that can be set back."""
        clock = Path(__file__).parent / "clock"
        settings = {"PYTHONPATH": f"{clock}:{ROOT / 'src'}", "AUDIT_STREAM_TEST_CLOCK": str(self.clock_set_back)}
        settings = (settings if number else {}) | {
            "PORT": str(self.ports[number]),
            "AUDIT_STREAM_REDIS_URL": self._addresses[number],
            "AUDIT_STREAM_CHAIN": CHAIN,
            "AUDIT_STREAM_HASHING": HASHINGS[number],
            "AUDIT_STREAM_ACK": self.ack,
            "AUDIT_STREAM_PIN": str(self.folder / f"pin-{number}"),
        }
        return self._stack.enter_context(logging_server(log, **settings) if log else running_server(**settings))

    def kill_server(self, number: int) -> None:
        assert self.servers[number].stop(signal.SIGKILL) == -signal.SIGKILL

    def start_server(self, number: int, log: IO[bytes] | None = None) -> None:
        """Start it again; returns when it takes requests."""
        self.servers[number] = self._server(number, log)

    # --- what must hold

    def chain_has_moved(self) -> None:
        """Another Redis holds the chain: all of it is checked again."""
        self._ledger.forget()

    def recovered(self, appends_s: float | None = None) -> Recovery:
        """Wait until everyone is served again, then check every invariant.

        `appends_s` is given where appends were back before the fault was over.
        """
        lifted = time.monotonic()
        for url in self.urls:
            self.prober.until_appended(url)
        if appends_s is None:
            appends_s = time.monotonic() - lifted
        self.load.wait_for(GOES_ON)
        acknowledged = self._ledger.check(self.chain_url, self._answers())
        self._read_to_the_end(self._ledger.events)
        readers_s = time.monotonic() - lifted
        # What was answered while the readers caught up belongs to this fault as well.
        acknowledged += self._ledger.check(self.chain_url, self._answers())
        return Recovery(acknowledged, appends_s, readers_s)

    def finish(self) -> int:
        """Let everyone come to an end, and hold everything against everything once more. Returns the events stored."""
        self.load.finish()
        self.prober.settle(self.urls[0])
        events = check_load(self.chain_url, CHAIN, self._answers())
        for server in self.servers:
            verdict = server.verify()
            assert (verdict["valid"], verdict["checked"]) == (True, len(events)), verdict
        self._read_to_the_end(events, from_the_start=True)
        return len(events)

    def _read_to_the_end(self, events: Sequence[Event], *, from_the_start: bool = False) -> None:
        """Every reader has seen, or comes to see, each of these events once, in order."""
        for reader in self.readers:
            reader.check(events, from_the_start=from_the_start)

    def _answers(self) -> list[Answer]:
        return self.load.answers() + self.prober.answers


def allow_open_files(count: int) -> bool:
    """Raise this process' limit, which the servers started later inherit, as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= count
    if enough and soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return enough
