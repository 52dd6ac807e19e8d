"""Requests made from the OpenAPI document, right ones and wrong ones: what comes back is what the document says."""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.harness import ServerProcess, running_server

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
PHASES = {"examples", "coverage", "fuzzing"}
CONFIG: dict[str, Any] = {
    "seed": 1,
    "generation": {"deterministic": True, "max-examples": 10},
    # Nothing in the document is an example, so they are made.
    "phases": {"examples": {"fill-missing": True}},
    "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "503"]}},
}

Case = schemathesis.Case[Any]
described = schemathesis.pytest.from_fixture("api")


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[ServerProcess]:
    chain = f"fuzz.{secrets.token_hex(4)}"
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as started:
        yield started


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


@pytest.fixture
def api(server: ServerProcess, request: pytest.FixtureRequest) -> BaseSchema:
    # schemathesis 4.32 reads this of the test that asks, and pytest 9.2 no longer has it.
    request.node._nodeid = request.node.nodeid
    return schemathesis.openapi.from_url(f"{server.url}/schema", config=SchemathesisConfig.from_dict(CONFIG))


@pytest.fixture
def asked(api: BaseSchema, server: ServerProcess) -> Iterator[set[tuple[str, str]]]:
    """Collects (operation, phase) of what was asked; in the end all were, and the chain has held."""
    collected: set[tuple[str, str]] = set()
    yield collected
    labels = {f"{method.upper()} {path}" for path, methods in api.raw_schema["paths"].items() for method in methods}
    assert "POST /events" in labels
    assert collected >= {(label, phase) for label in labels for phase in PHASES}
    verdict = server.verify()
    assert (verdict["valid"], verdict["indexes"]) == (True, "agree")
    assert verdict["checked"] > 0


def ask(case: Case, server: ServerProcess, session: requests.Session) -> schemathesis.Response:
    """Send the case; of an answer that does not end by itself, read the beginning."""
    sent = case.as_transport_kwargs(base_url=server.url)
    with session.request(**sent, stream=True, timeout=30) as answer:
        endless = answer.headers.get("content-type", "").startswith("text/event-stream")
        return schemathesis.Response(
            status_code=answer.status_code,
            headers={name: [value] for name, value in answer.headers.items()},
            content=answer.raw.read1() if endless else answer.content,
            request=answer.request,
            elapsed=answer.elapsed.total_seconds(),
            verify=True,
        )


@described.parametrize()
def test_the_answer_is_one_that_the_document_describes(
    case: Case, server: ServerProcess, session: requests.Session, asked: set[tuple[str, str]]
) -> None:
    assert case.meta
    asked.add((case.operation.label, case.meta.phase.name.value))
    case.validate_response(ask(case, server, session), checks=CHECKS)
