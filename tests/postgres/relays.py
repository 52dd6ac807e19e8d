"""Relays for the tests: in a thread, where the claim is not about the process, and as a process."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

from audit_stream.client import AuditClient, Event
from audit_stream.sources.postgres.relay import Relay
from audit_stream.sources.postgres.settings import RelaySettings
from tests.harness import clean_environ

PATIENT = "3600"
"""A POLL_TIMEOUT for relays that only NOTIFY wakes."""


class Log(logging.Handler):
    """What relays in threads say, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._said = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._said:
            self.lines.append(record.getMessage())
            self._said.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        with self._said:
            said = self._said.wait_for(lambda: sum(text in line for line in self.lines) >= times, timeout=60)
        assert said, f"{text!r} is not in {self.lines}"


class RelayThread:
    def __init__(self, environ: dict[str, str]) -> None:
        self.error: BaseException | None = None
        self.log = Log()
        settings = RelaySettings.from_env(environ)
        self._made = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(settings)))
        logging.getLogger("audit_stream.relay").addHandler(self.log)
        logging.getLogger("audit_stream.relay").setLevel(logging.INFO)
        self._thread.start()
        self._made.wait()

    async def _run(self, settings: RelaySettings) -> None:
        self._loop, self._relay = asyncio.get_running_loop(), Relay(settings)
        self._made.set()
        try:
            await self._relay.run()
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        """As SIGTERM does; returns when it has ended. Raises what it ended with."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it ended in this moment
                self._loop.call_soon_threadsafe(self._relay.stop)
        self.join()

    def join(self) -> None:
        self._thread.join(60)
        logging.getLogger("audit_stream.relay").removeHandler(self.log)
        assert not self._thread.is_alive()
        if self.error:
            raise self.error


def environ_of(database_url: str, spine_url: str, **settings: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "AUDIT_STREAM_URL": spine_url,
        "POLL_TIMEOUT": PATIENT,
        "METRICS_LISTEN": "off",
        **settings,
    }


@contextmanager
def relaying(database_url: str, spine_url: str, **settings: str) -> Iterator[RelayThread]:
    relay = RelayThread(environ_of(database_url, spine_url, **settings))
    try:
        yield relay
    finally:
        relay.stop()


class RelayProcess:
    """`audit-stream postgres relay`."""

    def __init__(self, database_url: str, spine_url: str, **settings: str) -> None:
        environ = clean_environ() | environ_of(database_url, spine_url, **settings)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "audit_stream", "postgres", "relay"], env=environ, stderr=subprocess.PIPE, text=True
        )

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
            self.rest = self.process.stderr.read()
        return self.process.wait(30)


def first_events(url: str, count: int, source: str) -> list[Event]:
    """The first events of this source, once there are so many; the test's own timeout is the limit."""
    with AuditClient(url) as client:
        return list(islice(client.tail(source=source, after=0), count))


def events_of(url: str, source: str) -> list[Event]:
    with AuditClient(url) as client:
        return list(client.query(source=source))


def rows_of(events: list[Event], column: str = "id") -> list[Any]:
    return [(event.payload.get("new") or event.payload["old"])[column] for event in events]
