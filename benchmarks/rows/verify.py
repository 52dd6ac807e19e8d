"""Verifying: against the reference's walk over its memory, against reading without checking, on several cores."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from redis import Redis

from audit_stream.embedded import EmbeddedValkey
from benchmarks import workload
from benchmarks.envs import python_of
from benchmarks.processes import HERE, Child, a_child, a_valkey, our_server
from benchmarks.rows.filling import fill
from benchmarks.session import Session
from benchmarks.table import Line, Target
from tests.harness import ServerProcess, clean_environ

PAGE = 1000


def against_reference_and_bare_xrange(session: Session) -> list[Line]:
    events = session.scale.chain_events
    with ExitStack() as stack:
        valkey = stack.enter_context(a_valkey())
        ours = stack.enter_context(our_server(valkey))
        redis = stack.enter_context(Redis.from_url(valkey.url, protocol=2))
        script = str(HERE / "peers" / "reference_verify.py")
        body = json.dumps(workload.event())
        reference = stack.enter_context(a_child(python_of("reference"), script, str(events), body))
        fill(ours.url, events)
        found = session.take_turns(
            {
                "ours": lambda: events / _seconds_of(lambda: _verify(ours, events)),
                "reference": lambda: events / _reference_seconds(reference),
                "xrange": lambda: events / _seconds_of(lambda: _read_through(redis, b"{audit}:events", events)),
            }
        )
    row = f"GET /verify, {events:,} events"
    return [
        Line(
            row,
            "events/s",
            found["ours"],
            "reference, in memory",
            found["reference"],
            Target("≥", 1.8),
        ),
        Line(row, "events/s", found["ours"], f"bare XRANGE, {PAGE:,} a page", found["xrange"], Target("≥", 0.8)),
    ]


def on_several_cores(session: Session) -> list[Line]:
    events = 2 * session.scale.chain_events
    with a_valkey() as valkey:
        with our_server(valkey) as ours:
            fill(ours.url, events)
        row = f"audit-stream verify --redis-url --jobs 2, {events:,} events"
        peer = "--jobs 1"
        if "no such option" in _command(valkey, 1).stderr.lower():
            return [Line(row, "events/s", [], peer, [], Target("≥", 1.6), note="this command has no --jobs")]

        def verify_with(jobs: int) -> float:
            return events / _seconds_of(lambda: _must(_command(valkey, jobs)))

        found = session.take_turns({"one": partial(verify_with, 1), "two": partial(verify_with, 2)})
    note = "the start of the processes included"
    return [Line(row, "events/s", found["two"], peer, found["one"], Target("≥", 1.6), note=note)]


def _seconds_of(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _reference_seconds(reference: Child) -> float:
    seconds: float = reference.ask()["seconds"]
    return seconds


def _verify(server: ServerProcess, events: int) -> None:
    verdict = server.verify()
    if not verdict["valid"] or verdict["checked"] != events:
        raise RuntimeError(f"the chain of {events} events does not verify: {verdict}")


def _read_through(redis: "Redis", key: bytes, events: int) -> None:
    # Without redis-py's own parsing into dicts: that is no part of reading.
    redis.set_response_callback("XRANGE", lambda reply, **_: reply)
    at, read = b"-", 0
    while page := redis.execute_command("XRANGE", key, at, "+", "COUNT", PAGE):
        at = b"(" + page[-1][0]
        read += len(page)
    if read != events:
        raise RuntimeError(f"read {read} of {events} events")


def _command(valkey: EmbeddedValkey, jobs: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "audit_stream", "verify", "--redis-url", valkey.url, "--jobs", str(jobs)]
    return subprocess.run(command, env=clean_environ(), capture_output=True, text=True, check=False)


def _must(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise RuntimeError(f"{done.args} ended with {done.returncode}: {done.stderr}")
