"""Consumers for the tests: in a thread, where the claim is not about the process, and as a process."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from audit_stream.client import AuditClient, Event
from audit_stream.sources.kafka.consumer import AuditConsumer
from audit_stream.sources.kafka.settings import KafkaSettings
from tests.harness import clean_environ
from tests.kafka.cluster import MockCluster
from tests.postgres.relays import Log


def audit_event(number: int, app: str, **fields: Any) -> bytes:
    return msgspec.json.encode(
        {"audit_id": f"{app} {number}", "operation": "ritual.query", "client_app": app, "metadata": {"n": number}}
        | {"timestamp": "2026-02-16T23:45:12.345Z", "actor": "someone", "status": "Success", **fields}
    )


def environ_of(cluster: MockCluster, topic: str, spine_url: str, **settings: str) -> dict[str, str]:
    return {
        "KAFKA_BROKERS": cluster.brokers,
        "KAFKA_TOPICS": topic,
        "KAFKA_GROUP_ID": f"group of {topic}",
        "KAFKA_CONFIG": str(Path(__file__).with_name("kafka.properties")),
        "AUDIT_STREAM_URL": spine_url,
        "METRICS_LISTEN": "off",
        # `audit-consumer` would write to those of the published daemon.
        "DATABASE_URL": "",
        "LOG_DIR": "",
        **settings,
    }


class ConsumerThread:
    def __init__(self, environ: dict[str, str]) -> None:
        self.error: BaseException | None = None
        self.log = Log()
        settings = KafkaSettings.from_env(environ)
        self._made = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(settings)))
        logging.getLogger("audit_stream.kafka").addHandler(self.log)
        logging.getLogger("audit_stream.kafka").setLevel(logging.INFO)
        self._thread.start()
        self._made.wait()

    async def _run(self, settings: KafkaSettings) -> None:
        self._loop, self._consumer = asyncio.get_running_loop(), AuditConsumer(settings)
        self._made.set()
        try:
            await self._consumer.run()
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        """As SIGTERM does; returns when it has ended. Raises what it ended with."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it ended in this moment
                self._loop.call_soon_threadsafe(self._consumer.stop)
        self.join()

    def join(self) -> None:
        self._thread.join(60)
        logging.getLogger("audit_stream.kafka").removeHandler(self.log)
        assert not self._thread.is_alive()
        if self.error:
            raise self.error


@contextmanager
def consuming(cluster: MockCluster, topic: str, spine_url: str, **settings: str) -> Iterator[ConsumerThread]:
    consumer = ConsumerThread(environ_of(cluster, topic, spine_url, **settings))
    try:
        yield consumer
    finally:
        consumer.stop()


class ConsumerProcess:
    """`audit-consumer`."""

    def __init__(self, cluster: MockCluster, topic: str, spine_url: str, **settings: str) -> None:
        environ = environ_of(cluster, topic, spine_url, **settings)
        program = Path(sys.executable).with_name("audit-consumer")
        self.process = subprocess.Popen(
            [program], env=clean_environ() | environ, stderr=subprocess.PIPE, text=True, errors="replace"
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


def numbers_of(events: Sequence[Event]) -> list[int]:
    return [event.payload["metadata"]["n"] for event in events]
