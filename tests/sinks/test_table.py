"""The table: what its rows say, what verifies them, and who may write."""

import json
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from audit_stream.chain import START, Event
from audit_stream.errors import Misconfigured
from audit_stream.sinks import purview
from audit_stream.sinks.postgres import schema
from audit_stream.sinks.postgres.checking import check
from audit_stream.sinks.postgres.rows import FEDERATED_SOURCE_LENGTH
from audit_stream.sinks.postgres.table import TableSink
from audit_stream.sinks.record import record_of
from audit_stream.sinks.sink import Position, SinkFailed
from tests.postgres.servers import Database, Postgres
from tests.sinks.chains import AUDITED, chained, done, head_of, numbered
from tests.sinks.test_docs import GRANTS

ODD: dict[str, Any] = {
    "actor": "nul\0 and café",
    "args": {"a\0b": ["x\0", 10**300, 1e22, -0.0]},
    "federated_source": "long " * 1000,
    "audit_id": "long " * 10_000,
    "metadata": {"deep": "nul\0", "\0": 1, "escaped": "\\u0000"},
    "note": {"command": None},
}


def write(database: Database, *batches: list[Event], tenant_id: str | None = None) -> Position:
    async def written() -> Position:
        sink = TableSink(database.url, tenant_id)
        try:
            position = await sink.open()
            for batch in batches:
                await sink.write(batch)
            return position
        finally:
            await sink.close()

    found: Position = done(written())
    return found


def rows(database: Database, query: str = "SELECT * FROM audit_events.events ORDER BY event_id") -> list[Any]:
    with psycopg.connect(database.url) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.cursor(row_factory=dict_row).execute(query.encode()).fetchall()


def test_a_row_says_what_the_event_does(database: Database) -> None:
    (event,) = chained([(AUDITED, "other", "forge", "2026-05-15T03:14:15.123+00:00")])
    assert write(database, [event]) == (START, START)
    (row,) = rows(database)
    assert {name: row[name] for name in AUDITED.keys() - {"timestamp"}} == {
        name: value for name, value in AUDITED.items() if name != "timestamp"
    }
    assert row["timestamp"].isoformat() == "2026-05-16T01:59:59.500000+00:00"
    assert (row["event_id"], row["kind"], row["source"], row["result_type"]) == (1, "other", "forge", "Success")
    assert (row["prev_hash"], row["hash"]) == (event.prev_hash.decode(), event.hash.decode())
    assert json.loads(row["canonical"])["payload"] == json.loads(event.payload)


def test_the_newest_row_is_the_cursor(database: Database) -> None:
    events = numbered(5)
    write(database, events[:2], events[2:4])
    assert write(database, events[4:]) == (head_of(events[3]), head_of(events[3]))
    assert [row["event_id"] for row in rows(database)] == [1, 2, 3, 4, 5]


def test_a_batch_is_there_whole_or_not_at_all(database: Database) -> None:
    events = numbered(6)
    write(database, events[:3])
    with pytest.raises(SinkFailed, match="duplicate key value"):
        write(database, [*events[3:], events[0]])
    assert [row["event_id"] for row in rows(database)] == [1, 2, 3]
    write(database, events[3:])
    assert len(rows(database)) == 6


def test_the_azure_export_gives_the_lines_of_the_azure_files(database: Database) -> None:
    hidden = {"purview_compatible": False}
    bodies: list[dict[str, Any]] = [AUDITED, {}, {"status": "denied", "trust_score": 1, "args": [1, "é"]}, hidden]
    events = chained([(body, "request_denied", "café", "2026-05-15T03:14:15Z") for body in bodies])
    write(database, events, tenant_id="t-1")
    lines = [line for event in events if (line := purview.azure(record_of(event, "t-1")))]
    exported = rows(database, "SELECT export_azure_logs AS line FROM audit_events.export_azure_logs(10)")
    assert [row["line"] for row in exported] == lines
    assert list(exported[0]["line"]) == list(lines[0])
    newest = rows(database, "SELECT audit_events.export_azure_logs(1)")
    assert [row["export_azure_logs"] for row in newest] == lines[-1:]
    seen = rows(database, "SELECT * FROM audit_events.purview_audit_log ORDER BY event_id")
    assert [row.pop("event_id") for row in seen] == [1, 2, 3]
    assert all(row.pop("purview_log")["category"] == "FederatedQuery" for row in seen)
    assert seen == lines


