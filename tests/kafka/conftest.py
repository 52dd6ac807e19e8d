"""One cluster and one spine for all tests; each test has a topic and a group of its own."""

from collections.abc import Iterator

import pytest

from tests.harness import ServerProcess, running_server
from tests.kafka.cluster import MockCluster, a_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[MockCluster]:
    with a_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def spine(redis_url: str, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=request.module.__name__) as server:
        yield server
