"""POST /events, one event a request, an fsync before every 201."""

from contextlib import ExitStack
from typing import Any

from benchmarks import workload
from benchmarks.envs import python_of
from benchmarks.load import Load
from benchmarks.processes import HERE, a_child, a_folder, a_valkey, asgi_server, no_storage_server, our_server
from benchmarks.session import Session, busy, rates
from benchmarks.table import Line, Target

TARGETS = {1: 0.3, 16: 1.4, 64: 3.0}
CLIENTS = 64


def against_reference(session: Session) -> list[Line]:
    lines: list[Line] = []
    for connections, bound in TARGETS.items():
        with ExitStack() as stack:
            valkey = stack.enter_context(a_valkey())
            ours = stack.enter_context(our_server(valkey))
            script = stack.enter_context(our_server(valkey, "script", AUDIT_STREAM_HASHING="script"))
            # Anew each time: what it holds in memory slows it down.
            reference, _ = stack.enter_context(asgi_server(python_of("reference"), "audit_stream.app:app"))
            found = session.take_turns(
                {
                    name: session.posting(f"{url}/events", workload.one(), connections=connections)
                    for name, url in (("ours", ours.url), ("script", script.url), ("reference", reference))
                }
            )
        theirs = rates(found["reference"])
        row = f"POST, {connections} connection{'s' if connections > 1 else ''}"
        target = Target("≥", bound)
        lines += [
            _line(row, found["ours"], "reference", theirs, target),
            _line(f"{row}, hashed by the script", found["script"], "reference", theirs, None),
            Line(
                f"{row}: p99",
                "ms",
                [load.p99_ms for load in found["ours"]],
                "reference",
                [load.p99_ms for load in found["reference"]],
                Target("≤", 1.0) if connections == max(TARGETS) else None,
            ),
        ]
    return lines


def against_postgres(session: Session) -> list[Line]:
    event = workload.event()
    arguments = [event["kind"], event["source"], workload.payload_text()]
    with ExitStack() as stack:
        valkey = stack.enter_context(a_valkey())
        ours = stack.enter_context(our_server(valkey))
        folder = stack.enter_context(a_folder())
        script = str(HERE / "peers" / "postgres_chain.py")
        postgres = stack.enter_context(
            a_child(python_of("postgres"), script, str(folder / "data"), str(CLIENTS), *arguments)
        )

        def call() -> Load:
            answer: dict[str, Any] = postgres.ask(seconds=session.scale.seconds)
            return Load(answer["rate"], answer["p99_ms"], answer["busy"], 0, 0.0)

        found = session.take_turns(
            {"ours": session.posting(f"{ours.url}/events", workload.one(), connections=CLIENTS), "postgres": call}
        )
        peer = f"Postgres {postgres.hello['version']}"
    theirs = rates(found["postgres"])
    return [_line(f"POST, {CLIENTS} connections", found["ours"], f"{peer}, function calls", theirs, Target("≥", 5))]


def against_no_storage(session: Session) -> list[Line]:
    with a_valkey() as valkey, our_server(valkey) as ours, no_storage_server() as (url, _):
        found = session.take_turns(
            {
                name: session.posting(f"{url}/events", workload.one(), connections=CLIENTS)
                for name, url in (("ours", ours.url), ("no storage", url))
            }
        )
    theirs = rates(found["no storage"])
    return [
        _line(f"POST, {CLIENTS} connections", found["ours"], "Litestar @post without storage", theirs, Target("≥", 1))
    ]


def _line(row: str, ours: list[Load], peer: str, theirs: list[float], target: Target | None) -> Line:
    return Line(row, "requests/s", rates(ours), peer, theirs, target, busy(ours))
