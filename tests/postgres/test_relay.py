"""The relay against a real database and a real spine."""

import logging
import re
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any

import httpx
import psycopg
import pytest

from audit_stream.errors import Misconfigured
from audit_stream.sources.postgres.installation import install, status
from audit_stream.sources.postgres.outbox import Outbox
from tests.client.front import front_of
from tests.faults.processes import free_port
from tests.harness import ServerProcess, running_server
from tests.postgres.relays import events_of, first_events, relaying, rows_of
from tests.postgres.servers import Database, Postgres, a_postgres, binaries
from tests.postgres.watched import CARDS, Watched

LARGEST = 2 * 1024 * 1024


@pytest.fixture(scope="module")
def spine(redis_url: str) -> Iterator[ServerProcess]:
    with running_server(
        AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN="relay", AUDIT_STREAM_MAX_EVENT_BYTES=str(LARGEST)
    ) as server:
        yield server


@pytest.fixture
def db(database: Database) -> Iterator[Watched]:
    """A database of its own, whose decisions are watched under a source of its own."""
    with database.connect() as connection:
        db = Watched(connection)
        db.run(CARDS)
        db.run("SELECT audit_stream.watch('decisions', 'decision_card_status_changed', %s)", database.source)
        yield db


def insert(db: Watched, *numbers: int, status: str = "open") -> None:
    for number in numbers:
        db.run("INSERT INTO decisions VALUES (%s, %s)", str(number), status)


def test_changes_reach_the_chain_in_order_and_leave_the_outbox(
    db: Watched, database: Database, spine: ServerProcess
) -> None:
    insert(db, *range(5))
    with relaying(database.url, spine.url):
        insert(db, 5)
        db.run("DELETE FROM decisions WHERE id = '0'")
        events = first_events(spine.url, 7, database.source)
    assert rows_of(events) == ["0", "1", "2", "3", "4", "5", "0"]
    assert {event.kind for event in events} == {"decision_card_status_changed"}
    # The time of the change, however late it was appended.
    assert [datetime.fromisoformat(event.timestamp) for event in events] == [
        datetime.fromisoformat(event.payload["statement_time"]) for event in events
    ]
    assert db.payloads == []
    assert spine.verify()["valid"]


@pytest.mark.parametrize("path", ["/events", "/events/", "/"])
def test_the_address_of_the_published_bridge_is_understood(
    db: Watched, database: Database, spine: ServerProcess, path: str
) -> None:
    insert(db, 1)
    with relaying(database.url, spine.url + path):
        assert rows_of(first_events(spine.url, 1, database.source)) == ["1"]


def test_without_notify_changes_are_found_by_looking(db: Watched, database: Database, spine: ServerProcess) -> None:
    db.run("SELECT audit_stream.set_notify(false)")
    with relaying(database.url, spine.url, POLL_TIMEOUT="0.05") as relay:
        relay.log.wait_for("leading")
        insert(db, 1)
        assert rows_of(first_events(spine.url, 1, database.source)) == ["1"]


def test_a_large_backlog_arrives_whole_and_once(db: Watched, database: Database, spine: ServerProcess) -> None:
    db.run("INSERT INTO decisions SELECT i, repeat('x', 4000) FROM generate_series(1, 1200) AS i")
    with relaying(database.url, spine.url):
        first_events(spine.url, 1200, database.source)
    assert rows_of(events_of(spine.url, database.source)) == [str(number) for number in range(1, 1201)]
    assert db.payloads == []


