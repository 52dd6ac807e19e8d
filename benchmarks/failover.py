"""What a failover costs: `python -m benchmarks.failover` prints the measured table of docs/operators/durability.md.

A primary, two replicas and three sentinels, each data node behind a proxy that can swallow what passes. Producers
append through servers until the primary is killed or cut off. Then the receipts are compared with the chain that
the new primary holds. Nothing here measures speed; the run takes about three minutes.
"""

import argparse
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx
import redis

from audit_stream.embedded import find_server_binary
from tests.faults.evidence import stored
from tests.faults.processes import free_port
from tests.faults.proxy import Proxy, proxy_to
from tests.harness import ServerProcess, logging_server

PRODUCERS = 4
THINK_S = 0.01
BEFORE_S = 2.0
CUT_S = 1.5
DOWN_AFTER_MS = 1_000
GIVE_UP_S = 12.0
"""A server that has not answered an append by then does not come back by itself."""
PATIENCE_S = 30.0
MASTER = "audit"


class Setup(NamedTuple):
    name: str
    ack: str
    options: tuple[str, ...] = ()


SETUPS = (
    Setup("`fsync`", "fsync"),
    Setup("`fsync`, `min-replicas-to-write 1`", "fsync", ("min-replicas-to-write 1", "min-replicas-max-lag 2")),
    Setup("`fsync,replicas=1`", "fsync,replicas=1"),
)


class Result(NamedTuple):
    acknowledged: int
    lost: int
    back_after_s: float | None
    """From the fault to the first receipt on the new primary; None when there was none."""

    def __str__(self) -> str:
        back = "never" if self.back_after_s is None else f"{self.back_after_s:.1f} s"
        return f"{self.lost} of {self.acknowledged:,} | {back}"


# --- the site


class Node:
    """A data node. Everything but a server on its own machine reaches it through its proxy."""

    def __init__(self, program: Path, folder: Path, options: tuple[str, ...], stack: ExitStack) -> None:
        self._program, self._folder, self._options = program, folder, options
        self.direct = f"redis://127.0.0.1:{free_port()}/0"
        self.proxy: Proxy = stack.enter_context(proxy_to(self.direct))
        self.port = int(self.proxy.url.rpartition(":")[2].partition("/")[0])
        self.client = stack.enter_context(redis.Redis.from_url(self.direct, socket_timeout=5, protocol=2))

    def start(self, stack: ExitStack, primary: "Node | None") -> None:
        lines = [
            "bind 127.0.0.1",
            f"port {self.direct.rpartition(':')[2].partition('/')[0]}",
            f"dir {self._folder}",
            f"logfile {self._folder}/log",
            "save ''",
            "appendonly yes",
            "appendfsync always",
            "repl-diskless-sync-delay 0",
            "replica-announce-ip 127.0.0.1",
            f"replica-announce-port {self.port}",
            *self._options,
            *([f"replicaof 127.0.0.1 {primary.port}"] if primary else []),
        ]
        self._process = _spawn(self._program, self._folder, lines, stack)
        until(lambda: bool(self.client.ping()))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _spawn(program: Path, folder: Path, lines: list[str], stack: ExitStack, *flags: str) -> "subprocess.Popen[bytes]":
    folder.mkdir()
    config = folder / "server.conf"
    config.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([program, config, *flags], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def end() -> None:
        process.kill()
        process.wait()

    stack.callback(end)
    return process


class Site:
    """A primary, its replicas and their sentinels, in order: the replicas follow and the sentinels agree."""

    def __init__(self, program: Path, folder: Path, setup: Setup, stack: ExitStack) -> None:
        self.setup, self._folder, self._stack = setup, folder, stack
        self.nodes = [Node(program, folder / f"node-{n}", setup.options, stack) for n in range(3)]
        self.primary = self.nodes[0]
        for node in self.nodes:
            node.start(stack, None if node is self.primary else self.primary)
        until(lambda: self.primary.client.info("replication")["connected_slaves"] == 2)
        ports = [free_port() for _ in range(3)]
        for n, port in enumerate(ports):
            lines = [
                "bind 127.0.0.1",
                f"port {port}",
                f"dir {folder}",
                f"logfile {folder}/sentinel-{n}.log",
                f"sentinel monitor {MASTER} 127.0.0.1 {self.primary.port} 2",
                f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}",
                f"sentinel failover-timeout {MASTER} 5000",
            ]
            _spawn(program, folder / f"sentinel-{n}", lines, stack, "--sentinel")
        self._sentinels = [stack.enter_context(redis.Redis(port=port, protocol=2)) for port in ports]
        until(lambda: all(self._sees_all(sentinel) for sentinel in self._sentinels))
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/{MASTER}/0"

    def _sees_all(self, sentinel: redis.Redis) -> bool:
        state = cast("dict[str, Any]", sentinel.sentinel_master(MASTER))
        return (state["num-slaves"], state["num-other-sentinels"]) == (2, 2)

    def elected(self) -> Node | None:
        """The node that most sentinels call the primary, when it is another than at the start."""
        ports = [sentinel.sentinel_get_master_addr_by_name(MASTER)[1] for sentinel in self._sentinels]
        chosen = [node for node in self.nodes[1:] if ports.count(node.port) >= 2]
        return chosen[0] if chosen and chosen[0].client.info("replication")["role"] == "master" else None

    def server(self, redis_url: str) -> ServerProcess:
        # A server that lost what it answered for says so in a line a request.
        log = self._stack.enter_context((self._folder / "servers.log").open("ab"))
        settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_ACK": self.setup.ack}
        return self._stack.enter_context(logging_server(log, **settings))


