"""From the published extension 0.1.0 and from 0.2.0: every watch is taken over, or named and left inactive."""

from collections.abc import Iterator

import psycopg
import pytest

from audit_stream.sources.postgres.installation import install, status, version
from tests.postgres.servers import Database, Postgres
from tests.postgres.test_installation import PUBLISHED, RELEASED
from tests.postgres.watched import CARDS, Watched

STATES = "SELECT table_name, state FROM audit_stream.list_watches()"


@pytest.fixture
def old(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[Database]:
    """A database of its own, and the role `clerk`, which owns nothing there yet."""
    database = postgres.database(f"old_{abs(hash(request.node.name)) % 10**8}")
    database.run(
        "DO $$ BEGIN IF to_regrole('clerk') IS NULL THEN CREATE ROLE clerk LOGIN; END IF; END $$",
        "GRANT ALL ON SCHEMA public TO clerk",
    )
    yield database
    with psycopg.connect(database.server.url_of("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {database.name}".encode())


def with_0_1_0(old: Database) -> None:
    old.run(f"CREATE SCHEMA audit_stream; {PUBLISHED}")


def with_0_2_0(old: Database) -> None:
    old.run(f"CREATE SCHEMA audit_stream; {RELEASED.read_text()}")


UNUSABLE = {
    "Decision-Changed": "'Decision-Changed' is no event kind",
    "invoice.created": "'invoice.created' is no event kind",
    "INVOICE": "'INVOICE' is no event kind",
    "x" * 100: f"'{'x' * 100}' is no event kind",
}


def test_watches_that_this_version_cannot_take_are_named_and_the_rest_is_taken(old: Database) -> None:
    with_0_1_0(old)
    kinds = [*UNUSABLE, "other"]
    for number, kind in enumerate(kinds):
        old.run(f"CREATE TABLE t{number} (id int)", f"SELECT audit_stream.watch('t{number}', '{kind}', 'before')")
    old.run("CREATE TABLE silent (id int)", "SELECT audit_stream.watch('silent', 'other', '')")
    warned: list[str] = []
    with old.connect() as connection:
        connection.add_notice_handler(lambda said: warned.append(str(said.message_primary)))
        assert install(old.url) == ("0.1.0", version())
        db = Watched(connection)
        advice = "; call audit_stream.watch() or unwatch()"
        assert dict(db.run(STATES)) == {
            **{f"public.t{n}": f"inactive: {reason}{advice}" for n, reason in enumerate(UNUSABLE.values())},
            "public.t4": "watching",
            "public.silent": f"inactive: a source has 1 to 256 characters, this one 0{advice}",
        }
        # Changes there are not recorded and not refused.
        db.run("INSERT INTO t0 VALUES (1); INSERT INTO silent VALUES (1); INSERT INTO t4 VALUES (1)")
        assert [payload["table"] for payload in db.payloads] == ["public.t4"]
        assert sorted(name for (name,) in db.run("SELECT audit_stream.sync()")) == ["public.t4"]
        assert sum("was left as it is: 'Decision-Changed' is no event kind" in text for text in warned) == 1
        assert sum("the watch of public." in text for text in warned) == 5
        assert db.one("SELECT audit_stream.unwatch('t0')") is True
        db.run("SELECT audit_stream.watch('t1', 'invoice_created', 'billing')")
        db.run("INSERT INTO t1 VALUES (1)")
        assert [payload["table"] for payload in db.payloads] == ["public.t4", "public.t1"]
        assert "public.t0" not in dict(db.run(STATES))
        assert db.run("SELECT to_regprocedure('audit_stream._emit_event()')") == [(None,)]


def test_the_command_names_every_watch_that_was_not_taken_over(
    old: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from audit_stream.cli import main

    with_0_1_0(old)
    old.run("CREATE TABLE t (id int)", "SELECT audit_stream.watch('t', 'Decision-Changed', 'before')")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["audit-stream", "postgres", "install", "--database-url", old.url])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    assert f"upgraded  audit_stream 0.1.0 to {version()}" in printed
    assert "public.t  inactive: 'Decision-Changed' is no event kind" in printed


def test_a_table_whose_trigger_cannot_be_dropped_is_inactive_and_its_changes_go_on(old: Database) -> None:
    old.run("GRANT CREATE ON DATABASE " + old.name + " TO clerk")
    theirs = old.url.replace("postgres@", "clerk@")
    with psycopg.connect(theirs, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA audit_stream; {PUBLISHED}".encode())
    old.run(
        "CREATE TABLE t (id int)",
        "SELECT audit_stream.watch('t', 'Decision-Changed', 'before')",
        "CREATE TABLE u (id int)",
        "SELECT audit_stream.watch('u', 'other', 'before')",
    )
    assert install(theirs) == ("0.1.0", version())
    old.run("INSERT INTO t VALUES (1)", "INSERT INTO u VALUES (1)")
    states = dict(old.run(STATES))
    assert states["public.t"].startswith("inactive: 'Decision-Changed' is no event kind; the owner of the table calls")
    assert states["public.u"].startswith("inactive: clerk, who wrote it, may not put a trigger on the table")
    assert install(theirs)[0] == version()
    assert old.run("SELECT audit_stream.unwatch('t')", "SELECT audit_stream.watch('u', 'other')") == [("public.u",)]
    old.run("INSERT INTO t VALUES (1)", "INSERT INTO u VALUES (1)")
    assert old.run("SELECT count(*) FROM audit_stream.outbox") == [(1,)]


OPTIONS = "'{vendor}', redact => '{status}', only_when_changed => true, on_error => 'best_effort'"


def test_from_0_2_0_every_watch_and_its_options_stay(old: Database) -> None:
    with_0_2_0(old)
    old.run(CARDS, f"SELECT audit_stream.watch('decisions', 'request_denied', 'a''b\\é', exclude => {OPTIONS})")
    old.run("SELECT audit_stream.allow_watch('clerk')", "INSERT INTO decisions VALUES ('1', 'secret', 'v')")
    before = old.run("SELECT table_name, event_kind, source, exclude, redact, on_error FROM audit_stream.watches")
    assert install(old.url) == ("0.2.0", version())
    assert install(old.url) == (version(), version())
    found = "SELECT table_name, event_kind, source, exclude, redact, on_error FROM audit_stream.list_watches()"
    assert old.run(found) == before
    old.run("INSERT INTO decisions VALUES ('2', 'secret', 'v')")
    assert (
        old.run("SELECT source, payload::json -> 'new' ->> 'status' FROM audit_stream.outbox ORDER BY id")
        == [("a'b\\é", "[redacted]")] * 2
    )
    # Who was allowed to watch before still is, by the functions of this version.
    with psycopg.connect(old.url, user="clerk", autocommit=True) as connection:
        clerk = Watched(connection)
        clerk.run("CREATE TABLE hers (id int)")
        assert clerk.watch(table="hers") == "public.hers"
        assert clerk.one("SELECT count(*) FROM audit_stream.list_watches()") == 2


def test_a_row_that_was_edited_in_0_2_0_does_not_take_redaction_away(old: Database) -> None:
    with_0_2_0(old)
    old.run(CARDS, "SELECT audit_stream.watch('decisions', 'other', 'hr', redact => '{status}')")
    old.run(
        "CREATE TABLE lost (id int)",
        "SELECT audit_stream.watch('lost', 'other')",
        "SELECT audit_stream.allow_watch('clerk')",
    )
    with psycopg.connect(old.url, user="clerk", autocommit=True) as connection:
        connection.execute("UPDATE audit_stream.watches SET redact = '{}', source = 'release-signing'")
    old.run("DROP TRIGGER audit_stream_emit ON lost", "DROP TRIGGER audit_stream_emit_truncate ON lost")
    install(old.url)
    old.run("SELECT audit_stream.sync()", "INSERT INTO decisions VALUES ('1', 'secret')", "INSERT INTO lost VALUES (1)")
    assert old.run("SELECT source, payload::json -> 'new' ->> 'status' FROM audit_stream.outbox") == [
        ("hr", "[redacted]")
    ]
    states = dict(old.run(STATES))
    assert states["public.decisions"] == "watching"
    # Nothing vouches for a row without a trigger.
    assert states["public.lost"] == "inactive: who wrote it is not known; call audit_stream.watch() or unwatch()"


def test_a_status_before_the_upgrade_reads_the_version_from_the_catalog(old: Database) -> None:
    with_0_2_0(old)
    assert getattr(status(old.url), "version", "") == "0.2.0"
