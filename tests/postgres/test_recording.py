"""What a change to a watched table leaves in the outbox, on every version that is here."""

import json
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from audit_stream.sources.postgres.outbox import ASLEEP
from tests.postgres.servers import Database
from tests.postgres.watched import CARDS, Watched

ROW = {"id": "DEC-1", "status": "open", "vendor": None}


def test_an_insert_carries_the_new_row_and_who_did_what_when(db: Watched) -> None:
    db.run(CARDS)
    db.run("SELECT audit_stream.watch('decisions', 'decision_card_status_changed', 'procurement-api')")
    db.run("SET application_name = 'back office'")
    before = datetime.now(UTC)
    db.run("INSERT INTO decisions VALUES ('DEC-1', 'open')")
    ((kind, source, changed_at, change_id),) = db.run(
        "SELECT event_kind, source, changed_at, change_id FROM audit_stream.outbox"
    )
    assert (kind, source) == ("decision_card_status_changed", "procurement-api")
    (payload,) = db.payloads
    assert before <= changed_at <= datetime.now(UTC)
    assert datetime.fromisoformat(payload.pop("statement_time")) == changed_at
    assert payload.pop("change_id") == str(change_id)
    assert isinstance(payload.pop("txid"), int)
    assert payload == {
        "table": "public.decisions",
        "operation": "INSERT",
        "new": ROW,
        "primary_key": {"id": "DEC-1"},
        "db_user": "postgres",
        "application_name": "back office",
        "actor": None,
    }


def test_an_update_carries_both_rows_and_what_differs(db: Watched) -> None:
    db.watch_decisions()
    db.run("INSERT INTO decisions VALUES ('DEC-1', 'open')")
    db.run("UPDATE decisions SET status = 'approved'")
    payload = db.payloads[1]
    assert payload["operation"] == "UPDATE"
    assert payload["old"] == ROW
    assert payload["new"] == {**ROW, "status": "approved"}
    assert payload["changed"] == ["status"]


def test_a_delete_carries_the_old_row_alone(db: Watched) -> None:
    db.watch_decisions()
    db.run("INSERT INTO decisions VALUES ('DEC-1', 'open')")
    db.run("DELETE FROM decisions")
    payload = db.payloads[1]
    assert (payload["operation"], payload["old"], payload["primary_key"]) == ("DELETE", ROW, {"id": "DEC-1"})
    assert not {"new", "changed"} & set(payload)


def test_a_truncate_is_one_event_without_rows(db: Watched) -> None:
    db.watch_decisions()
    db.run("INSERT INTO decisions SELECT i::text, 'open' FROM generate_series(1, 3) AS i")
    db.run("TRUNCATE decisions")
    payload = db.payloads[3]
    assert (payload["table"], payload["operation"]) == ("public.decisions", "TRUNCATE")
    assert not {"new", "old", "primary_key", "changed"} & set(payload)


def test_rows_keep_their_order_and_share_their_transaction(db: Watched) -> None:
    db.watch_decisions()
    with db.connection.transaction():
        db.run("INSERT INTO decisions VALUES ('1', 'a'), ('2', 'a')")
        db.run("UPDATE decisions SET status = 'b' WHERE id = '1'")
    db.run("DELETE FROM decisions WHERE id = '2'")
    assert [(p["operation"], p["primary_key"]["id"]) for p in db.payloads] == [
        ("INSERT", "1"),
        ("INSERT", "2"),
        ("UPDATE", "1"),
        ("DELETE", "2"),
    ]
    txids = [p["txid"] for p in db.payloads]
    assert txids[0] == txids[1] == txids[2] != txids[3]


def test_what_is_rolled_back_leaves_nothing(db: Watched) -> None:
    db.watch_decisions()
    db.run("BEGIN; INSERT INTO decisions VALUES ('1', 'a')")
    assert db.operations == ["INSERT"]
    db.run("ROLLBACK")
    assert db.payloads == []


def test_a_savepoint_that_is_rolled_back_takes_its_changes_along_and_no_others(db: Watched) -> None:
    db.watch_decisions()
    with db.connection.transaction():
        db.run("INSERT INTO decisions VALUES ('1', 'a')")
        db.run("SAVEPOINT s")
        db.run("INSERT INTO decisions VALUES ('2', 'a')")
        db.run("ROLLBACK TO s")
        db.run("INSERT INTO decisions VALUES ('3', 'a')")
    assert [p["primary_key"]["id"] for p in db.payloads] == ["1", "3"]


