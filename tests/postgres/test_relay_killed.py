"""The relay's process: killed at any moment, stopped in good order, started under its published name.

`make relay-kills` is the long run: 30 SIGKILLs during 5,000 changes. AUDIT_STREAM_TEST_RELAY_KILLS and
AUDIT_STREAM_TEST_RELAY_SEED set another.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit_stream.sources.postgres import relay as relay_module
from tests.client.front import front_of
from tests.harness import ServerProcess, clean_environ
from tests.postgres.relays import RelayProcess, environ_of, events_of, first_events, relaying, rows_of
from tests.postgres.servers import Database
from tests.postgres.watched import CARDS, Watched

KILLS = int(os.environ.get("AUDIT_STREAM_TEST_RELAY_KILLS", "3"))
SEED = os.environ.get("AUDIT_STREAM_TEST_RELAY_SEED", "1")
CHANGES_A_KILL = 5_000 // 30 + 1


@pytest.fixture
def db(database: Database) -> Iterator[Watched]:
    with database.connect() as connection:
        db = Watched(connection)
        db.run(CARDS)
        db.run("SELECT audit_stream.watch('decisions', 'other', %s)", database.source)
        yield db


class Writer:
    """Changes rows at random, in transactions of some changes, and keeps account of what was committed."""

    def __init__(self, db: Watched, rng: random.Random) -> None:
        self._db, self._rng = db, rng
        self.done: list[tuple[str, str, str]] = []
        """Operation, id, and the status that was written or deleted."""
        self._rows: dict[str, str] = {}
        self._next = 0

    def transact(self) -> int:
        """Do one transaction; how many changes were committed."""
        rows, changes = dict(self._rows), list[tuple[str, str, str]]()
        self._db.run("BEGIN")
        for _ in range(self._rng.choice((1, 1, 1, 2, 5, 20))):
            changes.append(self._change())
        if self._rng.random() < 0.1:
            self._db.run("ROLLBACK")
            self._rows = rows
            return 0
        self._db.run("COMMIT")
        self.done += changes
        return len(changes)

    def _change(self) -> tuple[str, str, str]:
        operation = self._rng.choice(("INSERT", "INSERT", "UPDATE", "DELETE")) if self._rows else "INSERT"
        self._next += 1
        status = f"{self._next} {'x' * self._rng.choice((0, 0, 0, 3000))}"
        if operation == "INSERT":
            id_ = str(self._next)
            self._db.run("INSERT INTO decisions VALUES (%s, %s)", id_, status)
        else:
            id_ = self._rng.choice(list(self._rows))
            if operation == "UPDATE":
                self._db.run("UPDATE decisions SET status = %s WHERE id = %s", status, id_)
            else:
                status = self._rows.pop(id_)
                self._db.run("DELETE FROM decisions WHERE id = %s", id_)
                return operation, id_, status
        self._rows[id_] = status
        return operation, id_, status


@pytest.mark.timeout(60 + 10 * KILLS)
def test_a_relay_that_is_killed_again_and_again_leaves_each_change_on_the_chain_exactly_once(
    db: Watched, database: Database, server: ServerProcess
) -> None:
    rng = random.Random(f"{SEED} {KILLS}")
    writer = Writer(db, rng)
    relay = RelayProcess(database.url, server.url)
    for _ in range(KILLS):
        relay.wait_for("leading")
        written = 0
        kill_at: int | None = rng.randrange(CHANGES_A_KILL // 2)
        while written < CHANGES_A_KILL:
            if kill_at is not None and written >= kill_at:
                # The changes that follow find no relay, or one that is starting.
                assert relay.end(signal.SIGKILL) == -signal.SIGKILL
                relay, kill_at = RelayProcess(database.url, server.url), None
            written += writer.transact()
    first_events(server.url, len(writer.done), database.source)
    assert relay.end() == 0
    events = events_of(server.url, database.source)
    assert [
        (e.payload["operation"], row["id"], row["status"])
        for e in events
        for row in [e.payload.get("new") or e.payload["old"]]
    ] == writer.done
    assert len({event.payload["change_id"] for event in events}) == len(writer.done) >= KILLS * CHANGES_A_KILL
    assert db.payloads == []
    assert db.run("SELECT * FROM audit_stream.dead_letters") == []
    assert server.verify()["valid"]
    print(f"{KILLS} kills, {len(writer.done)} changes, seed {SEED}: each on the chain once, in order")


def test_a_relay_killed_between_the_answer_and_the_deletion_stores_nothing_twice(
    db: Watched, database: Database, server: ServerProcess
) -> None:
    db.run("INSERT INTO decisions SELECT i, 'a' FROM generate_series(1, 20) AS i")
    with front_of(server.url, "hang") as front:
        relay = RelayProcess(database.url, front.url)
        assert front.hanging.wait(60)  # the chain has them, and the relay does not know
        assert relay.end(signal.SIGKILL) == -signal.SIGKILL
    assert len(events_of(server.url, database.source)) == len(db.payloads) == 20
    db.run("INSERT INTO decisions VALUES ('21', 'a')")
    relay = RelayProcess(database.url, server.url)
    first_events(server.url, 21, database.source)
    assert relay.end() == 0
    assert rows_of(events_of(server.url, database.source)) == [str(number) for number in range(1, 22)]
    assert db.payloads == []


def test_the_published_name_starts_it_and_sigterm_ends_it(database: Database) -> None:
    bridge = Path(sys.executable).with_name("audit-stream-bridge")
    environ = clean_environ() | environ_of(database.url, "http://127.0.0.1:1/events", LOG_LEVEL="debug")
    process = subprocess.Popen([bridge], env=environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    with process.stderr:
        assert any("leading: changes go to http://127.0.0.1:1" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert "stopped" in process.stderr.read()
    assert process.wait(30) == 0


def test_it_ends_though_the_spine_is_silent_and_leaves_what_was_under_way_to_the_next(
    db: Watched, database: Database, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "GRACE_S", 0.1)
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    with front_of(server.url, "hang") as front:
        with relaying(database.url, front.url) as relay:
            assert front.hanging.wait(60)
            relay.stop()
        assert len(db.payloads) == 1
        db.run("INSERT INTO decisions VALUES ('2', 'a')")
        with relaying(database.url, server.url):
            first_events(server.url, 2, database.source)
    assert rows_of(events_of(server.url, database.source)) == ["1", "2"]
    assert db.payloads == []


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [
        ("DATABASE_URL", "", "DATABASE_URL is not set"),
        ("DATABASE_URL", "bogus=1", 'DATABASE_URL: invalid connection option "bogus"'),
        ("POLL_TIMEOUT", "soon", "POLL_TIMEOUT: 'soon' is no number of seconds"),
    ],
)
def test_a_wrong_setting_ends_it_with_the_name_of_the_variable(
    postgres: object, variable: str, text: str, complaint: str
) -> None:
    environ = clean_environ() | environ_of("postgresql://", "http://127.0.0.1:1") | {variable: text}
    done = subprocess.run(
        [sys.executable, "-m", "audit_stream", "postgres", "relay"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
