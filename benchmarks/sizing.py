"""What a chain costs: `python -m benchmarks.sizing --events 1000000` prints the table of docs/operators/sizing.md.

One chain is filled through a server on the embedded Valkey, and then weighed, verified, exported, imported,
reindexed and loaded again. Every number is of one run: it shows a size, not a rate to compare with another.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis

from audit_stream.embedded import EmbeddedValkey, find_server_binary
from audit_stream.keys import Keys
from benchmarks.machine import processor
from benchmarks.processes import a_folder
from benchmarks.rows.filling import A_CALL, post_all
from tests.harness import clean_environ, running_server

KINDS = ("request_allowed", "request_denied", "decision_card_drafted", "decision_card_signed", "flag_swapped", "other")
SOURCES = 20
SAMPLE = 20_000
"""Events that one more index or key is measured with, at most."""
SINGLES = 2_000
MIB = 1024 * 1024


class Row(NamedTuple):
    name: str
    measured: float
    unit: str
    per_event: bool = False
    """It is a size of one event or key, the same however long the chain is; else it grows with the chain."""

    def at(self, factor: float) -> str:
        return shown(self.measured if self.per_event else self.measured * factor, self.unit)


def shown(value: float, unit: str) -> str:
    """Two significant digits and the unit that a person would choose."""
    if unit == "bytes":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
            if value >= size:
                return f"{_two_digits(value / size)} {name}"
        return f"{value:.0f} bytes"
    for name, seconds in (("h", 3600.0), ("min", 60.0)):
        if value >= 2 * seconds:
            return f"{_two_digits(value / seconds)} {name}"
    return f"{_two_digits(value)} s" if value >= 0.1 else f"{_two_digits(value * 1e3)} ms"


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="length of the chain (1,000,000)")
    parser.add_argument("--rows", action="store_true", help="each row as JSON instead of the table")
    options = parser.parse_args()
    with a_folder() as folder:
        rows = measure(folder, options.events)
    if options.rows:
        print(json.dumps([row._asdict() for row in rows]))
        return
    version = subprocess.run([find_server_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    print(f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, {os.cpu_count()} cores, {version.strip()}\n")
    print(as_markdown(rows, options.events))


def as_markdown(rows: list[Row], events: int) -> str:
    columns = [events, 10 * events, 100 * events]
    lines = ["| | " + " | ".join(f"{count:,}" for count in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row.name} | " + " | ".join(row.at(count / events) for count in columns) + " |")
    return "\n".join(lines)


def measure(folder: Path, events: int) -> list[Row]:
    """Fill a chain, and look at it from every side. Takes about ten minutes a million on two cores."""
    valkey = EmbeddedValkey(folder / "redis")
    with valkey:
        rows = [*_filled(valkey, events), *_worked_on(valkey, folder, events)]
    return [*rows, *_sampled(folder / "samples", min(SAMPLE, events))]


def _filled(valkey: EmbeddedValkey, events: int) -> Iterator[Row]:
    with _client(valkey) as redis:
        # One log from first to last, so that its bytes are those of the events.
        redis.config_set("auto-aof-rewrite-percentage", 0)
        empty = _used(redis)
        _fill(valkey, "audit", events)
        yield Row("memory of Redis, indexes included", _used(redis) - empty, "bytes")
        yield Row("append-only file, appended in batches", _bytes_of(valkey, ".incr.aof"), "bytes")
    yield Row("restart, the log as it was appended", _restarted(valkey), "seconds")
    with _client(valkey) as redis:
        # Started again, Redis may be rewriting a log of this length already.
        _until_rewritten(redis)
        yield Row("`BGREWRITEAOF`", _seconds(lambda: _rewrite(redis)), "seconds")
        yield Row("of that, Redis stands still (fork)", redis.info("stats")["latest_fork_usec"] / 1e6, "seconds")
        yield Row("append-only file after that", _bytes_of(valkey, ".base.rdb"), "bytes")
    yield Row("restart after that", _restarted(valkey), "seconds")


def _worked_on(valkey: EmbeddedValkey, folder: Path, events: int) -> Iterator[Row]:
    def run(*words: str) -> Callable[[], object]:
        command = [sys.executable, "-m", "audit_stream", *words, "--redis-url", valkey.url]
        return lambda: subprocess.run(command, env=clean_environ(), stdout=subprocess.DEVNULL, check=True)

    with running_server(AUDIT_STREAM_REDIS_URL=valkey.url) as server:
        server.client.timeout = 3600
        yield Row("`GET /verify`", _seconds(server.verify), "seconds")
    yield Row("`audit-stream verify --jobs 1`", _seconds(run("verify", "--jobs", "1")), "seconds")
    yield Row("`audit-stream verify --jobs 2`", _seconds(run("verify", "--jobs", "2")), "seconds")
    yield Row("`audit-stream verify --deep`", _seconds(run("verify", "--deep")), "seconds")
    plain = folder / "events.jsonl"
    yield Row("`audit-stream export`", _seconds(run("export", "--out", str(plain))), "seconds")
    yield Row("the exported file", plain.stat().st_size, "bytes")
    with plain.open("rb") as source, gzip.open(folder / "events.jsonl.gz", "wb", 6) as packed:
        packed.writelines(source)
    yield Row("the same, `.gz`", (folder / "events.jsonl.gz").stat().st_size, "bytes")
    command = [sys.executable, "-m", "audit_stream", "verify", str(plain)]
    checking = _seconds(lambda: subprocess.run(command, env=clean_environ(), stdout=subprocess.DEVNULL, check=True))
    yield Row("`audit-stream verify FILE`", checking, "seconds")
    yield Row("`audit-stream import`", _seconds(run("import", str(plain), "--chain", "again")), "seconds")
    yield Row("`audit-stream reindex`", _seconds(run("reindex", "--yes")), "seconds")


def _sampled(folder: Path, sample: int) -> Iterator[Row]:
    """What one more key, source or single append costs, on small chains of their own."""
    with EmbeddedValkey(folder) as valkey, _client(valkey) as redis:

        def weight(chain: str, count: int, vary: Callable[[int], dict[str, Any]]) -> float:
            before = _used(redis)
            _fill(valkey, chain, count, vary)
            return (_used(redis) - before) / count

        plain = weight("plain", sample, lambda number: {})
        keyed = weight("keyed", sample, lambda number: {"idempotency_key": f"producer-{number:026d}"})
        few = max(sample // 10, 1)
        sourced = weight("sourced", few, lambda number: {"source": f"agent-{number}"})
        yield Row("an idempotency key, while it is remembered", keyed - plain, "bytes", per_event=True)
        yield Row("each further source or kind", sourced - plain, "bytes", per_event=True)
        before = _bytes_of(valkey, ".incr.aof")
        singles = min(SINGLES, sample)
        with running_server(AUDIT_STREAM_REDIS_URL=valkey.url, AUDIT_STREAM_CHAIN="singles") as server:
            for number in range(singles):
                assert server.post(_event(number), **{"Idempotency-Key": f"single-{number}"}).status_code == 201
        log = (_bytes_of(valkey, ".incr.aof") - before) / singles
        yield Row("append-only file, an event appended alone with a key", log, "bytes", per_event=True)
        assert redis.xlen(Keys("singles").events) == singles


def _event(number: int) -> dict[str, Any]:
    payload = {"actor": f"user-{number % 997}", "action": "model.invoke", "allowed": True, "n": number}
    return {"kind": KINDS[number % len(KINDS)], "source": f"service-{number % SOURCES}", "payload": payload}


def _fill(
    valkey: EmbeddedValkey, chain: str, events: int, vary: Callable[[int], dict[str, Any]] = lambda number: {}
) -> None:
    def body(start: int) -> bytes:
        numbers = range(start, min(start + A_CALL, events))
        return json.dumps([{**_event(number), **vary(number)} for number in numbers]).encode()

    with running_server(AUDIT_STREAM_REDIS_URL=valkey.url, AUDIT_STREAM_CHAIN=chain) as server:
        for start in range(0, events, 50 * A_CALL):
            post_all(server.url, [body(at) for at in range(start, min(start + 50 * A_CALL, events), A_CALL)])


def _restarted(valkey: EmbeddedValkey) -> float:
    valkey.stop()
    return _seconds(valkey.start)


def _rewrite(redis: Redis) -> None:
    redis.bgrewriteaof()
    _until_rewritten(redis)


def _until_rewritten(redis: Redis) -> None:
    redis.config_set("auto-aof-rewrite-percentage", 0)
    while redis.info("persistence")["aof_rewrite_in_progress"] or redis.info("persistence")["aof_rewrite_scheduled"]:
        time.sleep(0.01)


def _used(redis: Redis) -> int:
    return int(redis.info("memory")["used_memory"])


def _bytes_of(valkey: EmbeddedValkey, suffix: str) -> int:
    return sum(path.stat().st_size for path in (valkey.data_dir / "appendonlydir").glob(f"*{suffix}"))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextmanager
def _client(valkey: EmbeddedValkey) -> Iterator[Redis]:
    with Redis.from_url(valkey.url, protocol=2, socket_timeout=60) as redis:
        yield redis


if __name__ == "__main__":
    main()
