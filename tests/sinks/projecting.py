"""Projections for the tests: in this process, and as a process."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audit_stream.sinks.projections import Projections
from audit_stream.sinks.settings import SinkSettings
from tests.harness import ServerProcess, clean_environ
from tests.sinks.chains import ids_in

ALL = "postgres,purview,trust,jsonl"


def append(server: ServerProcess, count: int, **payload: Any) -> int:
    """Append so many events; the newest event_id."""
    body = [{"kind": "other", "source": "tests", "payload": {"n": n, **payload}} for n in range(count)]
    newest: int = server.post_batch(body).raise_for_status().json()[-1]["event_id"]
    return newest


async def until(reached: Callable[[], bool]) -> None:
    """The test's own timeout is the limit."""
    while not reached():  # noqa: ASYNC110 - it is other processes' doing
        await asyncio.sleep(0.01)


def environ_of(to: str, url: str, folder: Path, database_url: str = "", **settings: str) -> dict[str, str]:
    given = {"PROJECT_TO": to, "AUDIT_STREAM_URL": url, "LOG_DIR": str(folder), "DATABASE_URL": database_url}
    return clean_environ() | given | {"METRICS_LISTEN": "off"} | settings


class ProjectProcess:
    """`audit-stream project`."""

    def __init__(self, environ: dict[str, str], *arguments: str) -> None:
        command = [sys.executable, "-m", "audit_stream", "project", *arguments]
        self.process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)

    def wait_for(self, text: str) -> str:
        """Read its log up to the line that holds the text."""
        assert self.process.stderr
        said = []
        for line in self.process.stderr:
            said.append(line)
            if text in line:
                return line
        raise AssertionError(f"it ended with {self.process.wait()} and said {said}")

    def end(self, number: int = signal.SIGTERM) -> int:
        os.kill(self.process.pid, number)
        assert self.process.stderr
        with self.process.stderr:
            self.process.stderr.read()
        return self.process.wait(30)


def project_once(environ: dict[str, str]) -> tuple[dict[str, str], dict[str, int]]:
    """As `--once` does: what went wrong, and how far each sink has come."""

    async def project() -> tuple[dict[str, str], dict[str, int]]:
        projections = Projections(SinkSettings.from_env(environ))
        failed = {str(sink): said for sink, said in (await projections.run_to_the_end()).items()}
        return failed, {progress.sink: progress.head.event_id for progress in projections.progress}

    return asyncio.run(project())


def assert_each_once(folder: Path, newest: int) -> None:
    """Every sink of files that is there has every event once, in order within a file."""
    for sink in folder.iterdir():
        files = ids_in(sink)
        assert sorted(event_id for ids in files.values() for event_id in ids) == list(range(1, newest + 1)), sink
        assert all(ids == sorted(ids) for ids in files.values()), sink
