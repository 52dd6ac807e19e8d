"""Safe in someone's database: nothing is open to everyone, and what runs with our rights cannot be led astray."""

import re

import psycopg
import pytest

from audit_stream.sources.postgres.installation import HERE, version
from tests.postgres.servers import Database
from tests.postgres.watched import Watched

SCRIPT = (HERE / "audit_stream.sql").read_text()


def test_nothing_is_granted_to_public(db: Watched) -> None:
    granted = (
        "SELECT p.proname FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a"
        " WHERE p.pronamespace = 'audit_stream'::regnamespace AND a.grantee = 0"
        " UNION ALL SELECT c.relname FROM pg_class c, aclexplode(c.relacl) a"
        " WHERE c.relnamespace = 'audit_stream'::regnamespace AND a.grantee = 0"
        " UNION ALL SELECT n.nspname FROM pg_namespace n, aclexplode(n.nspacl) a"
        " WHERE n.nspname = 'audit_stream' AND a.grantee = 0"
    )
    assert db.run(granted) == []


def test_every_function_with_our_rights_has_a_fixed_search_path(db: Watched) -> None:
    definers = db.run(
        "SELECT proname, proconfig[1] FROM pg_proc WHERE pronamespace = 'audit_stream'::regnamespace AND prosecdef"
    )
    assert set(definers) == {
        ("emit", "search_path=pg_catalog, pg_temp"),
        ("lag", "search_path=pg_catalog, pg_temp"),
    }


def test_dynamic_sql_takes_names_and_values_by_format_alone() -> None:
    executed = re.findall(r"\bEXECUTE\s+(?!FUNCTION|ON)(.*)", SCRIPT)
    assert len(executed) >= 5
    assert {re.match(r"\w*", rest).group() for rest in executed} == {"format"}  # type: ignore[union-attr]


def test_objects_of_the_session_do_not_stand_in_for_ours(db: Watched, shared: Database) -> None:
    db.watch_decisions()
    db.run("DROP ROLE IF EXISTS mallory")
    db.run(
        "CREATE ROLE mallory LOGIN; GRANT ALL ON SCHEMA public TO mallory; GRANT SELECT, INSERT ON decisions TO mallory"
    )
    with psycopg.connect(shared.url, user="mallory", autocommit=True) as connection:
        mallory = Watched(connection)
        mallory.run("CREATE TEMP TABLE outbox (LIKE decisions)")
        for signature, kind in (("format(text)", "text"), ("gen_random_uuid()", "uuid"), ("to_json(text)", "json")):
            mallory.run(f"CREATE FUNCTION public.{signature} RETURNS {kind} LANGUAGE sql AS 'SELECT NULL::{kind}'")
        mallory.run("SET search_path = pg_temp, public, pg_catalog")
        mallory.run("INSERT INTO public.decisions VALUES ('1', 'a')")
    assert db.payloads[0]["new"]["id"] == "1"
    db.run("DROP OWNED BY mallory; DROP ROLE mallory")


@pytest.mark.parametrize("column", ["mood", "mood[]", "only_happy", "mooded", "mooded[]"])
def test_the_cast_of_a_type_s_owner_does_not_run_with_our_rights(db: Watched, shared: Database, column: str) -> None:
    """row_to_json uses a type's own cast to json, which whoever owns the type can make."""
    db.run("DROP ROLE IF EXISTS typist")
    db.run("CREATE ROLE typist LOGIN; GRANT ALL ON SCHEMA public TO typist")
    with psycopg.connect(shared.url, user="typist", autocommit=True) as connection:
        typist = Watched(connection)
        typist.run(
            "CREATE TYPE mood AS ENUM ('happy'); CREATE DOMAIN only_happy AS mood; CREATE TYPE mooded AS (m mood)"
        )
        typist.run(f"CREATE TABLE people (id int, m {column}); INSERT INTO people VALUES (0)")
        db.watch(table="people")
        typist.run("CREATE TABLE gained AS SELECT ''::text AS name")
        typist.run("GRANT ALL ON gained TO PUBLIC")
        typist.run(
            "CREATE FUNCTION as_json(mood) RETURNS json LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO public.gained VALUES (current_user); RETURN 'null'; END $$"
        )
        typist.run("INSERT INTO people VALUES (1)")
        typist.run("CREATE CAST (mood AS json) WITH FUNCTION as_json(mood)")
        value = {"mood": "'happy'", "only_happy": "'happy'", "mooded": "ROW('happy')::mooded"}
        value |= {"mood[]": "'{happy}'", "mooded[]": "ARRAY[ROW('happy')::mooded]"}
        said = typist.refused(f"INSERT INTO people VALUES (2, {value[column]})")
        assert "public.people has values of type public.mood, whose cast to json is a function" in str(
            said.message_primary
        )
        assert typist.run("SELECT name FROM gained WHERE name <> ''") == []
        # It is his own tables that he stops, and no others.
        db.watch_decisions()
        db.run("INSERT INTO decisions VALUES ('1', 'a')")
        db.run("ALTER FUNCTION as_json(mood) OWNER TO postgres")
        typist.run("INSERT INTO people VALUES (3)")
    assert [p["primary_key"] if "primary_key" in p else p["new"]["id"] for p in db.payloads] == [1, {"id": "1"}, 3]
    db.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public; DROP OWNED BY typist; DROP ROLE typist")