def until(holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            if holds():
                return
        except redis.exceptions.RedisError as error:
            if time.monotonic() > deadline:
                raise TimeoutError("the site does not come to this") from error
        if time.monotonic() > deadline:
            raise TimeoutError("the site does not come to this")
        time.sleep(0.02)


# --- the producers


class Producers:
    """Append single events, each under a key of its own and again until it is answered; note each receipt."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.receipts: list[tuple[float, str]] = []
        """(when, the event's hash)."""
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._produce, args=(n,)) for n in range(PRODUCERS)]

    def __enter__(self) -> "Producers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _produce(self, producer: int) -> None:
        number = 0
        with httpx.Client(base_url=self._url, timeout=10, trust_env=False) as client:
            while not self._ended.is_set():
                key = f"{self._url} {producer} {number}"
                body = {"kind": "other", "source": "failover", "payload": {"key": key}}
                try:
                    answer = client.post("/events", json=body, headers={"Idempotency-Key": key})
                except httpx.TransportError:
                    answer = None
                if answer is not None and answer.status_code in (200, 201):
                    self.receipts.append((time.monotonic(), answer.json()["hash"]))
                    number += 1
                self._ended.wait(THINK_S)

    def since(self, moment: float) -> list[float]:
        return [at - moment for at, _ in list(self.receipts) if at > moment]


# --- the faults


def killed(site: Site, *, cut_first: bool) -> Result:
    """SIGKILL the primary under load, with its replicas cut off before that or not."""
    with Producers(site.server(site.url).url) as producers:
        time.sleep(BEFORE_S)
        if cut_first:
            site.primary.proxy.hush("replication", new=True)
            time.sleep(CUT_S)
        site.primary.kill()
        moment = time.monotonic()
        until(lambda: site.elected() is not None)
        elected = time.monotonic()
        # What was on its way at the kill is no sign that appends work again.
        deadline = moment + GIVE_UP_S
        while not producers.since(elected) and time.monotonic() < deadline:
            time.sleep(0.05)
        if producers.since(elected):
            time.sleep(1)
    back = producers.since(elected)
    return _compared(site, producers, back_after_s=elected - moment + back[0] if back else None)


def split(site: Site) -> Result:
    """Cut the primary off from everybody but one server, and let both sides append; then heal."""
    with Producers(site.server(site.primary.direct).url) as old:
        time.sleep(BEFORE_S)
        site.primary.proxy.hush("all", new=True)
        moment = time.monotonic()
        until(lambda: site.elected() is not None)
        with Producers(site.server(site.url).url) as new:
            until(lambda: len(new.receipts) > 20)
            time.sleep(BEFORE_S)
        back = new.since(moment)
    site.primary.proxy.speak()
    until(lambda: site.primary.client.info("replication")["role"] == "slave")
    return _compared(site, old, new, back_after_s=back[0])


def _compared(site: Site, *producers: Producers, back_after_s: float | None) -> Result:
    primary = site.elected()
    assert primary
    on_chain = {event.hash.decode() for event in stored(primary.direct, "audit")}
    receipts = [hash_ for each in producers for _, hash_ in each.receipts]
    return Result(len(receipts), sum(hash_ not in on_chain for hash_ in receipts), back_after_s)


FAULTS: dict[str, Callable[[Site], Result]] = {
    "the primary is killed": lambda site: killed(site, cut_first=False),
    "its replicas lose it 1.5 s before it is killed": lambda site: killed(site, cut_first=True),
    "it is cut off with one server and lives on": split,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover", description=__doc__)
    parser.add_argument("--server", type=Path, help="valkey-server or redis-server (the embedded Valkey's)")
    program = parser.parse_args().server or find_server_binary()
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    print(f"{datetime.now(UTC):%Y-%m-%d}, {version.strip()}\n")
    print("| fault | set-up | acknowledged and lost | appends are back after |\n|---|---|---|---|")
    for fault, run in FAULTS.items():
        for setup in SETUPS:
            with _site(program, setup) as site:
                print(f"| {fault} | {setup.name} | {run(site)} |", flush=True)


@contextmanager
def _site(program: Path, setup: Setup) -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        yield Site(program, Path(folder), setup, stack)


if __name__ == "__main__":
    main()
