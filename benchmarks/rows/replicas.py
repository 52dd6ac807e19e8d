"""Several replicas writing to one chain at once, against one."""

from contextlib import ExitStack
from functools import partial

from benchmarks import workload
from benchmarks.load import Load
from benchmarks.processes import a_valkey, our_server
from benchmarks.session import Session, busy, rates
from benchmarks.table import Line, Target
from tests.harness import ServerProcess

CONNECTIONS = 64
COUNTS = (1, 2, 4)


def against_one(session: Session) -> list[Line]:
    lost: dict[int, list[float]] = {count: [] for count in COUNTS}
    with ExitStack() as stack:
        valkey = stack.enter_context(a_valkey())
        servers = [stack.enter_context(our_server(valkey)) for _ in range(max(COUNTS))]

        def write(count: int) -> Load:
            before = _lost_races(servers)
            load = session.generator.post_to_all(
                [f"{server.url}/events" for server in servers[:count]],
                workload.one(),
                connections=CONNECTIONS,
                seconds=session.scale.seconds,
            )
            lost[count].append(1000 * (_lost_races(servers) - before) / load.requests)
            return load

        found = session.take_turns({str(count): partial(write, count) for count in COUNTS})
    lines = []
    for count in COUNTS[1:]:
        row = f"{count} replicas at once, {CONNECTIONS} connections in all"
        ours = found[str(count)]
        one = rates(found["1"])
        lines += [
            Line(row, "requests/s", rates(ours), "one replica", one, Target("≥", 1), busy(ours)),
            Line(f"{row}: conflicts", "lost races per 1,000 events", lost[count][-session.scale.rounds :]),
        ]
    return lines


def _lost_races(servers: list[ServerProcess]) -> int:
    return sum(server.get("/stats").raise_for_status().json()["lost_races"] for server in servers)
