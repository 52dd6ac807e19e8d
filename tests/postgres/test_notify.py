"""`notify`: each change also as a NOTIFY that carries the request, for listeners of the published extension's."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.harness import ServerProcess
from tests.postgres.relays import first_events, relaying
from tests.postgres.servers import Database
from tests.postgres.watched import CARDS, Watched


@pytest.fixture
def listener(shared: Database) -> Iterator["psycopg.Connection[tuple[Any, ...]]"]:
    with shared.connect() as connection:
        connection.execute("LISTEN audit_stream")
        yield connection


def heard(listener: "psycopg.Connection[tuple[Any, ...]]", count: int) -> list[Any]:
    """So many notifications; and a last one of our own, before which no other came."""
    with psycopg.connect(listener.info.dsn, autocommit=True) as other:
        other.execute("SELECT pg_notify('audit_stream', '\"end\"')")
    found = [json.loads(said.payload) for said in listener.notifies(timeout=30, stop_after=count + 1)]
    assert found.pop() == "end"
    return found


def test_each_change_is_notified_as_the_request_that_the_published_extension_sent(
    db: Watched, listener: "psycopg.Connection[tuple[Any, ...]]"
) -> None:
    db.watch_decisions(", notify => true")
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    db.run("UPDATE decisions SET status = 'é\"'; DELETE FROM decisions")
    found = heard(listener, 3)
    assert [(said["kind"], said["source"], said["payload"]["operation"]) for said in found] == [
        ("other", "tests", "INSERT"),
        ("other", "tests", "UPDATE"),
        ("other", "tests", "DELETE"),
    ]
    assert all(said.keys() == {"kind", "source", "payload"} for said in found)
    assert [said["payload"] for said in found] == db.payloads
    assert (found[1]["payload"]["table"], found[1]["payload"]["new"]["status"]) == ("public.decisions", 'é"')


def test_what_a_notify_does_not_hold_is_truncated_with_a_note_and_whole_in_the_outbox(
    db: Watched, listener: "psycopg.Connection[tuple[Any, ...]]"
) -> None:
    db.watch_decisions(", notify => true")
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    (first,) = heard(listener, 1)
    # Times and transaction numbers are not always as long, so the edge is met from both sides, not on the byte.
    room = 8000 - len(json.dumps(first, separators=(",", ":")))
    for size, is_truncated in ((room - 50, False), (room + 50, True), (100_000, True)):
        db.run("DELETE FROM decisions; TRUNCATE audit_stream.outbox")
        db.run("INSERT INTO decisions VALUES ('1', repeat('x', %s))", size)
        found = heard(listener, 2)[1]["payload"]
        (whole,) = db.payloads
        assert len(whole["new"]["status"]) == size
        if not is_truncated:
            assert found == whole
            continue
        assert found == {
            "table": "public.decisions",
            "operation": "INSERT",
            "change_id": whole["change_id"],
            "truncated": True,
            "note": "row data omitted; exceeds 8000-byte NOTIFY limit",
        }


def test_nothing_is_notified_without_it_not_even_to_wake_the_relay(
    db: Watched, listener: "psycopg.Connection[tuple[Any, ...]]", shared: Database
) -> None:
    db.watch_decisions()
    with shared.connect() as asleep:
        asleep.execute("SELECT pg_advisory_lock(418581342581)")  # as a relay that sleeps
        db.run("INSERT INTO decisions VALUES ('1', 'a')")
        assert heard(listener, 0) == []
    db.watch(", notify => true")
    db.watch()
    db.run("INSERT INTO decisions VALUES ('2', 'a')")
    assert heard(listener, 0) == []


def test_the_relay_delivers_them_once(database: Database, server: ServerProcess) -> None:
    with database.connect() as connection:
        db = Watched(connection)
        db.run(CARDS)
        db.run("SELECT audit_stream.watch('decisions', 'other', %s, notify => true)", database.source)
        with relaying(database.url, server.url):
            for number in range(20):
                db.run("INSERT INTO decisions VALUES (%s, 'a')", str(number))
            events = first_events(server.url, 20, database.source)
    assert [event.payload["new"]["id"] for event in events] == [str(number) for number in range(20)]