def test_copy_records_every_row(db: Watched) -> None:
    db.watch_decisions()
    with db.connection.cursor().copy("COPY decisions FROM STDIN") as copy:
        for number in range(500):
            copy.write_row((f"{number}", "open", None))
    assert [p["new"]["id"] for p in db.payloads] == [str(number) for number in range(500)]


def test_on_conflict_records_what_was_done_instead(db: Watched) -> None:
    db.watch_decisions()
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    db.run("INSERT INTO decisions VALUES ('1', 'b') ON CONFLICT (id) DO UPDATE SET status = excluded.status")
    db.run("INSERT INTO decisions VALUES ('1', 'c') ON CONFLICT DO NOTHING")
    assert db.operations == ["INSERT", "UPDATE"]
    assert db.payloads[1]["new"]["status"] == "b"


def test_a_cascade_is_recorded_where_it_ends(db: Watched) -> None:
    db.watch_decisions()
    db.run("CREATE TABLE notes (id int PRIMARY KEY, card text REFERENCES decisions ON DELETE CASCADE)")
    db.watch(table="notes")
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    db.run("INSERT INTO notes VALUES (7, '1')")
    db.run("DELETE FROM decisions")
    assert {(p["table"], p["operation"]) for p in db.payloads[2:]} == {
        ("public.decisions", "DELETE"),
        ("public.notes", "DELETE"),
    }


def test_a_row_of_a_megabyte_is_whole(db: Watched) -> None:
    db.watch_decisions()
    large = "0123456789abcdef" * 65536
    db.run("INSERT INTO decisions VALUES ('1', %s)", large)
    assert db.payloads[0]["new"]["status"] == large


def test_every_value_reads_the_same_whatever_the_session_is_set_to(db: Watched) -> None:
    db.run(
        "CREATE TABLE decisions (id int PRIMARY KEY, at timestamptz, price float8, amount numeric, raw bytea,"
        " span interval, doc jsonb, tags text[])"
    )
    db.watch()
    db.run("SET timezone = 'Asia/Kolkata'; SET extra_float_digits = 0; SET bytea_output = 'escape'")
    db.run("SET datestyle = 'German'; SET intervalstyle = 'sql_standard'")
    db.run(
        "INSERT INTO decisions VALUES (1, '2026-05-15 03:14:15.123456+00', 0.1::float8 + 0.2, 1.50, '\\x00ff',"
        " '1 day 2 hours', '{\"a\": [1, null]}', '{x,\"y z\"}')"
    )
    assert db.payloads[0]["new"] == {
        "id": 1,
        "at": "2026-05-15T03:14:15.123456+00:00",
        "price": 0.1 + 0.2,
        "amount": 1.5,
        "raw": "\\x00ff",
        "span": "P1DT2H",
        "doc": {"a": [1, None]},
        "tags": ["x", "y z"],
    }
    assert db.one("SHOW timezone") == "Asia/Kolkata"


def test_the_actor_is_what_the_application_says_and_ends_with_its_transaction(db: Watched) -> None:
    db.watch_decisions()
    with db.connection.transaction():
        db.run("SELECT set_config('audit_stream.actor', 'alice \"A\" café', true)")
        db.run("INSERT INTO decisions VALUES ('1', 'a')")
    db.run("INSERT INTO decisions VALUES ('2', 'a')")
    assert [p["actor"] for p in db.payloads] == ['alice "A" café', None]


def test_the_role_that_was_taken_stands_beside_who_logged_in(db: Watched) -> None:
    db.watch_decisions()
    db.run("DROP ROLE IF EXISTS clerk")
    db.run("CREATE ROLE clerk")
    db.run("GRANT ALL ON SCHEMA public TO clerk; GRANT ALL ON decisions TO clerk; SET ROLE clerk")
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    db.run("RESET ROLE")
    assert (db.payloads[0]["db_user"], db.payloads[0]["db_role"]) == ("postgres", "clerk")
    db.run("DROP OWNED BY clerk; DROP ROLE clerk")


def test_who_has_no_right_on_the_schema_is_recorded_and_learns_nothing(db: Watched, shared: Database) -> None:
    db.watch_decisions()
    db.run("DROP ROLE IF EXISTS visitor")
    db.run("CREATE ROLE visitor LOGIN")
    db.run("GRANT ALL ON SCHEMA public TO visitor; GRANT SELECT, INSERT ON decisions TO visitor")
    with psycopg.connect(shared.url, user="visitor", autocommit=True) as connection:
        visitor = Watched(connection)
        visitor.run("INSERT INTO decisions VALUES ('1', 'a')")
        for statement in (
            "SELECT * FROM audit_stream.outbox",
            "SELECT * FROM audit_stream.list_watches()",
            "SELECT audit_stream.watch('decisions', 'other')",
            "SELECT audit_stream.unwatch('decisions')",
            "SELECT audit_stream.emit()",
        ):
            assert visitor.refused(statement).sqlstate == "42501", statement
    assert [p["db_user"] for p in db.payloads] == ["visitor"]
    db.run("DROP OWNED BY visitor; DROP ROLE visitor")


