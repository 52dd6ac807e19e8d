"""Every test here runs on each store and in both ways of hashing."""

from collections.abc import Iterator

import pytest

from audit_stream import appender, connection
from tests.conformance.stores import Chain, Store, fake_store, real_store


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine is not a Redis that is away: here, only a test that says so runs into a deadline."""
    monkeypatch.setattr(appender, "DEADLINE_S", 60)
    monkeypatch.setattr(connection, "READ_TIMEOUT_S", 60)
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", 60)


@pytest.fixture(params=["redis", "fakeredis"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    made = real_store(request.getfixturevalue("redis_url")) if request.param == "redis" else fake_store()
    with made.raw:
        yield made


@pytest.fixture
def real(redis_url: str) -> Iterator[Store]:
    """For what fakeredis does not do."""
    made = real_store(redis_url)
    with made.raw:
        yield made


@pytest.fixture(params=["checked", "script"])
def spine(request: pytest.FixtureRequest, store: Store, chain: str) -> Chain:
    return Chain(store, chain, request.param)


@pytest.fixture(params=["checked", "script"])
def real_spine(request: pytest.FixtureRequest, real: Store, chain: str) -> Chain:
    return Chain(real, chain, request.param)
