"""The processes that are measured: a Valkey, our server, the peers. Only what is started here is ended."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audit_stream.embedded import EmbeddedValkey
from tests.harness import ServerProcess, running_server

HERE = Path(__file__).parent
DATA = HERE / ".data"
STOP_S = 30


@contextmanager
def a_folder() -> Iterator[Path]:
    """A folder for data on the disk of the checkout, not on a /tmp that may be memory."""
    DATA.mkdir(exist_ok=True)
    (DATA / ".gitignore").write_text("*\n")
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        yield Path(folder)


@contextmanager
def a_valkey() -> Iterator[EmbeddedValkey]:
    """As `audit-stream serve` starts it: append-only file, fsync before every answer."""
    with a_folder() as folder, EmbeddedValkey(folder) as valkey:
        yield valkey


@contextmanager
def our_server(valkey: EmbeddedValkey, chain: str = "audit", **settings: str) -> Iterator[ServerProcess]:
    with running_server(AUDIT_STREAM_REDIS_URL=valkey.url, AUDIT_STREAM_CHAIN=chain, **settings) as server:
        yield server


class Child:
    """A process that answers one line of JSON for each line of JSON it is given, and ends with its input."""

    def __init__(self, *command: str) -> None:
        # Its own environment's packages and nobody's settings.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AUDIT_"))}
        self._process = subprocess.Popen(
            command, cwd=HERE.parent, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.hello = self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **question: Any) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait(STOP_S)}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def a_child(*command: str) -> Iterator[Child]:
    child = Child(*command)
    try:
        yield child
    finally:
        child.close()


@contextmanager
def asgi_server(python: str, app: str) -> Iterator[tuple[str, int]]:
    """Serve an ASGI application of that interpreter with the uvicorn settings of our server: its URL and pid."""
    with a_child(python, str(HERE / "peers" / "serve.py"), app) as child:
        yield child.hello["url"], child.pid


@contextmanager
def no_storage_server() -> Iterator[tuple[str, int]]:
    with asgi_server(sys.executable, "no_storage:app") as served:
        yield served
