"""Installing, upgrading, removing: as a script, as an extension, from a wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from audit_stream.database import SCHEMA_OWNERS
from audit_stream.errors import Misconfigured
from audit_stream.sources.postgres import installation
from audit_stream.sources.postgres.installation import HERE, install, status, uninstall, version
from tests.harness import ROOT, clean_environ
from tests.postgres.servers import Database, Postgres, a_postgres, binaries
from tests.postgres.watched import CARDS, Watched

RELEASED = Path(__file__).parent / "released" / "audit_stream--0.2.0.sql"
PUBLISHED = (ROOT / "benchmarks/peers/postgres_notify.sql").read_text()
OBJECTS = """
SELECT pg_describe_object(classid, objid, 0) FROM (
    SELECT 'pg_class'::regclass AS classid, oid AS objid FROM pg_class WHERE relnamespace = 'audit_stream'::regnamespace
    UNION SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE pronamespace = 'audit_stream'::regnamespace
) AS ours ORDER BY 1
"""


@pytest.fixture
def empty(request: pytest.FixtureRequest, postgres: Postgres) -> Database:
    """A database without audit_stream."""
    return postgres.database(f"empty_{request.node.name[:40]}")


@pytest.fixture(scope="module")
def with_extension(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server that finds the extension, put where `make install` would; and 0.1.0 to come from."""
    if "18" not in binaries():
        pytest.skip("only PostgreSQL 18 looks for extensions elsewhere than in its own folder")
    folder = tmp_path_factory.mktemp("extension")
    with a_postgres("18") as server:
        share = server.folder / "share" / "extension"
        share.mkdir(parents=True)
        for path in made_by_make(folder):
            shutil.copy(path, share)
        (share / "audit_stream--0.1.0.sql").write_text(PUBLISHED)
        shutil.copy(RELEASED, share)
        for path in (share.parent, *share.iterdir()):
            path.chmod(0o755)
        settings = psycopg.connect(server.url_of("postgres"), autocommit=True)
        with settings:
            settings.execute(f"ALTER SYSTEM SET extension_control_path = '{share.parent}:$system'".encode())
            settings.execute("SELECT pg_reload_conf()")
        yield server


def made_by_make(folder: Path) -> list[Path]:
    """The files of the extension, as its Makefile makes them."""
    source = copied(folder)
    subprocess.run(["make", "--silent", "-C", source, "scripts", "PG_CONFIG=true"], check=True)
    return [source / "audit_stream.control", *source.glob("audit_stream--*.sql")]


def copied(folder: Path) -> Path:
    """The extension's folder, in a copy of the package with what it takes from there."""
    source = folder / "sources" / "postgres"
    shutil.copytree(HERE, source)
    shutil.copy(SCHEMA_OWNERS, folder)
    return source


def test_it_is_installed_once_and_again_without_harm(empty: Database) -> None:
    assert status(empty.url) is None
    assert install(empty.url) == (None, version())
    with empty.connect() as connection:
        db = Watched(connection)
        db.watch_decisions()
        db.run("INSERT INTO decisions VALUES ('1', 'a')")
        db.run("SELECT audit_stream.set_notify(false)")
        assert install(empty.url) == (version(), version())
        db.run("INSERT INTO decisions VALUES ('2', 'a')")
        assert [p["primary_key"]["id"] for p in db.payloads] == ["1", "2"]
        assert db.run("SELECT name, value FROM audit_stream.settings") == [("notify", "off")]
    found = status(empty.url)
    assert found
    assert (found.version, found.how, found.waiting, found.relay) == (version(), "script", 2, None)


def test_the_upgrade_from_the_published_extension_keeps_every_watch(empty: Database) -> None:
    with empty.connect() as connection:
        db = Watched(connection)
        published(db)
        assert install(empty.url) == ("0.1.0", version())
        check_upgraded(db)


def published(db: Watched, made_by: str = f"CREATE SCHEMA audit_stream; {PUBLISHED}") -> None:
    db.run(made_by)
    db.run(CARDS)
    db.run('CREATE TABLE "Mixed" (id int); CREATE TABLE mixed (id int); CREATE TABLE gone (id int)')
    for table in ("decisions", "Mixed", "gone"):
        db.run("SELECT audit_stream.watch(%s, 'request_denied', 'before')", table)
    db.run("DROP TABLE gone")


