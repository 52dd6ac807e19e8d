"""The command line as its users run it: in a process of its own, in a pipe or on a terminal."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from tempfile import TemporaryFile
from time import monotonic
from typing import Any, NamedTuple

from tests.forking import Forked
from tests.harness import clean_environ, with_ctrl_c

TIMEOUT_S = 60


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "audit_stream", *arguments]


def run(*arguments: str, url: str = "", stdin: bytes = b"", **settings: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a command away from a terminal, with a file as its standard input: a pipe might pause."""
    environ = clean_environ(**{"AUDIT_STREAM_URL": url} if url else {}, **settings)
    with TemporaryFile() as file, TemporaryFile() as out, TemporaryFile() as err:
        file.write(stdin)
        file.seek(0)
        forked = Forked(list(arguments), environ, stdin=file.fileno(), stdout=out.fileno(), stderr=err.fileno())
        try:
            code = forked.wait(TIMEOUT_S)
        finally:
            forked.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(forked.args, code, out.read(), err.read())


def ids(output: bytes) -> list[int]:
    return [json.loads(line)["event_id"] for line in output.splitlines()]


@contextmanager
def running(*arguments: str, url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command that goes on; it is ended here if it does not end by itself."""
    process = subprocess.Popen(
        command(*arguments),
        env=clean_environ(AUDIT_STREAM_URL=url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=with_ctrl_c,
    )
    watchdog = threading.Timer(TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe and not pipe.closed:
                pipe.close()


def read_ids(process: "subprocess.Popen[bytes]", count: int) -> list[int]:
    assert process.stdout
    return [json.loads(process.stdout.readline())["event_id"] for _ in range(count)]


def on_terminal(*arguments: str, url: str = "", width: int = 80, typed: bytes = b"") -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and all that was shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environ = clean_environ(TERM="xterm-256color", **{"AUDIT_STREAM_URL": url} if url else {})
    process = subprocess.Popen(command(*arguments), env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    watchdog = threading.Timer(TIMEOUT_S, process.kill)
    watchdog.start()
    os.write(ours, typed)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux answers EIO when the last process has let go of the terminal
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    code = process.wait()
    watchdog.cancel()
    return code, shown.decode()


class Answer:
    """What a scripted server says to one request."""

    def __init__(self, body: bytes, *, status: int = 200, type_: str = "application/json", **headers: str) -> None:
        self.body, self.status, self.type = body, status, type_
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Asked(NamedTuple):
    at: float
    headers: dict[str, str]


class ScriptedServer:
    """An HTTP server that gives prepared answers, in order, and keeps what it was asked."""

    def __init__(self, answers: list[Answer]) -> None:
        self.asked: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(Asked(monotonic(), {name.lower(): value for name, value in self.headers.items()}))
                answer = answers.pop(0) if answers else Answer(b"", status=410)
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.type)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "ScriptedServer":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
