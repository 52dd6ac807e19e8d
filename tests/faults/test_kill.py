"""SIGKILL, again and again, under load: what was answered 201 is stored, once and whole.

AUDIT_STREAM_TEST_KILLS raises the number of kills of each kind.
"""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from audit_stream.embedded import EmbeddedValkey
from audit_stream.settings import Hashing
from tests.faults.evidence import check_load
from tests.faults.load import Load, Spec
from tests.faults.processes import free_port, kill_valkey
from tests.harness import ServerProcess, running_server

KILLS = int(os.environ.get("AUDIT_STREAM_TEST_KILLS", "4"))
CHAIN = "kill"
PRODUCERS = 2

pytestmark = pytest.mark.timeout(60 + 20 * KILLS)


class Site:
    """A Valkey and server processes on it, each of which can be killed and started again where it was."""

    def __init__(self, data_dir: Path, hashing: Hashing, servers: int, stack: ExitStack) -> None:
        self._stack, self._hashing = stack, hashing
        self.valkey = stack.enter_context(EmbeddedValkey(data_dir))
        self.servers: dict[int, ServerProcess] = {}
        for _ in range(servers):
            self.start_server(free_port())
        self.urls = [server.url for server in self.servers.values()]

    def start_server(self, port: int) -> None:
        self.servers[port] = self._stack.enter_context(
            running_server(
                PORT=str(port),
                AUDIT_STREAM_REDIS_URL=self.valkey.url,
                AUDIT_STREAM_CHAIN=CHAIN,
                AUDIT_STREAM_HASHING=self._hashing,
            )
        )

    def kill_server(self, port: int) -> None:
        assert self.servers[port].stop(signal.SIGKILL) == -signal.SIGKILL


@contextmanager
def site(
    data_dir: Path, hashing: Hashing, *, servers: int, think_s: float = 0
) -> Iterator[tuple[Site, Load, random.Random]]:
    """The site under load; when the block ends, everything that was answered is held against what is stored."""
    with ExitStack() as stack:
        house = Site(data_dir, hashing, servers, stack)
        specs = [Spec(name=f"producer-{n}", urls=house.urls, seed=KILLS, think_s=think_s) for n in range(PRODUCERS)]
        load = stack.enter_context(Load(*specs))
        rng = random.Random(f"{hashing} {KILLS}")
        load.wait_for(5)
        yield house, load, rng
        load.wait_for(20)  # it goes on
        events = check_load(house.valkey.url, CHAIN, load.finish())
        for server in house.servers.values():
            assert server.verify()["checked"] == len(events)


@pytest.mark.parametrize("hashing", ["checked", "script"])
def test_no_answer_is_lost_when_redis_is_killed(tmp_path: Path, hashing: Hashing) -> None:
    with site(tmp_path, hashing, servers=2) as (house, load, rng):
        pids = [server.pid for server in house.servers.values()]
        for _ in range(KILLS):
            load.wait_for(rng.randint(1, 40))
            kill_valkey(house.valkey)
            house.valkey.start()
        load.wait_for(20)
        # The same processes: none of them needed a restart.
        assert [server.pid for server in house.servers.values() if server.process.poll() is None] == pids


def test_no_answer_is_lost_when_a_server_is_killed(tmp_path: Path) -> None:
    with site(tmp_path, "checked", servers=2, think_s=0.05) as (house, load, rng):
        for _ in range((KILLS + 1) // 2):
            load.wait_for(rng.randint(1, 40))
            port = rng.choice(list(house.servers))
            house.kill_server(port)
            house.start_server(port)


def test_no_answer_is_lost_when_all_are_killed_at_once(tmp_path: Path) -> None:
    with site(tmp_path, "script", servers=1, think_s=0.05) as (house, load, rng):
        for _ in range((KILLS + 3) // 4):
            load.wait_for(rng.randint(1, 40))
            (port,) = house.servers
            os.kill(house.servers[port].pid, signal.SIGKILL)
            kill_valkey(house.valkey)
            house.kill_server(port)
            house.valkey.start()
            house.start_server(port)
