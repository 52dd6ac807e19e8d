"""A chain of a million events: does it append as fast, answer as fast, and what does it weigh?"""

import json
import random
import time
from contextlib import ExitStack
from functools import partial

from redis import Redis

from audit_stream.keys import Keys
from benchmarks import workload
from benchmarks.latency import Getter, p99_ms
from benchmarks.machine import resident_mb
from benchmarks.processes import a_valkey, our_server
from benchmarks.rows.filling import RARE_EVENTS, fill
from benchmarks.rows.sse import a_crowd
from benchmarks.session import Session, busy, rates
from benchmarks.table import Line, Target
from tests.harness import ServerProcess

CONNECTIONS = 64
AT_THE_END = 10


def all_on_one_chain(session: Session) -> list[Line]:
    scale = session.scale
    with ExitStack() as stack:
        valkey = stack.enter_context(a_valkey())
        redis = stack.enter_context(Redis.from_url(valkey.url, protocol=2))
        long = stack.enter_context(our_server(valkey, "long"))
        short = stack.enter_context(our_server(valkey, "short"))
        idle_mb = resident_mb(long.pid)
        weight = _fill_and_weigh(redis, long, scale.large_chain_events)
        filled_mb = resident_mb(long.pid)
        fill(short.url, scale.small_chain_events)
        _until_log_is_rewritten(redis)
        lines = [weight, _appending(session, long, short), *_lookups(session, redis, long)]
        with a_crowd(long.url, scale.subscribers):
            read_mb = resident_mb(long.pid)
    return [
        *lines,
        Line("API process: memory, idle", "MB", [idle_mb]),
        Line(f"API process: memory after {scale.large_chain_events:,} appends", "MB", [filled_mb], "idle", [idle_mb]),
        Line(f"API process: memory under {scale.subscribers:,} SSE readers", "MB", [read_mb], "idle", [idle_mb]),
    ]


def _fill_and_weigh(redis: "Redis", server: ServerProcess, events: int) -> Line:
    before = _used_memory(redis)
    fill(server.url, events)
    used = (_used_memory(redis) - before) / events
    event = json.loads(server.get(f"/events/{events}").content)
    payload = len(workload.payload_text())
    own = payload + sum(len(str(value)) for name, value in event.items() if name != "payload")
    row = f"memory in Redis per event, at {events:,}"
    note = f"a payload of {payload} bytes; three indexes included"
    return Line(row, "bytes", [used], "payload and its six fields", [own], Target("≤", 1.35), note=note)


def _used_memory(redis: "Redis") -> int:
    return int(redis.info("memory")["used_memory"])


def _until_log_is_rewritten(redis: "Redis") -> None:
    """Filling makes Redis rewrite its log in the background; that is no part of what comes next."""
    while redis.info("persistence")["aof_rewrite_in_progress"]:
        time.sleep(0.1)


def _appending(session: Session, long: ServerProcess, short: ServerProcess) -> Line:
    found = session.take_turns(
        {
            name: session.posting(f"{server.url}/events", workload.one(), connections=CONNECTIONS)
            for name, server in (("long", long), ("short", short))
        }
    )
    row = f"POST, {CONNECTIONS} connections, at {session.scale.large_chain_events:,} events"
    peer = f"at {session.scale.small_chain_events:,}"
    return Line(
        row, "requests/s", rates(found["long"]), peer, rates(found["short"]), Target("≥", 0.95), busy(found["long"])
    )


def _lookups(session: Session, redis: "Redis", server: ServerProcess) -> list[Line]:
    redis.set_response_callback("XRANGE", lambda reply, **_: reply)
    key, times = Keys("long").events, session.scale.lookups
    getter, choose = Getter(server.url), random.Random(1)
    end = json.loads(getter.get("/stats"))["last_event_id"]

    def bare() -> None:
        start = choose.randrange(1, end - RARE_EVENTS)
        assert len(redis.execute_command("XRANGE", key, start, "+", "COUNT", RARE_EVENTS)) == RARE_EVENTS

    def by_kind() -> None:
        assert getter.get(f"/events?kind={workload.RARE_KIND}").count(b'"event_id"') == RARE_EVENTS

    def by_id() -> None:
        getter.get(f"/events/{choose.randrange(1, end)}")

    def resume() -> None:
        getter.read_frames(f"/stream?after={end - AT_THE_END}", AT_THE_END)

    rows = {
        f"GET /events?kind=, {RARE_EVENTS} among {session.scale.large_chain_events:,}": by_kind,
        "GET /events/{id}": by_id,
        f"GET /stream?after=, {AT_THE_END} from the end": resume,
    }
    found = session.take_turns(
        {"bare": partial(p99_ms, bare, times), **{row: partial(p99_ms, work, times) for row, work in rows.items()}}
    )
    getter.close()
    peer = f"bare XRANGE COUNT {RARE_EVENTS}"
    return [Line(f"{row}: p99", "ms", found[row], peer, found["bare"], Target("≤", 3)) for row in rows]
