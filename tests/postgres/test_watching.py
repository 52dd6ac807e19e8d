"""watch, unwatch, list_watches, sync, on every version that is here."""

import threading
from typing import Any

import psycopg
import pytest

from tests.postgres.servers import Database
from tests.postgres.watched import CARDS, Watched

LISTED = "SELECT table_name, event_kind, source FROM audit_stream.list_watches()"
STATES = "SELECT table_name, state FROM audit_stream.list_watches()"


def test_a_watch_is_listed_with_the_published_source_when_none_is_given(db: Watched) -> None:
    db.run(CARDS)
    assert db.one("SELECT audit_stream.watch('decisions', 'something_changed')") == "public.decisions"
    assert db.run(LISTED) == [("public.decisions", "something_changed", "pg-audit-stream-extension")]
    assert db.run(STATES) == [("public.decisions", "watching")]


def test_a_second_watch_replaces_the_first_and_records_once(db: Watched) -> None:
    db.run(CARDS)
    db.run("SELECT audit_stream.watch('decisions', 'other', 'one', redact => '{vendor}')")
    created = db.one("SELECT created_at FROM audit_stream.list_watches()")
    notices: list[Any] = []
    db.connection.add_notice_handler(lambda said: notices.append(said.message_primary))
    assert db.one("SELECT audit_stream.watch('public.decisions', 'request_denied', 'two')") == "public.decisions"
    db.run("INSERT INTO decisions VALUES ('1', 'a', 'acme')")
    assert db.run("SELECT event_kind, source FROM audit_stream.outbox") == [("request_denied", "two")]
    assert db.run(LISTED) == [("public.decisions", "request_denied", "two")]
    assert db.one("SELECT created_at FROM audit_stream.list_watches()") == created
    # That a column is no longer hidden is not something to find out later.
    assert notices == ["audit_stream: {vendor} are no longer redacted in public.decisions"]


