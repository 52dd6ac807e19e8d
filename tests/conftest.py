"""Where the tests' Redis comes from, and the servers that run on it."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ServerProcess, a_redis, running_server

_chains = itertools.count(1)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with AOF and fsync always: given, in a container, or the embedded Valkey; in this order."""
    with a_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def chain() -> str:
    """The name of a chain that no other test has."""
    return f"t{os.getpid()}.{next(_chains)}"


@pytest.fixture
def server(redis_url: str, chain: str) -> Iterator[ServerProcess]:
    """A server process of its own, on a chain of its own."""
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as process:
        yield process


@pytest.fixture(scope="session")
def vectors() -> dict[str, list[dict[str, object]]]:
    import json

    path = Path(__file__).parent / "vectors" / "canonical.json"
    loaded: dict[str, list[dict[str, object]]] = json.loads(path.read_text())
    return loaded