def test_a_row_of_a_megabyte_arrives_whole(db: Watched, database: Database, spine: ServerProcess) -> None:
    large = "é" * (1024 * 1024 // 2)
    insert(db, 1)
    insert(db, 2, status=large)
    insert(db, 3)
    with relaying(database.url, spine.url):
        events = first_events(spine.url, 3, database.source)
    assert rows_of(events, "status") == ["open", large, "open"]


def test_an_event_that_is_refused_for_good_is_put_aside_with_the_reason_and_holds_up_no_other(
    db: Watched, database: Database, spine: ServerProcess
) -> None:
    insert(db, 1, 2)
    insert(db, 3, status="x" * LARGEST)
    insert(db, 4)
    db.run("CREATE TABLE typos (id int)")
    db.run("SELECT audit_stream.watch('typos', 'decision_crad_signed', %s)", database.source)
    db.run("INSERT INTO typos VALUES (5), (6)")
    insert(db, 7)
    with relaying(database.url, spine.url) as relay:
        assert rows_of(first_events(spine.url, 4, database.source)) == ["1", "2", "4", "7"]
    letters = db.run("SELECT payload::json -> 'new' ->> 'id', reason FROM audit_stream.dead_letters ORDER BY id")
    assert [id_ for id_, _ in letters] == ["3", "5", "6"]
    assert re.search("larger|limit|bytes", letters[0][1])
    assert "'decision_crad_signed' is not a kind; did you mean 'decision_card_signed'?" in letters[1][1]
    assert sum("goes to the dead letters" in line for line in relay.log.lines) == 3
    assert db.payloads == []

    # Mended and offered once more, each takes the place it had.
    db.run("UPDATE audit_stream.dead_letters SET event_kind = 'decision_card_signed' WHERE reason LIKE '%crad%'")
    assert db.one("SELECT audit_stream.requeue()") == 3
    with relaying(database.url, spine.url):
        assert rows_of(first_events(spine.url, 6, database.source)[4:]) == [5, 6]
    assert db.run("SELECT payload::json -> 'new' ->> 'id' FROM audit_stream.dead_letters") == [("3",)]


def test_values_without_a_canonical_form_arrive_as_text(db: Watched, database: Database, spine: ServerProcess) -> None:
    db.run("CREATE TABLE exact (id int, amount numeric, doc json, price float8)")
    db.run("SELECT audit_stream.watch('exact', 'other', %s)", database.source)
    deep = "[" * 80 + "]" * 80
    for amount, doc, price in (
        ("12345678901234567890.12", '{"a":\n "\\ud800"}', "1e300"),
        ("12345678901234567890", deep, "NaN"),
        ("1" + "0" * 400, '{"n": 1e999}', "0.1"),
    ):
        db.run("INSERT INTO exact VALUES (1, %s, %s, %s)", amount, doc, price)
    with relaying(database.url, spine.url):
        rows = [event.payload["new"] for event in first_events(spine.url, 3, database.source)]
    assert [row["amount"] for row in rows] == ["12345678901234567890.12", 12345678901234567890, "1" + "0" * 400]
    assert [row["doc"] for row in rows] == ['{"a": "\\ud800"}', deep, {"n": "1e999"}]
    assert [row["price"] for row in rows] == [1e300, "NaN", 0.1]
    assert db.run("SELECT * FROM audit_stream.dead_letters") == []


def test_bytes_of_no_encoding_arrive_escaped(postgres: Postgres, spine: ServerProcess) -> None:
    database = postgres.database("ascii", "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    install(database.url)
    with database.connect() as connection:
        db = Watched(connection)
        db.run("SET client_encoding = 'SQL_ASCII'")
        db.run(CARDS)
        db.run("SELECT audit_stream.watch('decisions', 'other', 'ascii')")
        db.run("INSERT INTO decisions VALUES ('1', E'caf\\xe9')")
        db.run("INSERT INTO decisions VALUES ('2', E'caf\\xc3\\xa9')")
    with relaying(database.url, spine.url):
        events = first_events(spine.url, 2, "ascii")
    assert rows_of(events, "status") == ['"caf\\udce9"', "café"]


def test_transactions_that_commit_out_of_order_lose_nothing(
    db: Watched, database: Database, spine: ServerProcess
) -> None:
    with database.connect() as late_connection, relaying(database.url, spine.url) as relay:
        relay.log.wait_for("leading")
        late = Watched(late_connection)
        late.run("BEGIN")
        insert(late, 1)  # the smallest id, visible last
        insert(db, 2, 3)
        assert rows_of(first_events(spine.url, 2, database.source)) == ["2", "3"]
        late.run("COMMIT")
        assert rows_of(first_events(spine.url, 3, database.source)) == ["2", "3", "1"]


# Whoever is away


def test_changes_wait_while_the_spine_is_away(db: Watched, database: Database, redis_url: str, chain: str) -> None:
    port = free_port()
    with relaying(database.url, f"http://127.0.0.1:{port}") as relay:
        insert(db, 1)
        relay.log.wait_for("the spine takes nothing now")
        insert(db, 2)
        assert len(db.payloads) == 2
        with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, PORT=str(port)) as server:
            assert rows_of(first_events(server.url, 2, database.source)) == ["1", "2"]


@pytest.mark.parametrize("behaviour", ["cut after", "cut before", "busy", "portal"])
def test_an_answer_that_is_lost_is_no_reason_to_store_twice_or_not_at_all(
    db: Watched, database: Database, spine: ServerProcess, behaviour: Any
) -> None:
    insert(db, *range(3))
    with front_of(spine.url, behaviour) as front, relaying(database.url, front.url, POLL_TIMEOUT="0.05") as relay:
        relay.log.wait_for("the spine takes nothing now")
        if behaviour != "busy":  # whose Retry-After is not waited for here
            first_events(spine.url, 3, database.source)
            insert(db, 3)
            assert rows_of(first_events(spine.url, 4, database.source)) == ["0", "1", "2", "3"]
    assert len(events_of(spine.url, database.source)) == (0 if behaviour == "busy" else 4)
    assert len(db.payloads) == (3 if behaviour == "busy" else 0)


def test_the_database_may_crash_and_the_spine_with_it(postgres: Postgres, redis_url: str, chain: str) -> None:
    port = free_port()
    environ = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, "PORT": str(port)}
    with a_postgres(max(binaries())) as server:
        database = server.database("crashing")
        install(database.url)
        database.run(CARDS, "SELECT audit_stream.watch('decisions', 'other', 'crashing')")
        with relaying(database.url, f"http://127.0.0.1:{port}", POLL_TIMEOUT="0.2") as relay:
            with running_server(**environ) as spine:
                database.run("INSERT INTO decisions VALUES ('1', 'a')")
                first_events(spine.url, 1, "crashing")
                server.stop("immediate")
                relay.log.wait_for("the database is away")
                server.start()
                relay.log.wait_for("leading", times=2)
                database.run("INSERT INTO decisions VALUES ('2', 'a')")
                first_events(spine.url, 2, "crashing")
            database.run("INSERT INTO decisions VALUES ('3', 'a')")
            relay.log.wait_for("the spine takes nothing now")
            server.stop("immediate")  # now both are away
            relay.log.wait_for("the database is away", times=2)
            server.start()
            database.run("INSERT INTO decisions VALUES ('4', 'a')")
            with running_server(**environ) as spine:
                assert rows_of(first_events(spine.url, 4, "crashing")) == ["1", "2", "3", "4"]
        assert database.run("SELECT waiting FROM audit_stream.lag()") == [(0,)]