def check_upgraded(db: Watched) -> None:
    assert db.run("SELECT table_name, event_kind, source, state FROM audit_stream.list_watches()") == [
        ("public.decisions", "request_denied", "before", "watching"),
        ('public."Mixed"', "request_denied", "before", "watching"),
        ("public.gone", "request_denied", "before", "table dropped"),
    ]
    db.run("INSERT INTO decisions VALUES ('1', 'a'); TRUNCATE decisions")
    db.run('INSERT INTO "Mixed" VALUES (1); INSERT INTO mixed VALUES (1)')
    assert [(p["table"], p["operation"]) for p in db.payloads] == [
        ("public.decisions", "INSERT"),
        ("public.decisions", "TRUNCATE"),
        ('public."Mixed"', "INSERT"),
    ]
    assert db.run("SELECT to_regprocedure('audit_stream._emit_event()')") == [(None,)]
    assert db.one("SELECT audit_stream.unwatch('gone')") is True


def test_the_extension_and_the_script_make_the_same_objects(with_extension: Postgres, empty: Database) -> None:
    install(empty.url)
    extension = with_extension.database("same")
    extension.run("CREATE EXTENSION audit_stream")
    assert extension.run(OBJECTS) == empty.run(OBJECTS)
    found = status(extension.url)
    assert found
    assert (found.version, found.how) == (version(), "extension")
    assert uninstall(extension.url, discard=False)
    assert extension.run("SELECT 1 FROM pg_namespace WHERE nspname = 'audit_stream'") == []


def test_the_extension_is_upgraded_with_its_watches(with_extension: Postgres) -> None:
    database = with_extension.database("upgraded")
    with database.connect() as connection:
        db = Watched(connection)
        published(db, "CREATE EXTENSION audit_stream VERSION '0.1.0'")
        assert install(database.url) == ("0.1.0", version())  # ALTER EXTENSION … UPDATE
        check_upgraded(db)


def test_the_extension_of_0_2_0_is_upgraded_with_its_watches(with_extension: Postgres) -> None:
    database = with_extension.database("upgraded_0_2_0")
    with database.connect() as connection:
        db = Watched(connection)
        db.run("CREATE EXTENSION audit_stream VERSION '0.2.0'")
        db.watch_decisions(", redact => '{vendor}'")
        assert install(database.url) == ("0.2.0", version())
        db.run("INSERT INTO decisions VALUES ('1', 'a', 'secret')")
        assert [p["new"]["vendor"] for p in db.payloads] == ["[redacted]"]


def test_the_extension_refuses_a_schema_of_somebody_else(with_extension: Postgres) -> None:
    """Whoever owns the schema could drop what the extension puts there, and put his own in its place."""
    database = with_extension.database("squatted")
    database.run("CREATE ROLE squatter; CREATE SCHEMA audit_stream AUTHORIZATION squatter")
    with pytest.raises(psycopg.errors.RaiseException, match=r"schema audit_stream \(of squatter\)"):
        database.run("CREATE EXTENSION audit_stream")


