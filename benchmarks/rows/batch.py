"""POST /events/batch against what Redis alone takes: XADD of the same fields, pipelined, without a hash."""

import time

from redis import Redis

from benchmarks import workload
from benchmarks.processes import a_valkey, our_server
from benchmarks.session import Session, busy
from benchmarks.table import Line, Target

EVENTS = 500
CONNECTIONS = 4


def against_bare_xadd(session: Session) -> list[Line]:
    with a_valkey() as valkey, our_server(valkey) as ours, Redis.from_url(valkey.url, protocol=2) as redis:
        generator_busy: list[float] = []

        def post() -> float:
            load = session.posting(f"{ours.url}/events/batch", workload.batch(EVENTS), connections=CONNECTIONS)()
            generator_busy.extend(busy([load]))
            return load.rate * EVENTS

        found = session.take_turns({"ours": post, "xadd": lambda: _xadd(redis, session.scale.seconds)})
    note = f"{CONNECTIONS} connections; the peer pipelines {EVENTS} a round trip on one, fsync always too"
    return [
        Line(
            f"POST /events/batch, {EVENTS} events a call",
            "events/s",
            found["ours"],
            "bare XADD by redis-py",
            found["xadd"],
            Target("≥", 0.7),
            generator_busy,
            note,
        )
    ]


def _xadd(redis: Redis, seconds: float) -> float:
    fields, added = workload.fields(), 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        with redis.pipeline(transaction=False) as pipeline:
            for _ in range(EVENTS):
                pipeline.execute_command("XADD", "bare", "*", *fields)
            added += len(pipeline.execute())
    return added / (time.perf_counter() - began)