# Two relays


def test_of_two_relays_one_leads_and_the_other_takes_its_place(
    db: Watched, database: Database, spine: ServerProcess
) -> None:
    with relaying(database.url, spine.url) as first:
        first.log.wait_for("leading")
        found = status(database.url)
        assert found
        assert str(found.relay).startswith("audit-stream-bridge pid ")
        with relaying(database.url, spine.url, POLL_TIMEOUT="0.05") as second:
            second.log.wait_for("another relay leads")
            insert(db, 1, 2)
            first_events(spine.url, 2, database.source)
            first.stop()
            insert(db, 3)
            assert rows_of(first_events(spine.url, 3, database.source)) == ["1", "2", "3"]
            assert any("leading" in line for line in second.log.lines)


# What waiting does not mend


def test_where_nothing_is_installed_the_relay_says_how_to(postgres: Postgres, spine: ServerProcess) -> None:
    postgres.database("nothing_here")
    with (
        pytest.raises(Misconfigured, match="run `audit-stream postgres install`"),
        relaying(postgres.url_of("nothing_here"), spine.url) as relay,
    ):
        relay.join()


def test_a_role_that_is_allowed_to_relay_is_allowed_all_that_takes(
    db: Watched, database: Database, spine: ServerProcess
) -> None:
    db.run("CREATE ROLE carrier LOGIN; CREATE ROLE stranger LOGIN; GRANT USAGE ON SCHEMA audit_stream TO stranger")
    db.run("SELECT audit_stream.allow_relay('carrier')")
    insert(db, 1)
    with (
        pytest.raises(Misconfigured, match=r"permission denied.*SELECT audit_stream.allow_relay"),
        relaying(database.url.replace("postgres@", "stranger@"), spine.url) as relay,
    ):
        relay.join()
    as_carrier = database.url.replace("postgres@", "carrier@")
    insert(db, 2, status="x" * LARGEST)
    with relaying(as_carrier, spine.url, METRICS_LISTEN="127.0.0.1:0") as relay:
        relay.log.wait_for("goes to the dead letters")
        assert rows_of(first_events(spine.url, 1, database.source)) == ["1"]
    with psycopg.connect(as_carrier, autocommit=True) as connection:
        assert Watched(connection).refused("SELECT * FROM decisions").sqlstate == "42501"
    db.run("DROP OWNED BY carrier, stranger; DROP ROLE carrier, stranger")