def test_a_dump_carries_the_watches_and_what_waits(with_extension: Postgres) -> None:
    source, target = with_extension.database("dumped"), with_extension.database("restored")
    source.run("CREATE EXTENSION audit_stream", CARDS, "SELECT audit_stream.watch('decisions', 'other', 'tests')")
    source.run("SELECT audit_stream.set_notify(false)", "INSERT INTO decisions VALUES ('1', 'a')")
    dumped = with_extension.run("pg_dump", "-d", source.url)
    restoring = [str(with_extension.bin_dir / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", target.url]
    subprocess.run(restoring, input=dumped, text=True, check=True, stdout=subprocess.DEVNULL)
    with target.connect() as connection:
        db = Watched(connection)
        assert db.run("SELECT table_name, state FROM audit_stream.list_watches()") == [("public.decisions", "watching")]
        db.run("INSERT INTO decisions VALUES ('2', 'a')")
        assert [p["primary_key"]["id"] for p in db.payloads] == ["1", "2"]
        assert db.run("SELECT name, value FROM audit_stream.settings") == [("notify", "off")]


def test_psql_runs_install_sql_to_the_same_end(postgres: Postgres, empty: Database) -> None:
    psql = [str(postgres.bin_dir / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", empty.url]
    for _ in range(2):
        done = subprocess.run([*psql, "-f", HERE / "install.sql"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert install(empty.url) == (version(), version())
    printed = postgres.database("printed")
    subprocess.run([*psql[:-1], printed.url], input=installation.script(), text=True, check=True)
    assert printed.run(OBJECTS) == empty.run(OBJECTS)


def test_uninstalling_gives_up_nothing_that_the_chain_does_not_have(empty: Database) -> None:
    install(empty.url)
    with empty.connect() as connection:
        db = Watched(connection)
        db.watch_decisions()
        db.run("INSERT INTO decisions VALUES ('1', 'a')")
        with pytest.raises(installation.Waiting, match=r"^1 changes wait in the outbox and 0 are dead letters"):
            uninstall(empty.url, discard=False)
        db.run("INSERT INTO decisions VALUES ('2', 'a')")  # the refusal left everything as it was
        assert len(db.payloads) == 2
        assert uninstall(empty.url, discard=True) is True
        db.run("INSERT INTO decisions VALUES ('3', 'a'); TRUNCATE decisions")
    assert uninstall(empty.url, discard=False) is False
    assert status(empty.url) is None


def test_a_newer_installation_is_left_alone(empty: Database) -> None:
    install(empty.url)
    empty.run("CREATE OR REPLACE FUNCTION audit_stream.version() RETURNS text LANGUAGE sql AS $$ SELECT '99.0.0' $$")
    with pytest.raises(Misconfigured, match=r"audit_stream 99\.0\.0 is installed, and this is the older"):
        install(empty.url)


def test_a_database_that_cannot_be_had_is_said_in_the_server_s_words(postgres: Postgres) -> None:
    with pytest.raises(Misconfigured, match='database "nowhere" does not exist'):
        install(postgres.url_of("nowhere"))
    with pytest.raises(Misconfigured, match="missing"):
        install("not a url")


def test_the_versions_agree(database: Database) -> None:
    assert database.run("SELECT audit_stream.version()") == [(version(),)]
    assert f"SCRIPT_VERSION = {version()}\n" in (HERE / "Makefile").read_text()
    assert f"audit_stream {version()}" in (HERE / "audit_stream.sql").read_text().splitlines()[1]


def test_pgxs_installs_the_extension_s_files(tmp_path: Path) -> None:
    pg_config = shutil.which("pg_config")
    if not pg_config or not Path(run_out(pg_config, "--pgxs")).exists():
        pytest.skip("this machine has no PGXS (Debian: postgresql-server-dev-all)")
    source = copied(tmp_path)
    subprocess.run(["make", "-C", source, "install", f"DESTDIR={tmp_path}/root"], check=True, stdout=subprocess.DEVNULL)
    installed = {path.name for path in (tmp_path / "root").rglob("extension/*")}
    names = {"audit_stream.control", f"audit_stream--{version()}.sql"}
    names |= {f"audit_stream--{before}--{version()}.sql" for before in ("0.1.0", "0.2.0")}
    assert installed == names


def run_out(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_wheel_carries_everything_that_installing_takes(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        held = wheel.namelist()
    names = {Path(name).name for name in held if name.startswith("audit_stream/sources/postgres/")}
    assert {path.name for path in HERE.iterdir() if path.is_file()} <= names
    assert {"audit_stream.control", "audit_stream.sql", "install.sql", "Makefile"} <= names
    assert "audit_stream/schema_owners.sql" in held


def test_without_psycopg_the_commands_say_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'psycopg' else find(name, package)\n"
    )
    environ = clean_environ()
    environ["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environ['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "audit_stream", "postgres", "status"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install '.[postgres]'" in done.stderr
