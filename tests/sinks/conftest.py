import itertools
from collections.abc import Iterator

import pytest

from audit_stream.sinks.postgres import schema
from tests.harness import ServerProcess, running_server
from tests.postgres.conftest import postgres, server_of
from tests.postgres.servers import Database, Postgres

__all__ = ["postgres", "server_of"]

_names = itertools.count(1)


@pytest.fixture(scope="module")
def tables(postgres: Postgres) -> Database:
    database = postgres.database(f"p{next(_names)}")
    schema.init(database.url)
    return database


@pytest.fixture
def database(tables: Database) -> Database:
    """A database with audit_events, and nothing in it."""
    tables.run("TRUNCATE audit_events.events, audit_events.federated_sources")
    return tables


@pytest.fixture(scope="module")
def spine(redis_url: str, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A module's server, whose chain its tests add to."""
    with running_server(
        AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=request.module.__name__.rpartition(".")[2]
    ) as server:
        yield server
