"""The rows of the published audit-event-system's table, taken to the chain once."""

import pytest

from audit_stream.sinks.record import record_of
from tests.harness import ServerProcess
from tests.postgres.relays import first_events, relaying
from tests.postgres.servers import Database
from tests.postgres.watched import Watched
from tests.sinks.chains import an_event

# The published columns, by its documentation.
TABLE = """
DROP SCHEMA IF EXISTS core CASCADE; CREATE SCHEMA core;
CREATE TABLE core.audit_events (
    audit_id uuid PRIMARY KEY, correlation_id uuid NOT NULL, "timestamp" timestamptz NOT NULL, duration_ms integer,
    operation text NOT NULL, status text NOT NULL, result_signature text, actor text NOT NULL, client_app text,
    caller_ip_address inet, command text NOT NULL, args text, federated_source text, query_intent text,
    bypass_llm boolean, trust_score numeric(3,2), purview_compatible boolean, metadata jsonb, schema_version text,
    tenant_id text
)
"""
ROW = """
INSERT INTO core.audit_events (audit_id, correlation_id, "timestamp", duration_ms, operation, status, actor, client_app,
    caller_ip_address, command, args, trust_score, purview_compatible, metadata)
VALUES (('0d7c7b9e-3f1c-4f0e-9f57-' || lpad(%s::text, 12, '0'))::uuid, '1d7c7b9e-3f1c-4f0e-9f57-0c5b8f6f7a11',
    timestamptz '2026-05-15T03:14:15.123456Z' - make_interval(secs => %s), 12, 'ritual.query', 'Success', 'alice',
    'ritual-cli', '127.0.0.1', 'query', '{"not": json', 0.80, true, '{"region": "eu", "nothing": null}')
"""
IMPORT = "SELECT audit_stream.import_audit_events()"


def test_every_row_is_offered_once_in_the_order_of_its_time(db: Watched) -> None:
    db.run(TABLE)
    for number in range(3):
        db.run(ROW, number, number)
    assert db.one(IMPORT) == 3
    assert db.one(IMPORT) == 0
    db.run(ROW, 7, 7)
    assert db.one(IMPORT) == 1
    ids = [payload["audit_id"][-1] for payload in db.payloads]
    assert ids == ["2", "1", "0", "7"]
    assert db.run(
        "SELECT DISTINCT event_kind, source, change_id::text = payload::json ->> 'audit_id' FROM audit_stream.outbox"
    ) == [("other", "audit-event-system", True)]
    # Also when the chain has them, and the outbox is empty again.
    db.run("TRUNCATE audit_stream.outbox")
    assert db.one(IMPORT) == 0
    db.run("TRUNCATE audit_stream.imported")


def test_the_projections_read_the_fields_back(db: Watched) -> None:
    db.run(TABLE)
    db.run(ROW, 1, 0)
    db.run(IMPORT)
    record = record_of(an_event(db.payloads[0]))
    assert record.time_text == "2026-05-15T03:14:15.123456Z"
    assert (record.operation, record.result, record.actor, record.client_app) == (
        "ritual.query",
        "Success",
        "alice",
        "ritual-cli",
    )
    assert (record.args, record.trust_score, record.duration_ms) == ('{"not": json', 0.8, 12)
    assert (record.caller_ip_address, record.metadata) == ("127.0.0.1", {"region": "eu", "nothing": None})
    db.run("TRUNCATE audit_stream.imported")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'core.nothing'", "there is no table core.nothing"),
        ("'public.shown'", "there is no table public.shown"),
        ("'core.audit_events', 'Not A Kind'", "'Not A Kind' is no event kind"),
        ("'core.audit_events', 'other', ''", "a source has 1 to 256 characters"),
    ],
)
def test_what_cannot_be_imported_is_refused(db: Watched, arguments: str, message: str) -> None:
    db.run(TABLE)
    db.run("CREATE VIEW shown AS SELECT * FROM core.audit_events")
    said = db.refused(f"SELECT audit_stream.import_audit_events({arguments})")
    assert message in str(said.message_primary)


def test_a_second_import_adds_nothing_to_the_chain(database: Database, server: ServerProcess) -> None:
    with database.connect() as connection:
        db = Watched(connection)
        db.run(TABLE)
        for number in range(3):
            db.run(ROW, number, number)
        with relaying(database.url, server.url):
            call = "SELECT audit_stream.import_audit_events(p_source => %s)"
            db.run(call, database.source)
            events = first_events(server.url, 3, database.source)
            assert db.one(call, database.source) == 0
            # Even if the database forgets: within a day the chain knows the keys.
            db.run("TRUNCATE audit_stream.imported")
            assert db.one(call, database.source) == 3
            db.run("CREATE TABLE last (id int)")
            db.run("SELECT audit_stream.watch('last', 'other', %s)", database.source)
            db.run("INSERT INTO last VALUES (1)")
            again = first_events(server.url, 4, database.source)
    assert [event.payload.get("audit_id", "")[-1:] for event in again] == ["2", "1", "0", ""]
    assert [event.event_id for event in again[:3]] == [event.event_id for event in events]