class Answering(BaseHTTPRequestHandler):
    """Answers every request with the status in `answer`, as an audit-stream server words it."""

    answer = 500
    asked = threading.Semaphore(0)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"title":"No","status":%d,"detail":"not like this"}' % self.answer
        self.send_response(self.answer)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        Answering.asked.release()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("answer", [401, 403, 404, 409, 429, 500])
def test_what_is_not_about_the_event_puts_none_aside(db: Watched, database: Database, answer: int) -> None:
    Answering.answer = answer
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    insert(db, 1)
    try:
        with relaying(database.url, f"http://127.0.0.1:{server.server_port}") as relay:
            for _ in range(1 if answer in (429, 500) else 3):  # these two say when to ask again
                assert Answering.asked.acquire(timeout=30)
            relay.log.wait_for("the spine takes nothing now")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert len(db.payloads) == 1
    assert db.run("SELECT * FROM audit_stream.dead_letters") == []


# Metrics


def test_the_metrics_tell_the_lag_and_what_was_done(
    db: Watched, database: Database, spine: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "audit_stream.relay")
    insert(db, 1, 2)
    db.run("INSERT INTO audit_stream.dead_letters SELECT *, 'by hand' FROM audit_stream.outbox LIMIT 1")
    with relaying(database.url, spine.url, METRICS_LISTEN="127.0.0.1:0", POLL_TIMEOUT="0.05") as relay:
        relay.log.wait_for("metrics at")
        url = next(line.split()[-1] for line in relay.log.lines if line.startswith("metrics at"))
        first_events(spine.url, 2, database.source)
        insert(db, 3)
        first_events(spine.url, 3, database.source)
        insert(db, 4)
        first_events(spine.url, 4, database.source)
        found = dict(re.findall(r"^audit_stream_relay_(\S+) (\S+)$", httpx.get(url).text, re.MULTILINE))
    # The fourth may be delivered and not yet deleted.
    assert float(found["events_total"]) in (3, 4)
    assert float(found["outbox_events"]) in (0, 1, 2)
    assert {name: float(found[name]) for name in ("leading", "database_connected", "spine_away", "dead_letters")} == {
        "leading": 1,
        "database_connected": 1,
        "spine_away": 0,
        "dead_letters": 1,
    }
    assert 'failures_total{side="spine"}' in found
    assert float(found["lag_seconds"]) < 60


def test_an_address_for_the_metrics_that_is_taken_is_an_error_where_it_was_asked_for(
    database: Database, spine: ServerProcess
) -> None:
    taken = httpx.URL(spine.url)
    with (
        pytest.raises(Misconfigured, match="METRICS_LISTEN: cannot listen on"),
        relaying(database.url, spine.url, METRICS_LISTEN=f"127.0.0.1:{taken.port}") as relay,
    ):
        relay.join()


def test_a_change_in_the_moment_in_which_the_relay_falls_asleep_is_seen(
    db: Watched, database: Database, spine: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found the relay awake, so nothing wakes the relay for it: only the second look finds it."""
    fall_asleep = Outbox.fall_asleep

    async def after_a_change(outbox: Outbox) -> bool:
        if not db.run("SELECT 1 FROM decisions"):
            insert(db, 1)
        return await fall_asleep(outbox)

    monkeypatch.setattr(Outbox, "fall_asleep", after_a_change)
    with relaying(database.url, spine.url, POLL_TIMEOUT="60"):
        began = monotonic()
        assert rows_of(first_events(spine.url, 1, database.source)) == ["1"]
        assert monotonic() - began < 30
