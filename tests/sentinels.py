"""A real primary with replicas, and sentinels that watch them and fail over."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import redis

from audit_stream.embedded import find_server_binary
from tests.faults.campaign.valkey import PATIENCE_S, Valkey
from tests.faults.processes import free_port

MASTER = "mymaster"


class Sentinel:
    """One `valkey-server --sentinel`, watching the server at `port` under the name MASTER."""

    def __init__(
        self, folder: Path, port: int, *, quorum: int, down_after_ms: int, password: str, master: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.client = redis.Redis(
            port=self.port, password=password or None, decode_responses=True, protocol=2, socket_timeout=10
        )
        self._config = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            f"logfile {folder / 'sentinel.log'}",
            f"sentinel monitor {MASTER} 127.0.0.1 {port} {quorum}",
            f"sentinel down-after-milliseconds {MASTER} {down_after_ms}",
            f"sentinel failover-timeout {MASTER} 1000",
            *([f"requirepass {password}", f"sentinel sentinel-pass {password}"] if password else []),
            *(f"sentinel {name} {MASTER} {value}" for name, value in master.items()),
        ]

    def __enter__(self) -> Self:
        self.folder.mkdir()
        config = self.folder / "sentinel.conf"
        config.write_text("\n".join(self._config) + "\n")
        self.process = subprocess.Popen(
            [str(find_server_binary()), str(config), "--sentinel"], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def announce(self, port: int) -> None:
        """Lead other sentinels to this port: a proxy before it. Takes effect with the start."""
        self._config += ["sentinel announce-ip 127.0.0.1", f"sentinel announce-port {port}"]

    @property
    def client_name(self) -> bytes:
        """How its connections name themselves, up to what each is for."""
        connection = self.client.connection_pool.get_connection()
        try:
            connection.send_command("SENTINEL", "MYID")
            run_id: str = connection.read_response()
        finally:
            self.client.connection_pool.release(connection)
        return f"sentinel-{run_id[:8]}".encode()

    def until_it_answers(self) -> None:
        _until(lambda: bool(self.client.ping()))

    def view(self) -> dict[str, str]:
        """What it says of the master."""
        connection = self.client.connection_pool.get_connection()
        try:
            connection.send_command("SENTINEL", "MASTER", MASTER)
            parts: list[str] = connection.read_response()
        finally:
            self.client.connection_pool.release(connection)
        return dict(zip(parts[::2], parts[1::2], strict=True))


class Watched:
    """A primary, its replicas and their sentinels."""

    def __init__(self, servers: list[Valkey], sentinels: list[Sentinel]) -> None:
        self.servers, self.sentinels = servers, sentinels

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(sentinel.address for sentinel in self.sentinels)}/{MASTER}/0"

    def primary(self) -> Valkey:
        """The one that the sentinels name now."""
        port = int(self.sentinels[0].view()["port"])
        return next(server for server in self.servers if server.announced == port)

    def fail_over(self) -> Valkey:
        """Make the sentinels promote a replica now, with the old primary alive; return the new primary."""
        old = self.primary()
        self.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", MASTER)
        return self.promoted_after(old)

    def promoted_after(self, old: Valkey, *, seen_by: Sequence[Sentinel] = ()) -> Valkey:
        """Wait until every sentinel, or each of these, names another primary than `old`; return it."""
        asked = seen_by or self.sentinels
        _until(lambda: all(int(sentinel.view()["port"]) != old.announced for sentinel in asked))
        new = self.primary()
        new.until(lambda: new.client.info("replication")["role"] == "master")
        return new

    def ready(self) -> None:
        """Wait until every sentinel knows every other and all replicas, so that a failover can succeed."""
        others, replicas = str(len(self.sentinels) - 1), str(len(self.servers) - 1)

        def knows_all(view: dict[str, str]) -> bool:
            return (view["num-other-sentinels"], view["num-slaves"], view["flags"]) == (others, replicas, "master")

        _until(lambda: all(knows_all(sentinel.view()) for sentinel in self.sentinels))


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except redis.exceptions.ConnectionError:
            pass
        time.sleep(0.02)
    raise AssertionError("the sentinels do not come to that")


@contextmanager
def watched(
    folder: Path, *, replicas: int = 1, sentinels: int = 3, down_after_ms: int = 1000, password: str = ""
) -> Iterator[Watched]:
    """Start a primary, replicas and sentinels; `password` is the sentinels' own."""
    with ExitStack() as stack:
        primary = stack.enter_context(Valkey(folder / "server-0"))
        servers = [primary] + [
            stack.enter_context(Valkey(folder / f"server-{n}", replica_of=primary)) for n in range(1, replicas + 1)
        ]
        found = [
            stack.enter_context(
                a_sentinel(
                    folder / f"sentinel-{n}",
                    primary.port,
                    quorum=sentinels // 2 + 1,
                    down_after_ms=down_after_ms,
                    password=password,
                )
            )
            for n in range(sentinels)
        ]
        site = Watched(servers, found)
        site.ready()
        yield site


def a_sentinel(
    folder: Path, port: int, *, quorum: int = 1, down_after_ms: int = 60_000, password: str = "", **master: str
) -> Sentinel:
    """A sentinel that takes the server at `port` for the master, whatever it is."""
    options = {name.replace("_", "-"): value for name, value in master.items()}
    return Sentinel(folder, port, quorum=quorum, down_after_ms=down_after_ms, password=password, master=options)
