"""Load over HTTP, from a process of its own: wrk where it is installed, else the bundled generator."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

HERE = Path(__file__).parent


class Load(NamedTuple):
    rate: float
    """Answered requests a second."""
    p99_ms: float
    busy: float
    """The generator's share of one core."""
    requests: int
    began: float
    """On the clock that all processes of a machine share, time.monotonic()."""


class Generator(NamedTuple):
    name: Literal["wrk", "bundled"]

    @classmethod
    def found(cls) -> "Generator":
        return cls("wrk" if shutil.which("wrk") else "bundled")

    def describe(self) -> str:
        return "wrk, one thread" if self.name == "wrk" else "the bundled asyncio generator, one process"

    def post(self, url: str, body: bytes, *, connections: int, seconds: float) -> Load:
        """POST the same body again and again over kept connections. Raises RuntimeError when any answer is an error."""
        return self.post_to_all([url], body, connections=connections, seconds=seconds)

    def post_to_all(self, urls: Sequence[str], body: bytes, *, connections: int, seconds: float) -> Load:
        """Share the connections among several servers; rates are added up, the worst p99 counts."""
        with tempfile.NamedTemporaryFile(prefix="bench-") as file:
            file.write(body)
            file.flush()
            share = max(1, connections // len(urls))
            running = [_Run(self._command(url, share, seconds, file.name)) for url in urls]
            loads = [run.result() for run in running]
        return Load(
            sum(load.rate for load in loads),
            max(load.p99_ms for load in loads),
            sum(load.busy for load in loads),
            sum(load.requests for load in loads),
            min(load.began for load in loads),
        )

    def _command(self, url: str, connections: int, seconds: float, body: str) -> list[str]:
        if self.name == "bundled":
            return bundled(url, body, connections, seconds=seconds)
        # wrk counts in whole seconds.
        duration = f"{max(1, round(seconds))}s"
        script = str(HERE / "wrk.lua")
        return ["wrk", "-t1", f"-c{connections}", f"-d{duration}", "-s", script, url, "--", "POST", body]


def post_exactly(url: str, body: bytes, count: int, *, connections: int) -> Load:
    """POST `count` times, as fast as the server answers."""
    with tempfile.NamedTemporaryFile(prefix="bench-") as file:
        file.write(body)
        file.flush()
        return _Run(bundled(url, file.name, connections, requests=count)).result()


def bundled(url: str, body: str, connections: int, *, seconds: float = 0.0, requests: int = 0) -> list[str]:
    return [sys.executable, str(HERE / "generator.py"), url, body, str(connections), str(seconds), str(requests)]


class _Run:
    def __init__(self, command: list[str]) -> None:
        self._began = time.monotonic()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def result(self) -> Load:
        assert self._process.stdout
        with self._process.stdout:
            output = self._process.stdout.read()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.returncode}")
        found = json.loads(output.splitlines()[-1])
        if found["failed"] or not found["requests"]:
            raise RuntimeError(f"{found['failed']} of {found['requests']} requests failed: {output}")
        busy = (usage.ru_utime + usage.ru_stime) / (time.monotonic() - self._began)
        began = found.get("began", self._began)
        return Load(found["requests"] / found["seconds"], found["p99_ms"], busy, found["requests"], began)
