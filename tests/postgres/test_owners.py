"""A schema of ours that somebody else made first: it is named and refused, and nothing in it runs."""

import asyncio
import subprocess
from collections.abc import Callable, Iterator

import psycopg
import pytest

from audit_stream.database import Lost, connect
from audit_stream.errors import Misconfigured
from audit_stream.sinks.postgres import schema
from audit_stream.sources.postgres.installation import HERE, install, script, status, uninstall
from tests.postgres.servers import Database, Postgres
from tests.postgres.watched import Watched

WATCHES = """
CREATE TABLE audit_stream.watches (
    table_name text PRIMARY KEY, event_kind text NOT NULL, source text NOT NULL, created_at timestamptz NOT NULL
)
"""
OUTBOX = """
CREATE TABLE audit_stream.outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, change_id uuid NOT NULL, event_kind text NOT NULL,
    source text NOT NULL, changed_at timestamptz NOT NULL, payload text NOT NULL
)
"""
SWALLOW = "CREATE FUNCTION {}.swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"


@pytest.fixture
def shop(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database that belongs to the role `app` of its application, which is no superuser."""
    name = f"shop_{abs(hash(request.node.name)) % 10**8}"
    with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'app'").fetchone():
            connection.execute("CREATE ROLE app LOGIN")
    yield postgres.database(name, "OWNER app")
    with psycopg.connect(postgres.url_of("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name}".encode())


def as_app(shop: Database, *statements: str) -> None:
    with psycopg.connect(shop.url, user="app", autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def app_is_superuser(shop: Database) -> bool:
    return bool(shop.run("SELECT rolsuper FROM pg_roles WHERE rolname = 'app'")[0][0])


@pytest.mark.parametrize("command", [install, status, lambda url: uninstall(url, discard=True)])
def test_a_version_that_somebody_else_made_is_not_called(shop: Database, command: Callable[[str], object]) -> None:
    as_app(
        shop,
        "CREATE SCHEMA audit_stream",
        "CREATE FUNCTION audit_stream.version() RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE 'ALTER ROLE app SUPERUSER'; RETURN '0.1.0'; END $$",
    )
    with pytest.raises(Misconfigured) as refused:
        command(shop.url)
    assert not app_is_superuser(shop)
    text = str(refused.value)
    assert "the schema audit_stream is not only of postgres or of superusers" in text
    assert "schema audit_stream (of app); function audit_stream.version() (of app)" in text
    assert "installation that belongs to app, do this as that role" in text
    assert shop.run("SELECT proname FROM pg_proc WHERE pronamespace = 'audit_stream'::regnamespace") == [("version",)]


def test_an_outbox_that_swallows_is_named_with_its_trigger(shop: Database) -> None:
    as_app(
        shop,
        "CREATE SCHEMA audit_stream",
        OUTBOX,
        SWALLOW.format("audit_stream"),
        "CREATE TRIGGER swallow BEFORE INSERT ON audit_stream.outbox FOR EACH ROW EXECUTE FUNCTION"
        " audit_stream.swallow()",
    )
    with pytest.raises(Misconfigured) as refused:
        install(shop.url)
    for name in (
        "table audit_stream.outbox (of app)",
        "function audit_stream.swallow() (of app)",
        "trigger swallow on audit_stream.outbox, which uses the function audit_stream.swallow() (of app)",
    ):
        assert name in str(refused.value)


LEFT = {
    "trigger": (
        "CREATE TRIGGER swallow BEFORE INSERT ON audit_stream.outbox FOR EACH ROW EXECUTE FUNCTION app.swallow()",
        "trigger swallow on audit_stream.outbox, which uses the function app.swallow() (of app)",
    ),
    "default": (
        "ALTER TABLE audit_stream.outbox ALTER source SET DEFAULT app.chosen()",
        "which uses the function app.chosen() (of app)",
    ),
    "check": (
        "ALTER TABLE audit_stream.outbox ADD CONSTRAINT fine CHECK (app.chosen() <> payload)",
        "fine on audit_stream.outbox, which uses the function app.chosen() (of app)",
    ),
    "rule": (
        "CREATE RULE away AS ON INSERT TO audit_stream.outbox DO ALSO SELECT app.chosen()",
        "rule away on audit_stream.outbox, which uses the function app.chosen() (of app)",
    ),
    "domain": (
        "ALTER TABLE audit_stream.outbox ALTER payload TYPE app.checked",
        "table audit_stream.outbox, which uses the type app.checked (of app)",
    ),
    "index": (
        "CREATE INDEX quick ON audit_stream.outbox (app.same(payload))",
        "index audit_stream.quick, which uses the function app.same(",
    ),
    "policy": (
        "CREATE POLICY seen ON audit_stream.outbox USING (app.chosen() = source)",
        "policy seen on audit_stream.outbox, which uses the function app.chosen() (of app)",
    ),
    "type": (
        "CREATE TYPE audit_stream.mood AS ENUM ('a'); ALTER TYPE audit_stream.mood OWNER TO app",
        "type audit_stream.mood (of app)",
    ),
    "right": ("GRANT CREATE ON SCHEMA audit_stream TO app", "the right to create in the schema (of app)"),
    "right of all": ("GRANT CREATE ON SCHEMA audit_stream TO PUBLIC", "the right to create in the schema (of PUBLIC)"),
}


@pytest.mark.parametrize("how", LEFT)
def test_what_is_left_in_a_schema_of_our_own_is_named(shop: Database, how: str) -> None:
    """As when somebody took over schema and tables, and looked no further."""
    statement, name = LEFT[how]
    as_app(
        shop,
        "CREATE SCHEMA app",
        SWALLOW.format("app"),
        "CREATE FUNCTION app.chosen() RETURNS text LANGUAGE sql STABLE AS $$ SELECT 'x' $$",
        "CREATE FUNCTION app.same(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT $1 $$",
        "CREATE DOMAIN app.checked AS text CHECK (length(app.same(VALUE)) > 0)",
    )
    shop.run("CREATE SCHEMA audit_stream", OUTBOX, statement)
    with pytest.raises(Misconfigured) as refused:
        install(shop.url)
    assert name in str(refused.value)


def test_psql_and_the_printed_text_refuse_it_too(postgres: Postgres, shop: Database) -> None:
    as_app(shop, "CREATE SCHEMA audit_stream", WATCHES)
    psql = [str(postgres.bin_dir / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", shop.url]
    ways: list[tuple[list[str], str]] = [(["-f", str(HERE / "install.sql")], ""), ([], script())]
    for arguments, text in ways:
        done = subprocess.run([*psql, *arguments], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 3
        assert "table audit_stream.watches (of app)" in done.stderr
    assert shop.run("SELECT relname FROM pg_class WHERE relname = 'outbox'") == []


def test_functions_of_the_path_do_not_stand_in_for_those_of_the_check(shop: Database) -> None:
    as_app(shop, "CREATE SCHEMA audit_stream", WATCHES, "CREATE SCHEMA app")
    for signature, kind in (("format(text, text)", "text"), ("array_to_string(text[], text)", "text")):
        as_app(shop, f"CREATE FUNCTION app.{signature} RETURNS {kind} LANGUAGE sql AS 'SELECT NULL::{kind}'")
    shop.run(f"ALTER DATABASE {shop.name} SET search_path = app, pg_catalog")
    with pytest.raises(Misconfigured, match=r"table audit_stream\.watches \(of app\)"):
        install(shop.url)


def test_the_migrations_of_somebody_else_are_not_written_to(shop: Database) -> None:
    as_app(
        shop,
        "CREATE SCHEMA audit_events",
        "CREATE TABLE audit_events.migrations (version integer PRIMARY KEY, applied_at timestamptz DEFAULT now())",
        "CREATE FUNCTION audit_events.gain() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE 'ALTER ROLE app SUPERUSER'; RETURN NEW; END $$",
        "CREATE TRIGGER gain BEFORE INSERT ON audit_events.migrations FOR EACH ROW EXECUTE FUNCTION"
        " audit_events.gain()",
    )
    for initialise in (lambda: schema.init(shop.url), lambda: shop.run(schema.script())):
        with pytest.raises((Misconfigured, psycopg.errors.RaiseException)) as refused:
            initialise()
        assert "table audit_events.migrations (of app)" in str(refused.value)
    assert not app_is_superuser(shop)


def test_the_owner_of_what_is_there_goes_on(shop: Database) -> None:
    theirs = shop.url.replace("postgres@", "app@")
    install(theirs)
    with pytest.raises(Misconfigured, match="installation that belongs to app, do this as that role"):
        install(shop.url)
    assert install(theirs)[0] == install(theirs)[1]
    with psycopg.connect(theirs, autocommit=True) as connection:
        Watched(connection).watch_decisions()
    assert [watch.state for watch in getattr(status(theirs), "watches", [])] == ["watching"]
    assert uninstall(theirs, discard=False)


SECRETS = [
    "postgresqlx://u:SECRET@h/db",
    "host=h password=a SECRET",
    "postgresql://u:a@SECRET@h/db",
    "postgresql://u:1/SECRET@h/db",
    "postgresql://u:a%zzSECRET@h/db",
    "postgresql://u:a SECRET@h/db",
    "postgresql://u:a?SECRET@h/db",
]


@pytest.mark.parametrize("url", SECRETS)
def test_an_address_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        install(url)
    assert "SECRET" not in str(refused.value)
    with pytest.raises((Misconfigured, Lost)) as lost:
        asyncio.run(connect(url, "tests"))
    assert "SECRET" not in str(lost.value)