# Which table


@pytest.mark.parametrize(
    ("schema", "table", "watched_as"),
    [
        ('"Weird.Schema"', '"Odd""Table"', '"Weird.Schema"."Odd""Table"'),
        ("public", '"Mixed Case"', 'public."Mixed Case"'),
        ("public", '"a.b.c"', 'public."a.b.c"'),
        ("public", '"O\'Reilly\\; DROP TABLE x"', 'public."O\'Reilly\\; DROP TABLE x"'),
        ("public", '"größe"', 'public."größe"'),
        ("public", '"select"', 'public."select"'),
    ],
)
def test_a_name_of_any_kind_is_watched_and_recorded(db: Watched, schema: str, table: str, watched_as: str) -> None:
    db.run(f"DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}")
    db.run(f'CREATE TABLE {schema}.{table} ("Id" int PRIMARY KEY, "a,b}}" text)')
    assert db.watch(""", redact => '{"a,b}"}'""", table=f"{schema}.{table}") == watched_as
    db.run(f"INSERT INTO {schema}.{table} VALUES (1, 'secret')")
    db.run(f"TRUNCATE {schema}.{table}")
    assert [(p["table"], p["operation"]) for p in db.payloads] == [(watched_as, "INSERT"), (watched_as, "TRUNCATE")]
    assert db.payloads[0]["new"] == {"Id": 1, "a,b}": "[redacted]"}
    assert db.payloads[0]["primary_key"] == {"Id": 1}
    assert db.one("SELECT audit_stream.unwatch(%s)", f"{schema}.{table}") is True
    db.run(f"INSERT INTO {schema}.{table} VALUES (2)")
    assert len(db.payloads) == 2


def test_a_table_is_recorded_under_the_name_it_has_now(db: Watched) -> None:
    db.watch_decisions()
    db.run("ALTER TABLE decisions RENAME TO verdicts; ALTER TABLE verdicts RENAME id TO code")
    db.run("INSERT INTO verdicts VALUES ('1', 'a')")
    assert (db.payloads[0]["table"], db.payloads[0]["primary_key"]) == ("public.verdicts", {"code": "1"})
    assert db.run("SELECT table_name, state FROM audit_stream.list_watches()") == [("public.verdicts", "watching")]


def a_partitioned_table(db: Watched) -> None:
    db.run("CREATE TABLE readings (day int, n int, PRIMARY KEY (day, n)) PARTITION BY RANGE (day)")
    db.run("CREATE TABLE readings_1 PARTITION OF readings FOR VALUES FROM (0) TO (10)")
    db.run("CREATE TABLE readings_2 PARTITION OF readings FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (n)")
    db.run("CREATE TABLE readings_2a PARTITION OF readings_2 FOR VALUES FROM (0) TO (100)")


def test_a_partitioned_table_is_recorded_as_one_table_with_the_partition_named(db: Watched) -> None:
    a_partitioned_table(db)
    db.watch(table="readings")
    db.run("CREATE TABLE readings_3 PARTITION OF readings FOR VALUES FROM (20) TO (30)")
    db.run("INSERT INTO readings VALUES (1, 1), (11, 2)")
    db.run("INSERT INTO readings_3 VALUES (21, 3)")
    assert [(p["table"], p["partition"], p["primary_key"]) for p in db.payloads] == [
        ("public.readings", "public.readings_1", {"day": 1, "n": 1}),
        ("public.readings", "public.readings_2a", {"day": 11, "n": 2}),
        ("public.readings", "public.readings_3", {"day": 21, "n": 3}),
    ]


def test_a_row_that_moves_to_another_partition_left_one_and_came_to_the_other(db: Watched) -> None:
    a_partitioned_table(db)
    db.watch(table="readings")
    db.run("INSERT INTO readings VALUES (1, 1)")
    db.run("UPDATE readings SET day = 11")
    assert [(p["operation"], p["partition"]) for p in db.payloads[1:]] == [
        ("DELETE", "public.readings_1"),
        ("INSERT", "public.readings_2a"),
    ]


