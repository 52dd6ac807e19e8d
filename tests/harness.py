"""Real processes for the tests: a Redis, and servers on it. Only processes started here are ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx

from audit_stream.embedded import EmbeddedValkey
from tests.forking import Forked

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 30


@contextmanager
def a_redis(data_dir: Path) -> Iterator[str]:
    if given := os.environ.get("AUDIT_STREAM_TEST_REDIS_URL"):
        yield given
    elif docker_runs():
        from testcontainers.redis import RedisContainer

        container = RedisContainer("redis:8").with_command(
            "redis-server --appendonly yes --appendfsync always --maxmemory-policy noeviction"
        )
        with container as running:
            yield f"redis://{running.get_container_host_ip()}:{running.get_exposed_port(6379)}/0"
    else:
        with EmbeddedValkey(data_dir) as valkey:
            yield valkey.url


def docker_runs() -> bool:
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=30, check=False).returncode == 0


class ServerProcess:
    """`audit-stream serve` in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str] | Forked", url: str, ready: str) -> None:
        self.process, self.url, self.ready = process, url, ready
        # Without the system's certificates where they are not asked for: to load them takes 60 ms a server.
        self.client = httpx.Client(base_url=url, timeout=30, verify=url.startswith("https:"))

    @property
    def pid(self) -> int:
        return self.process.pid

    def post(self, body: Any, **headers: str) -> httpx.Response:
        """POST one event: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post("/events", content=content, headers={"Content-Type": "application/json", **headers})

    def post_batch(self, events: Any, **headers: str) -> httpx.Response:
        content = events if isinstance(events, bytes) else json.dumps(events).encode()
        return self.client.post(
            "/events/batch", content=content, headers={"Content-Type": "application/json", **headers}
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def verify(self) -> dict[str, Any]:
        verdict: dict[str, Any] = self.client.get("/verify").raise_for_status().json()
        return verdict

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 15) -> int:
        """Send the signal and wait for the end; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(timeout)


def with_ctrl_c() -> None:
    """For `preexec_fn`: a shell that ignores SIGINT hands that on to all that it starts, and so do the tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def serve_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "audit_stream", "serve", *arguments]


def clean_environ(**settings: str) -> dict[str, str]:
    """This environment without anyone's own settings, with these, and a free port."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AUDIT_STREAM_") and name not in ("REDIS_URL", "HOST", "PORT", "COLUMNS", "LINES")
    }
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "PORT": "0", "PYTHONUNBUFFERED": "1", **settings}


def start_server(*arguments: str, **settings: str) -> ServerProcess:
    """Start a server and wait until it says that it takes requests; its log goes to this process' stderr."""
    return _started(arguments, settings, None)


def _started(arguments: Sequence[str], settings: Mapping[str, str], log: IO[bytes] | None) -> ServerProcess:
    environ, stderr = clean_environ(**settings), log.fileno() if log else 2
    process: Forked | subprocess.Popen[str]
    if "PYTHONPATH" in settings:  # it is meant for Python's start
        process = subprocess.Popen(
            serve_command(*arguments), env=environ, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    else:
        process = Forked(["serve", *arguments], environ, stderr=stderr)
    assert process.stdout
    watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
    watchdog.start()
    ready = process.stdout.readline()
    watchdog.cancel()
    if "://" not in ready:
        process.kill()
        process.stdout.close()
        raise RuntimeError(f"the server did not start: it said {ready!r} and ended with {process.wait()}")
    return ServerProcess(process, url_in(ready), ready)


def url_in(ready: str) -> str:
    """The server's address in the line that it prints when it takes requests."""
    if ready.startswith("{"):
        return str(json.loads(ready)["url"])
    return next(word for word in ready.split() if "://" in word)


@contextmanager
def running_server(*arguments: str, **settings: str) -> Iterator[ServerProcess]:
    with _until_the_end(start_server(*arguments, **settings)) as server:
        yield server


@contextmanager
def logging_server(log: IO[bytes], /, *arguments: str, **settings: str) -> Iterator[ServerProcess]:
    """The same with its log in a file."""
    with _until_the_end(_started(arguments, settings, log)) as server:
        yield server


@contextmanager
def _until_the_end(server: ServerProcess) -> Iterator[ServerProcess]:
    try:
        yield server
    finally:
        server.client.close()
        server.stop(signal.SIGTERM)
        assert server.process.stdout
        server.process.stdout.close()