def test_the_summary_of_trust_is_by_actor_and_application(database: Database) -> None:
    bodies = [("a", "success", 0.5), ("a", "failed", 0.7), ("b", "ok", None)]
    fields = [({"actor": actor, "status": status, "trust_score": score}) for actor, status, score in bodies]
    write(database, chained([(body, "other", "app", "2026-05-15T03:14:15Z") for body in fields]))
    summary = rows(database, "SELECT * FROM audit_events.trust_by_application ORDER BY actor")
    assert [(row["actor"], row["events"], row["failures"], row["scored"]) for row in summary] == [
        ("a", 2, 1, 2),
        ("b", 1, 0, 0),
    ]
    assert (summary[0]["average_trust_score"], summary[1]["lowest_trust_score"]) == (0.6, None)


def test_federated_sources_are_counted_across_batches(database: Database) -> None:
    names = ["x", None, "y", "x", "x"]
    times = ["2026-05-15T03:00:00Z", "2026-05-15T04:00:00Z", "2026-05-15T05:00:00Z", "2026-05-15T01:00:00Z"]
    events = chained(
        [({"federated_source": name}, "other", "s", at) for name, at in zip(names, [*times, times[1]], strict=True)]
    )
    write(database, events[:3], events[3:])
    found = rows(database, "SELECT * FROM audit_events.federated_sources ORDER BY 1")
    assert [(row["federated_source"], row["events"], row["first_event_id"], row["last_event_id"]) for row in found] == [
        ("x", 3, 1, 5),
        ("y", 1, 3, 3),
    ]
    assert [found[0][name].hour for name in ("first_seen", "last_seen")] == [1, 4]


def test_what_postgres_has_no_text_for_stops_nothing_and_stays_in_the_canonical_bytes(database: Database) -> None:
    events = chained([(ODD, "other", "s\0", "0001-01-01T00:00:00+01:00")])
    write(database, events)
    (row,) = rows(database)
    assert row["actor"] == "nul\ufffd and café"
    assert row["args"] == {"a\ufffdb": ["x\ufffd", 10**300, 10**22, 0]}
    assert len(row["federated_source"]) == FEDERATED_SOURCE_LENGTH
    assert row["audit_id"] == ODD["audit_id"]
    assert row["metadata"] == {"deep": "nul\ufffd", "\ufffd": 1, "escaped": "\\u0000", "note": {"command": None}}
    assert json.loads(row["canonical"])["payload"]["actor"] == ODD["actor"]
    assert rows(database, "SELECT * FROM audit_events.verify()") == []


# --- the table proves itself


CHANGES = [
    ("UPDATE audit_events.events SET canonical = canonical || ' ' WHERE event_id = 3", [(3, "hash mismatch")]),
    ("UPDATE audit_events.events SET hash = repeat('0', 64) WHERE event_id = 3", [(3, "hash"), (4, "prev_hash")]),
    ("UPDATE audit_events.events SET prev_hash = repeat('0', 64) WHERE event_id = 3", [(3, "prev_hash mismatch")]),
    ("UPDATE audit_events.events SET kind = 'request_denied' WHERE event_id = 3", [(3, "is not what was hashed")]),
    ("DELETE FROM audit_events.events WHERE event_id = 3", [(4, "event_id should be 3")]),
]


@pytest.mark.parametrize(("change", "breaks"), CHANGES)
def test_each_change_to_the_table_is_found_by_the_table_alone(
    database: Database, change: str, breaks: list[tuple[int, str]]
) -> None:
    write(database, numbered(5))
    assert database.run("SELECT * FROM audit_events.verify()") == []
    database.run(change)
    found = database.run("SELECT * FROM audit_events.verify()")
    assert [event_id for event_id, _ in found] == [event_id for event_id, _ in breaks]
    for (_, reason), (_, wanted) in zip(found, breaks, strict=True):
        assert wanted in reason


def test_an_event_under_another_number_does_not_verify(database: Database) -> None:
    write(database, numbered(2))
    database.run("UPDATE audit_events.events SET event_id = event_id + 10")
    found = database.run("SELECT * FROM audit_events.verify()")
    assert [(event_id, "is not what was hashed" in reason) for event_id, reason in found] == [(11, True), (12, True)]