def test_truncating_a_partition_is_recorded_and_a_new_partition_is_after_sync(db: Watched) -> None:
    a_partitioned_table(db)
    db.watch(table="readings")
    db.run("TRUNCATE readings_2a")
    assert [(p["table"], p["partition"]) for p in db.payloads] == [("public.readings", "public.readings_2a")]
    db.run("CREATE TABLE readings_3 PARTITION OF readings FOR VALUES FROM (20) TO (30)")
    state = "SELECT state FROM audit_stream.list_watches()"
    assert db.one(state) == "new partitions: call audit_stream.sync()"
    assert db.run("SELECT audit_stream.sync()") == [("public.readings",)]
    assert db.one(state) == "watching"
    db.run("TRUNCATE readings_3")
    assert db.payloads[1]["partition"] == "public.readings_3"
    db.run("TRUNCATE readings")
    emptied = {p.get("partition") for p in db.payloads[2:]}
    assert emptied == {None, *(f"public.readings_{name}" for name in ("1", "2", "2a", "3"))}


# Options


def test_only_the_columns_to_include_are_recorded(db: Watched) -> None:
    db.watch_decisions(", include => '{status}'")
    db.run("INSERT INTO decisions VALUES ('1', 'a', 'acme')")
    db.run("UPDATE decisions SET vendor = 'other', status = 'b'")
    insert, update = db.payloads
    assert insert["new"] == {"status": "a"}
    assert insert["primary_key"] == {"id": "1"}  # which row it was is always told
    assert (update["old"], update["new"], update["changed"]) == ({"status": "a"}, {"status": "b"}, ["status"])


def test_what_is_excluded_is_nowhere_in_the_event(db: Watched) -> None:
    db.watch_decisions(", exclude => '{vendor,id}'")
    db.run("INSERT INTO decisions VALUES ('secret-1', 'a', 'secret-2')")
    db.run("UPDATE decisions SET vendor = 'secret-3', id = 'secret-4'")
    db.run("DELETE FROM decisions")
    assert [p.get("changed") for p in db.payloads] == [None, [], None]
    assert "secret" not in json.dumps(db.payloads)


def test_what_is_redacted_is_named_but_its_value_is_nowhere_in_the_event(db: Watched) -> None:
    db.watch_decisions(", redact => '{vendor,id}'")
    db.run("INSERT INTO decisions VALUES ('secret-1', 'a', 'secret-2')")
    db.run("UPDATE decisions SET vendor = 'secret-3'")
    hidden = {"id": "[redacted]", "status": "a", "vendor": "[redacted]"}
    assert (db.payloads[1]["new"], db.payloads[1]["old"]) == (hidden, hidden)
    assert db.payloads[1]["changed"] == ["vendor"]
    assert db.payloads[1]["primary_key"] == {"id": "[redacted]"}
    assert "secret" not in json.dumps(db.payloads)


@pytest.mark.parametrize("option", ["redact", "exclude", "include"])
def test_a_column_of_the_watch_that_is_renamed_stops_the_change_instead_of_slipping_through(
    db: Watched, option: str
) -> None:
    db.watch_decisions(f", {option} => '{{vendor}}'")
    db.run("ALTER TABLE decisions RENAME vendor TO supplier")
    said = db.refused("INSERT INTO decisions VALUES ('1', 'a', 'secret')")
    assert "public.decisions no longer has the column(s) {vendor}" in str(said.message_primary)
    assert "audit_stream.watch" in str(said.message_hint)
    assert db.payloads == []
    assert db.one("SELECT count(*) FROM decisions") == 0


def test_an_update_that_changes_nothing_is_left_out_where_that_is_asked_for(db: Watched) -> None:
    db.watch_decisions(", only_when_changed => true, exclude => '{vendor}'")
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    db.run("UPDATE decisions SET status = 'a'")
    db.run("UPDATE decisions SET vendor = 'acme'")
    db.run("UPDATE decisions SET status = 'b'")
    assert [p.get("changed") for p in db.payloads] == [None, ["status"]]


def test_an_update_that_changes_nothing_is_recorded_otherwise(db: Watched) -> None:
    db.watch_decisions()
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    db.run("UPDATE decisions SET status = 'a'")
    assert db.payloads[1]["changed"] == []


def test_a_table_without_a_primary_key_is_recorded_without_one(db: Watched) -> None:
    db.run("CREATE TABLE decisions (id int)")
    db.watch()
    db.run("INSERT INTO decisions VALUES (1)")
    assert "primary_key" not in db.payloads[0]


def broken_outbox(db: Watched) -> None:
    db.run("ALTER TABLE audit_stream.outbox ADD CONSTRAINT full_up CHECK (source <> 'tests') NOT VALID")