def test_who_may_watch_watches_the_tables_he_could_put_a_trigger_on_and_no_others(
    db: Watched, shared: Database
) -> None:
    db.run("DROP ROLE IF EXISTS owner_of_one")
    db.run("CREATE ROLE owner_of_one LOGIN; GRANT ALL ON SCHEMA public TO owner_of_one")
    db.run("SELECT audit_stream.allow_watch('owner_of_one')")
    db.run("CREATE TABLE other_s (id int)")
    with psycopg.connect(shared.url, user="owner_of_one", autocommit=True) as connection:
        his = Watched(connection)
        his.run("CREATE TABLE mine (id int)")
        assert his.watch(table="mine") == "public.mine"
        his.run("INSERT INTO mine VALUES (1)")
        assert his.run("SELECT table_name, state FROM audit_stream.list_watches()") == [("public.mine", "watching")]
        assert his.refused("SELECT audit_stream.watch('other_s', 'other')").sqlstate == "42501"
        assert his.refused("SELECT * FROM audit_stream.outbox").sqlstate == "42501"
        assert his.one("SELECT audit_stream.unwatch('mine')") is True
    assert [p["table"] for p in db.payloads] == ["public.mine"]
    db.run("DROP OWNED BY owner_of_one; DROP ROLE owner_of_one")


@pytest.mark.parametrize("role", ['we"ird; DROP TABLE x', "Relay"])
def test_a_role_of_any_name_is_allowed(db: Watched, role: str) -> None:
    quoted = '"' + role.replace('"', '""') + '"'
    db.run(f"DROP ROLE IF EXISTS {quoted}")
    db.run(f"CREATE ROLE {quoted}")
    db.run("SELECT audit_stream.allow_relay(%s), audit_stream.allow_watch(%s)", role, role)
    assert db.one("SELECT has_table_privilege(%s, 'audit_stream.outbox', 'DELETE')", role)
    db.run(f"DROP OWNED BY {quoted}; DROP ROLE {quoted}")


def test_a_login_that_may_create_a_schema_installs_it_without_being_superuser(db: Watched, shared: Database) -> None:
    from audit_stream.sources.postgres.installation import install, status, uninstall

    other = shared.server.database("plain_user")
    with other.connect() as connection:
        plain = Watched(connection)
        plain.run("DROP ROLE IF EXISTS plain")
        plain.run("CREATE ROLE plain LOGIN; GRANT CREATE ON DATABASE plain_user TO plain")
        plain.run("GRANT ALL ON SCHEMA public TO plain")
    url = other.url.replace("postgres@", "plain@")
    assert install(url) == (None, version())
    with psycopg.connect(url, autocommit=True) as connection:
        plain = Watched(connection)
        plain.watch_decisions()
        plain.run("INSERT INTO decisions VALUES ('1', 'a')")
        assert plain.payloads[0]["db_user"] == "plain"
    found = status(url)
    assert found
    assert (found.waiting, [watch.state for watch in found.watches]) == (1, ["watching"])
    assert uninstall(url, discard=True)
    assert status(url) is None
    db.run("DROP DATABASE plain_user")
    db.run("DROP ROLE plain")