def test_options_are_listed_as_they_were_given(db: Watched) -> None:
    db.watch_decisions(", include => '{status}', redact => '{vendor}', only_when_changed => true")
    columns = "include, exclude, redact, only_when_changed, on_error"
    assert db.run(f"SELECT {columns} FROM audit_stream.list_watches()") == [
        (["status"], [], ["vendor"], True, "strict")
    ]


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        ("'nowhere', 'other'", "table public.nowhere does not exist", "Write it as schema.table"),
        ("'hidden', 'other'", "table public.hidden does not exist", "There is elsewhere.hidden."),
        ("'no.such.database.x', 'other'", 'table no."such.database.x" does not exist', ""),
        ("'\"open', 'other'", 'table public."""open" does not exist', ""),
        ("'', 'other'", 'table public."" does not exist', ""),
        ("NULL, 'other'", "table NULL does not exist", ""),
        ("'shown', 'other'", "shown is not a table", "For a view, watch the tables behind it"),
        ("'audit_stream.outbox', 'other'", "audit_stream.outbox is audit_stream's own", ""),
        ("'decisions', 'Not A Kind'", "'Not A Kind' is no event kind", "lower-case letters"),
        ("'decisions', NULL", "NULL is no event kind", ""),
        ("'decisions', ''", "'' is no event kind", ""),
        ("'decisions', 'other', ''", "a source has 1 to 256 characters, this one 0", ""),
        ("'decisions', 'other', repeat('x', 257)", "a source has 1 to 256 characters, this one 257", ""),
        ("'decisions', 'other', redact => '{nope,vendor}'", "decisions has no column nope", "Columns are named"),
        ("'decisions', 'other', include => '{\"Status\"}'", 'decisions has no column "Status"', ""),
        ("'decisions', 'other', include => '{id}', exclude => '{id}'", "contradict each other", "Name the columns"),
        ("'decisions', 'other', on_error => 'ignore'", "on_error is strict or best_effort, not 'ignore'", ""),
        ("'decisions', 'other', on_error => NULL", "on_error is strict or best_effort, not NULL", ""),
    ],
)
def test_what_cannot_be_watched_is_refused_with_the_reason_and_nothing_is_changed(
    db: Watched, call: str, message: str, hint: str
) -> None:
    db.run("DROP SCHEMA IF EXISTS elsewhere CASCADE; CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.hidden (id int)")
    db.run(CARDS)
    db.run("CREATE VIEW shown AS SELECT * FROM decisions")
    said = db.refused(f"SELECT audit_stream.watch({call})")
    assert said.sqlstate == "P0001"  # as the published extension raises it
    assert message in str(said.message_primary)
    assert hint in str(said.message_hint or "")
    assert db.run(LISTED) == []
    assert db.one("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == 0


def test_names_are_read_as_sql_reads_them_and_else_letter_for_letter(db: Watched) -> None:
    db.run('CREATE TABLE cards (id int); CREATE TABLE "Cards" (id int); CREATE TABLE "Only-This" (id int)')
    assert db.watch(table="Cards") == "public.cards"
    assert db.watch(table='"Cards"') == 'public."Cards"'
    assert db.watch(table="public.Only-This") == 'public."Only-This"'
    database = db.one("SELECT current_database()")
    assert db.watch(table=f"{database}.public.cards") == "public.cards"


def test_unwatch_ends_it_and_says_whether_there_was_something_to_end(db: Watched) -> None:
    db.watch_decisions()
    assert db.one("SELECT audit_stream.unwatch('decisions')") is True
    assert db.one("SELECT audit_stream.unwatch('decisions')") is False
    assert db.one("SELECT audit_stream.unwatch('never.watched')") is False
    assert db.one("SELECT audit_stream.unwatch(NULL)") is False
    db.run("INSERT INTO decisions VALUES ('1', 'a'); TRUNCATE decisions")
    assert db.payloads == []


def test_unwatch_survives_the_table(db: Watched) -> None:
    db.watch_decisions()
    db.run("DROP TABLE decisions")
    assert db.run(STATES) == [("public.decisions", "table dropped")]
    assert db.one("SELECT audit_stream.unwatch('decisions')") is True
    assert db.run(STATES) == []


def test_a_table_made_anew_is_watched_anew(db: Watched) -> None:
    db.watch_decisions()
    db.run("DROP TABLE decisions")
    db.watch_decisions()
    assert db.run(STATES) == [("public.decisions", "watching")]


def test_deleting_the_row_of_a_watch_silences_nothing_and_shows(db: Watched) -> None:
    db.watch_decisions()
    db.run("DELETE FROM audit_stream.watches")
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    assert db.operations == ["INSERT"]
    assert db.run(STATES) == [("public.decisions", "watching, but its row in watches was deleted")]
    assert db.one("SELECT audit_stream.unwatch('decisions')") is True
    db.run("INSERT INTO decisions VALUES ('2', 'a')")
    assert db.operations == ["INSERT"]


def test_a_trigger_that_was_disabled_or_dropped_shows_and_sync_mends_the_second(db: Watched) -> None:
    db.watch_decisions()
    db.run("ALTER TABLE decisions DISABLE TRIGGER audit_stream_emit")
    assert db.run(STATES) == [("public.decisions", "trigger disabled")]
    db.run("DROP TRIGGER audit_stream_emit ON decisions")
    assert db.run(STATES) == [("public.decisions", "trigger missing: call audit_stream.sync()")]
    db.run("SELECT audit_stream.sync()")
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    assert db.operations == ["INSERT"]


def test_a_partition_and_its_table_are_not_both_watched(db: Watched) -> None:
    db.run("CREATE TABLE readings (day int) PARTITION BY RANGE (day)")
    db.run("CREATE TABLE readings_1 PARTITION OF readings FOR VALUES FROM (0) TO (10)")
    db.watch(table="readings_1")
    said = db.refused("SELECT audit_stream.watch('readings', 'other')")
    assert "public.readings_1 is watched, and public.readings would be recorded twice" in str(said.message_primary)
    db.run("SELECT audit_stream.unwatch('readings_1')")
    db.watch(table="readings")
    said = db.refused("SELECT audit_stream.watch('readings_1', 'other')")
    assert "public.readings is watched, and public.readings_1 would be recorded twice" in str(said.message_primary)
    db.watch(table="readings")  # again, over the copies in the partitions
    db.run("INSERT INTO readings VALUES (1)")
    assert db.operations == ["INSERT"]
    assert db.one("SELECT audit_stream.unwatch('readings')") is True
    db.run("INSERT INTO readings VALUES (1); TRUNCATE readings")
    assert db.operations == ["INSERT"]


def test_unwatch_under_load_loses_no_change_that_was_watched_and_breaks_none(db: Watched, shared: Database) -> None:
    """Each insert is either recorded with its transaction or came after unwatch; none fails."""
    db.run("CREATE TABLE counted (writer int, n int, PRIMARY KEY (writer, n))")
    db.watch(table="counted")
    errors: list[psycopg.Error] = []
    enough, end = threading.Semaphore(0), threading.Event()

    def write(writer: int) -> None:
        try:
            with shared.connect() as connection:
                for n in range(100_000):
                    connection.execute("INSERT INTO counted VALUES (%s, %s)", (writer, n))
                    enough.release()
                    if end.is_set():
                        return
        except psycopg.Error as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(3)]
    for thread in writers:
        thread.start()
    try:
        for _ in range(2):
            for _ in range(60):
                assert enough.acquire(timeout=30)
            assert db.one("SELECT audit_stream.unwatch('counted')") is True
            (gap,) = db.run("SELECT max(id) FROM audit_stream.outbox")
            for _ in range(60):
                assert enough.acquire(timeout=30)
            assert db.run("SELECT max(id) FROM audit_stream.outbox") == [gap]
            db.watch(table="counted")
    finally:
        end.set()
        for thread in writers:
            thread.join()
    assert errors == []
    # What is recorded was done, once each; and what was done last, while watched, is recorded.
    recorded = [(p["new"]["writer"], p["new"]["n"]) for p in db.payloads]
    done = set(db.run("SELECT writer, n FROM counted"))
    assert len(recorded) == len(set(recorded))
    assert set(recorded) <= done
    for writer in range(3):
        mine = [n for who, n in recorded if who == writer]
        assert mine == sorted(mine)
        assert mine[0] == 0


def test_two_who_watch_the_same_table_at_once_leave_one_watch(db: Watched, shared: Database) -> None:
    db.run(CARDS)
    errors: list[psycopg.Error] = []

    def watch(source: str) -> None:
        try:
            with shared.connect() as connection:
                for _ in range(5):
                    connection.execute("SELECT audit_stream.watch('decisions', 'other', %s)", (source,))
        except psycopg.Error as error:
            errors.append(error)

    both = [threading.Thread(target=watch, args=(source,)) for source in ("left", "right")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert errors == []
    ((_, _, source),) = db.run(LISTED)
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    assert db.run("SELECT source FROM audit_stream.outbox") == [(source,)]