def test_a_change_that_cannot_be_recorded_is_not_made_in_strict_mode(db: Watched) -> None:
    db.watch_decisions()
    broken_outbox(db)
    try:
        said = db.refused("INSERT INTO decisions VALUES ('1', 'a')")
    finally:
        db.run("ALTER TABLE audit_stream.outbox DROP CONSTRAINT full_up")
    assert 'relation "outbox" violates check constraint "full_up"' in str(said.message_primary)
    assert "audit_stream.emit()" in str(said.context)
    assert db.one("SELECT count(*) FROM decisions") == 0


def test_a_change_that_cannot_be_recorded_is_made_with_a_warning_in_best_effort_mode(db: Watched) -> None:
    db.watch_decisions(", on_error => 'best_effort'")
    warnings: list[Any] = []
    db.connection.add_notice_handler(lambda said: warnings.append((said.severity, said.message_primary)))
    db.run("INSERT INTO decisions VALUES ('0', 'a')")
    broken_outbox(db)
    try:
        db.run("INSERT INTO decisions VALUES ('1', 'a')")
    finally:
        db.run("ALTER TABLE audit_stream.outbox DROP CONSTRAINT full_up")
    ((severity, message),) = warnings
    assert severity == "WARNING"
    assert message.startswith("audit_stream: the INSERT on public.decisions was not recorded: ")
    assert [p["primary_key"] for p in db.payloads] == [{"id": "0"}]
    assert db.one("SELECT count(*) FROM decisions") == 2


# Waking the relay


def woken(db: Watched, listener: Watched, *statements: str) -> list[str]:
    """The notifications that the statements, one transaction, cause."""
    with db.connection.transaction():
        for statement in statements:
            db.run(statement)
    db.run("NOTIFY audit_stream_wake, 'end'")
    found: list[str] = []
    for notification in listener.connection.notifies(timeout=10):
        if notification.payload == "end":
            break
        found.append(notification.payload)
    return found


def test_a_transaction_wakes_a_sleeping_relay_once_and_tells_nothing(db: Watched, shared: Database) -> None:
    db.watch_decisions()
    with shared.connect() as connection:
        listener = Watched(connection)
        listener.run("LISTEN audit_stream_wake")
        listener.run("SELECT pg_advisory_lock(%s)", ASLEEP)
        insert = "INSERT INTO decisions SELECT i || '{0}', 'a' FROM generate_series(1, 50) AS i"
        assert woken(db, listener, insert.format("a"), insert.format("b")) == [""]
        assert woken(db, listener, insert.format("c")) == [""]
        assert woken(db, listener, "SAVEPOINT s", insert.format("d"), "ROLLBACK TO s") == []
        assert woken(db, listener, "SAVEPOINT s", insert.format("d"), "ROLLBACK TO s", insert.format("d")) == [""]
        db.run("SELECT audit_stream.set_notify(false)")
        assert woken(db, listener, insert.format("e")) == []
        db.run("SELECT audit_stream.set_notify(true)")
        assert woken(db, listener, insert.format("f")) == [""]
    assert len(db.payloads) == 300


def test_a_transaction_that_found_the_relay_awake_keeps_it_awake_until_its_end(db: Watched, shared: Database) -> None:
    db.watch_decisions()
    fall_asleep = "SELECT pg_try_advisory_lock(%s)"
    with shared.connect() as connection:
        relay = Watched(connection)
        relay.run("LISTEN audit_stream_wake")
        for end in ("COMMIT", "ROLLBACK"):
            db.run(f"BEGIN; INSERT INTO decisions VALUES ('{end}', 'a')")
            assert relay.one(fall_asleep, ASLEEP) is False
            db.run(end)
            assert relay.one(fall_asleep, ASLEEP) is True
            assert relay.one("SELECT count(*) FROM audit_stream.outbox") == 1
            relay.run("SELECT pg_advisory_unlock(%s)", ASLEEP)
        db.run("DELETE FROM decisions")
        assert woken(db, relay) == []  # nothing until now


def test_without_notify_a_prepared_transaction_is_recorded_when_it_is_committed(db: Watched) -> None:
    if db.one("SHOW max_prepared_transactions") == "0":
        pytest.skip("this server takes no prepared transactions")
    db.watch_decisions()
    db.run("SELECT audit_stream.set_notify(false)")
    db.run("BEGIN")
    db.run("INSERT INTO decisions VALUES ('1', 'a')")
    db.run("PREPARE TRANSACTION 'two'")
    assert db.payloads == []
    db.run("COMMIT PREPARED 'two'")
    db.run("SELECT audit_stream.set_notify(true)")
    assert db.operations == ["INSERT"]