def test_who_may_watch_cannot_touch_the_watches_of_tables_that_are_not_his(db: Watched, shared: Database) -> None:
    db.run("DROP ROLE IF EXISTS mallory")
    db.run("CREATE ROLE mallory LOGIN; GRANT ALL ON SCHEMA public TO mallory")
    db.run("SELECT audit_stream.allow_watch('mallory')")
    db.watch_decisions(", redact => '{vendor}'")
    with psycopg.connect(shared.url, user="mallory", autocommit=True) as connection:
        mallory = Watched(connection)
        edit = "UPDATE audit_stream.watches SET redact = '{}', source = 'somebody-else', on_error = 'best_effort'"
        assert connection.execute(edit).rowcount == 0
        assert connection.execute("DELETE FROM audit_stream.watches").rowcount == 0
        mallory.run("CREATE TABLE his (id int)")
        mallory.watch(table="his")
        columns = "(table_name, event_kind, relid, author)"
        for row in (
            "'x', 'other', 'public.decisions'::regclass, 'mallory'",  # a table that is not his
            "'public.decisions', 'other', 'public.his'::regclass, 'mallory'",  # his, under another's name
            "'public.his2', 'other', 'public.his'::regclass, 'postgres'",  # in another's name
        ):
            said = mallory.refused(f"INSERT INTO audit_stream.watches {columns} VALUES ({row})")
            assert said.sqlstate == "42501", row
        said = mallory.refused("UPDATE audit_stream.watches SET relid = 'public.decisions'::regclass")
        assert said.sqlstate == "42501"
        assert mallory.refused("SELECT audit_stream.unwatch('decisions')").sqlstate == "42501"
        # His sync leaves the others as they are, and says so.
        assert mallory.run("SELECT audit_stream.sync()") == [("public.his",)]
        mallory.run("DROP TABLE his")
        assert mallory.one("SELECT audit_stream.unwatch('his')") is True
    assert db.run("SELECT audit_stream.sync()") == [("public.decisions",)]
    db.run("INSERT INTO decisions VALUES ('1', 'a', 'secret')")
    assert db.payloads[0]["new"]["vendor"] == "[redacted]"
    assert db.run("SELECT source, author, redact FROM audit_stream.list_watches()") == [
        ("tests", "postgres", ["vendor"])
    ]
    db.run("DROP OWNED BY mallory; DROP ROLE mallory")


def test_sync_leaves_a_watch_whose_author_may_no_longer_decide_and_names_it(db: Watched, shared: Database) -> None:
    db.run("DROP ROLE IF EXISTS former")
    db.run("CREATE ROLE former LOGIN; GRANT ALL ON SCHEMA public TO former")
    db.run("SELECT audit_stream.allow_watch('former')")
    with psycopg.connect(shared.url, user="former", autocommit=True) as connection:
        former = Watched(connection)
        former.run("CREATE TABLE lent (id int)")
        former.watch(table="lent")
        former.run("UPDATE audit_stream.watches SET source = 'changed'")
    db.run("ALTER TABLE lent OWNER TO postgres")
    warned: list[str] = []
    db.connection.add_notice_handler(lambda said: warned.append(str(said.message_primary)))
    assert db.run("SELECT audit_stream.sync()") == []
    assert warned == [
        "audit_stream: the watch of public.lent was left as it is: former, who wrote it, may not put a trigger on the"
        " table"
    ]
    db.run("INSERT INTO lent VALUES (1)")  # the trigger that was put there with the right to do so goes on
    assert db.run("SELECT source FROM audit_stream.outbox") == [("tests",)]
    db.run("DROP OWNED BY former; DROP ROLE former")
    db.run("DROP TRIGGER audit_stream_emit ON lent")
    ((state,),) = db.run("SELECT state FROM audit_stream.list_watches()")
    assert state == "inactive: former, who wrote it, does not exist; call audit_stream.watch() or unwatch()"


def test_a_name_that_another_table_had_before_can_be_watched(db: Watched) -> None:
    db.run("CREATE TABLE t (id int)")
    db.watch(table="t")
    db.run("ALTER TABLE t RENAME TO was_t; CREATE TABLE t (id int)")
    db.watch(table="t")
    assert db.run("SELECT table_name, state FROM audit_stream.list_watches()") == [
        ("public.was_t", "watching"),
        ("public.t", "watching"),
    ]
