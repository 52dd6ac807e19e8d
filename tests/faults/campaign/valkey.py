"""A Valkey on TCP that keeps its port and its data through every death, and can be a primary or a replica."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis

from audit_stream.embedded import find_server_binary
from tests.faults.processes import free_port

PATIENCE_S = 30


class Valkey:
    """Started with the block, ended with it; in between it may be killed and started again."""

    def __init__(self, data_dir: Path, *, replica_of: "Valkey | None" = None, **options: str) -> None:
        """`options` are settings of valkey.conf, with _ for -; they may be changed between two starts."""
        self.data_dir = data_dir
        self.options = options
        self.port = free_port()
        self.announced = self.port
        """Where replicas and sentinels are led to: a proxy before it, where that is set before the start."""
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis.from_url(self.url, socket_timeout=10)
        self._replica_of = replica_of

    def __enter__(self) -> "Valkey":
        self.data_dir.mkdir()
        self.start(replica_of=self._replica_of)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def start(self, *, replica_of: "Valkey | None" = None, wait: bool = True) -> None:
        """Start on the data that is there, and wait until it answers; as a replica, until it has caught up."""
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.data_dir),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "repl-diskless-sync-delay": "0",
            "logfile": str(self.data_dir / "valkey.log"),
            "replica-announce-port": str(self.announced),
        } | {name.replace("_", "-"): value for name, value in self.options.items()}
        command = [str(find_server_binary())]
        for name, value in options.items():
            command += [f"--{name}", *value.split(" ")]
        if replica_of:
            command += ["--replicaof", f"127.0.0.1 {replica_of.announced}"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        if not wait:
            return
        self.until(lambda: bool(self.client.ping()))
        if replica_of:
            logs = self.options.get("appendonly") != "no"
            replica_of.until(replica_of.is_replicated if logs else lambda: replica_of.replicas() > 0)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def rewrite_log(self) -> None:
        """Write all data into the base file of the log, and wait until it is done."""
        rewrites = self.client.info("persistence")["aof_rewrites"]
        self.client.bgrewriteaof()
        self.until(lambda: self._rewrites_done() > rewrites)

    def _rewrites_done(self) -> int:
        info = self.client.info("persistence")
        return int(info["aof_rewrites"]) - int(info["aof_rewrite_in_progress"]) - int(info["aof_rewrite_scheduled"])

    def replicas(self) -> int:
        """How many replicas follow it."""
        info = self.client.info("replication")
        return sum(isinstance(value, dict) and value.get("state") == "online" for value in info.values())

    def is_replicated(self) -> bool:
        """Whether a replica has on its disk what is written now; at first it is busy with writing its first copy."""
        self.client.set("replicated", "or not")
        return bool(self.client.execute_command("WAITAOF", 1, 1, 100)[1])

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"Valkey ended: {(self.data_dir / 'valkey.log').read_text()[-600:]}"
            try:
                if holds():
                    return
            except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
                pass  # not listening, or still loading
            time.sleep(0.01)
        raise AssertionError("it does not come to hold")

    @property
    def log_of_writes(self) -> Path:
        """The file that takes what is appended now (the AOF)."""
        files = (self.data_dir / "appendonlydir").glob("*.incr.aof")
        return max(files, key=lambda path: int(path.name.split(".")[-3]))

    def written_bytes(self) -> int:
        return self.log_of_writes.stat().st_size