COLUMN_CHANGES = {
    "actor": "'mallory'",
    "status": "'failed'",
    '"timestamp"': "now()",
    "trust_score": "1",
    "metadata": "'{}'",
    "args": "NULL",
    "purview_compatible": "false",
}


@pytest.mark.parametrize("column", COLUMN_CHANGES)
def test_a_column_that_says_something_else_than_the_hashed_bytes_is_named(database: Database, column: str) -> None:
    events = chained([(AUDITED, "other", "forge", "2026-05-15T03:14:15Z")] * 3)
    write(database, events, tenant_id="t-1")
    intact = check(database.url, "t-1")
    assert intact == (3, (3, events[-1].hash.decode()), [])
    database.run(f"UPDATE audit_events.events SET {column} = {COLUMN_CHANGES[column]} WHERE event_id = 2")
    name = column.strip('"')
    assert check(database.url, "t-1").troubles == [(2, f"not what the event says: {name}")]


def test_what_odd_events_became_is_what_they_become_again(database: Database) -> None:
    write(
        database,
        chained([(ODD, "other", "s\0", "0001-01-01T00:00:00+01:00"), ({}, "other", "café", "9999-12-31T23:59:59Z")]),
    )
    assert check(database.url, None).troubles == []
    database.run("UPDATE audit_events.events SET canonical = 'no event', actor = 'mallory' WHERE event_id = 1")
    assert check(database.url, None).troubles == [(1, "hash mismatch")]
    forged = """{"event_id":2,"kind":"other","payload":{"n":,"prev_hash":"' || prev_hash || '","source":"s"}"""
    database.run(
        f"UPDATE audit_events.events SET canonical = ('{forged}')::bytea WHERE event_id = 2",
        "UPDATE audit_events.events SET hash = encode(sha256(canonical), 'hex') WHERE event_id = 2",
    )
    assert (2, "canonical is no event") in check(database.url, None).troubles
    database.run("TRUNCATE audit_events.events")
    assert check(database.url, None) == (0, None, [])


# --- who may write, and to what


def test_only_one_writes_at_a_time(database: Database) -> None:
    async def both() -> None:
        one, other = TableSink(database.url, None), TableSink(database.url, None)
        await one.open()
        assert (await other.standing()).at_work
        with pytest.raises(SinkFailed, match="another projection writes to this database"):
            await other.open()
        await other.close()
        await one.close()
        assert not (await other.standing()).at_work

    done(both())


def test_a_database_without_audit_events_says_what_to_run(postgres: Postgres) -> None:
    database = postgres.database("without")
    with pytest.raises(SinkFailed, match="run `audit-stream project init`"):
        write(database)


def test_init_may_be_run_again_and_gives_way_to_what_is_newer(postgres: Postgres) -> None:
    database = postgres.database("again")
    assert schema.init(database.url) == (0, schema.NEWEST)
    write(database, numbered(2))
    assert schema.init(database.url) == (schema.NEWEST, schema.NEWEST)
    assert len(rows(database)) == 2
    database.run(f"INSERT INTO audit_events.migrations (version) VALUES ({schema.NEWEST + 1})")
    with pytest.raises(Misconfigured, match="upgrade audit-stream"):
        schema.init(database.url)
    with pytest.raises(SinkFailed, match="upgrade audit-stream"):
        write(database)


def test_the_printed_sql_makes_the_same(postgres: Postgres) -> None:
    database = postgres.database("printed")
    database.run(schema.script())
    write(database, numbered(1))
    assert schema.init(database.url) == (schema.NEWEST, schema.NEWEST)


def test_a_role_with_the_documented_rights_can_project_and_no_more(database: Database) -> None:

    role = database.name
    database.run(*(statement.replace("audit_project", role) for statement in GRANTS))
    theirs = Database(database.server, database.name)
    theirs.url = database.url.replace("postgres@", f"{role}@")
    write(theirs, chained([({"federated_source": "x"}, "other", "s", "2026-05-15T00:00:00Z")]))
    assert len(rows(theirs)) == 1
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        theirs.run("DELETE FROM audit_events.events")
    database.run(f"REVOKE INSERT ON audit_events.events FROM {role}")
    with pytest.raises(SinkFailed, match="role may not do its work"):
        write(theirs, numbered(2)[1:])
