"""GET /schema is OpenAPI 3.1, describes every route, and what it says is what the server answers."""

import re
import secrets
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from audit_stream.event import MAX_KEY_LENGTH, PublishRequest
from audit_stream.kinds import BUILT_IN
from audit_stream.server.routes import ENDPOINTS
from tests.harness import ServerProcess, running_server

Schema = dict[str, Any]
PROBLEM = "application/problem+json"
EVENT_FIELDS = ["event_id", "timestamp", "kind", "source", "payload", "prev_hash", "hash"]
FOR_PEOPLE_AND_SCRAPERS = {
    *("GET /schema", "GET /openapi.json", "GET /docs", "GET /metrics"),
    *("GET /dashboard", "GET /dashboard/login", "POST /dashboard/login", "POST /dashboard/logout"),
}
"""Served, but not by a handler that takes part in the document."""


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[ServerProcess]:
    chain = f"openapi.{secrets.token_hex(4)}"
    with running_server(
        AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, AUDIT_STREAM_KINDS="model_retired"
    ) as started:
        yield started


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> Schema:
    response = server.get("/schema")
    assert response.headers["content-type"].startswith("application/json")
    loaded: Schema = response.json()
    return loaded


def operations(document: Schema) -> dict[str, Schema]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def resolved(document: Schema, schema: Schema) -> Schema:
    while "$ref" in schema:
        *_, name = schema["$ref"].split("/")
        schema = document["components"]["schemas"][name]
    return schema


def parameters(operation: Schema) -> dict[tuple[str, str], Schema]:
    return {(parameter["in"], parameter["name"]): parameter for parameter in operation.get("parameters", [])}


# --- a reader of as much JSON Schema as the document uses; it refuses what it does not know

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
_SAYS_NOTHING = {"title", "description", "default", "examples", "format"}


def violations(document: Schema, schema: Schema, value: Any, at: str = "$") -> list[str]:
    """Where `value` is not what `schema` says; empty when it is."""
    schema = resolved(document, schema)
    found: list[str] = []
    for keyword, said in schema.items():
        match keyword:
            case "type":
                names = said if isinstance(said, list) else [said]
                types = tuple(_TYPES[name] for name in names)
                fits = any(isinstance(value, kind) for kind in types)
                if not fits or (isinstance(value, bool) and "boolean" not in names):
                    return [*found, f"{at}: {value!r} is no {said}"]
            case "enum":
                found += [] if value in said else [f"{at}: {value!r} is not one of {said}"]
            case "const":
                found += [] if value == said else [f"{at}: {value!r} is not {said!r}"]
            case "pattern" if isinstance(value, str):
                found += [] if re.search(said, value) else [f"{at}: {value!r} does not match {said}"]
            case "minimum" if isinstance(value, int | float):
                found += [] if value >= said else [f"{at}: {value} is below {said}"]
            case "minLength" if isinstance(value, str):
                found += [] if len(value) >= said else [f"{at}: shorter than {said}"]
            case "maxLength" if isinstance(value, str):
                found += [] if len(value) <= said else [f"{at}: longer than {said}"]
            case "pattern" | "minimum" | "minLength" | "maxLength":
                pass
            case "required" | "properties" | "additionalProperties" if not isinstance(value, dict):
                pass
            case "required":
                found += [f"{at}: lacks {name}" for name in said if name not in value]
            case "properties":
                for name in said.keys() & value.keys():
                    found += violations(document, said[name], value[name], f"{at}.{name}")
            case "additionalProperties":
                for name in value.keys() - schema.get("properties", {}).keys():
                    if said is False:
                        found.append(f"{at}: {name} is too many")
                    elif isinstance(said, dict):
                        found += violations(document, said, value[name], f"{at}.{name}")
            case "items":
                for place, item in enumerate(value):
                    found += violations(document, said, item, f"{at}[{place}]")
            case "oneOf" | "anyOf":
                tries = [violations(document, one, value, at) for one in said]
                found += [] if [] in tries else [problem for one in tries for problem in one]
            case "allOf":
                found += [problem for one in said for problem in violations(document, one, value, at)]
            case _:
                assert keyword in _SAYS_NOTHING, f"{keyword} is not known here"
    return found


def test_the_reader_of_schemas_sees_what_is_wrong(document: Schema) -> None:
    event = {"$ref": "#/components/schemas/EventBody"}
    good: Schema = dict.fromkeys(EVENT_FIELDS, "a" * 64) | {"event_id": 1, "kind": "other", "payload": {}}
    assert violations(document, event, good) == []
    changes: list[Schema] = [
        {"event_id": "1"},
        {"event_id": 0},
        {"event_id": True},
        {"payload": []},
        {"hash": "A" * 64},
        {"kind": 1},
    ]
    for change in changes:
        assert violations(document, event, good | change), change
    assert violations(document, event, {name: good[name] for name in EVENT_FIELDS[1:]})
    assert violations(document, {"type": "array", "items": event}, [good, {}])


# --- what is described


def test_it_is_openapi_3_1(document: Schema, server: ServerProcess) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["title"] == "audit-stream"
    assert document["info"]["version"] == server.get("/").json()["version"]


def test_every_endpoint_is_described_and_nothing_else_is(document: Schema) -> None:
    assert set(operations(document)) == set(ENDPOINTS) - FOR_PEOPLE_AND_SCRAPERS


def test_every_reference_leads_somewhere_and_every_id_is_its_own(document: Schema) -> None:
    text = msgspec.json.encode(document).decode()
    names = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', text))
    assert len(names) > 5
    assert names <= set(document["components"]["schemas"])
    operation_ids = [operation["operationId"] for operation in operations(document).values()]
    assert set(operation_ids) == {
        *("info", "health", "ready", "stats", "appendEvent", "appendEvents"),
        *("queryEvents", "getEvent", "streamEvents", "verifyChain"),
    }
    assert len(set(operation_ids)) == len(operation_ids)
    assert document["servers"] == [{"url": "/"}]


def test_a_publish_request_is_described_as_the_decoder_takes_it(document: Schema) -> None:
    (schema,), components = msgspec.json.schema_components([PublishRequest], ref_template="{name}")
    ours = components["PublishRequest"]
    described = resolved(
        document, operations(document)["POST /events"]["requestBody"]["content"]["application/json"]["schema"]
    )
    assert set(described["properties"]) == set(ours["properties"])
    assert set(described["required"]) == set(ours["required"]) == {"kind", "source"}
    source = described["properties"]["source"]
    assert (source["minLength"], source["maxLength"]) == (1, 256)
    assert described["properties"]["payload"]["type"] == "object"
    assert schema == {"$ref": "PublishRequest"}


def test_a_publish_request_allows_no_other_fields(document: Schema) -> None:
    described = document["components"]["schemas"]["PublishRequest"]
    assert described.get("additionalProperties") is False


def test_what_makes_a_422_of_a_text_is_described(document: Schema) -> None:
    fields = document["components"]["schemas"]["PublishRequest"]["properties"]
    assert (fields["idempotency_key"]["minLength"], fields["idempotency_key"]["maxLength"]) == (1, MAX_KEY_LENGTH)
    assert fields["timestamp"]["format"] == "date-time"
    of = operations(document)
    for name in ("since", "until"):
        assert parameters(of["GET /events"])["query", name]["schema"]["format"] == "date-time"
    for operation in ("GET /events", "GET /stream"):
        assert parameters(of[operation])["query", "kind"]["schema"]["enum"] == [*BUILT_IN, "model_retired"]
        assert parameters(of[operation])["query", "after"]["schema"]["minimum"] == 0


def test_the_kinds_are_those_of_this_deployment(document: Schema) -> None:
    kind = resolved(document, document["components"]["schemas"]["PublishRequest"]["properties"]["kind"])
    assert kind["enum"] == [*BUILT_IN, "model_retired"]


def test_the_kinds_in_answers_are_open(document: Schema) -> None:
    """A client that was generated today reads what a server answers that has a kind more."""
    for schema, name in (("EventBody", "kind"), ("ChainedCloudEvent", "type")):
        kind = document["components"]["schemas"][schema]["properties"][name]
        assert (kind["type"], "enum" in kind) == ("string", False)
        assert set(kind["examples"]) <= set(BUILT_IN)


def test_the_document_is_found_where_tools_look_for_it(server: ServerProcess, document: Schema) -> None:
    assert server.get("/openapi.json").json() == document


def test_the_page_for_people_has_every_operation_and_schema_and_loads_nothing_from_elsewhere(
    server: ServerProcess, document: Schema
) -> None:
    answer = server.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"] == server.get("/dashboard").headers["content-security-policy"]
    sections = set(re.findall(r'<section id="(\w+)">', answer.text))
    wanted = {operation["operationId"] for operation in operations(document).values()}
    assert sections == wanted | set(document["components"]["schemas"])
    targets = re.findall(r'(?:href|src)="([^"]+)"', answer.text)
    assert {target for target in targets if target[0] == "#"} == {f"#{name}" for name in sections}
    assert {target for target in targets if target[0] != "#"} == {"/docs/style.css", "/openapi.json", "/dashboard"}
    assert "<script" not in answer.text
    style = server.get("/docs/style.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "url(" not in style.text
    assert server.get("/docs/other.css").status_code == 404


def test_a_batch_is_an_array_or_lines_of_the_same_requests(document: Schema) -> None:
    content = operations(document)["POST /events/batch"]["requestBody"]["content"]
    array = content["application/json"]["schema"]
    assert array["type"] == "array"
    assert array["items"] == {"$ref": "#/components/schemas/PublishRequest"}


def test_cloudevents_are_described_as_they_are_taken_and_answered(document: Schema) -> None:
    of = operations(document)
    taken = resolved(document, of["POST /events"]["requestBody"]["content"][ONE]["schema"])
    assert set(taken["required"]) == {"specversion", "id", "source", "type"}
    assert taken["properties"]["type"]["enum"] == [*BUILT_IN, "model_retired"]
    assert re.search(taken["properties"]["source"]["pattern"], "urn:a/b?c#d%20")
    assert not re.search(taken["properties"]["source"]["pattern"], "my service")
    # In words: generators of clients cannot tell two lists apart.
    for operation in ("POST /events", "POST /events/batch"):
        assert MANY not in of[operation]["requestBody"]["content"]
        assert MANY in of[operation]["description"]
    answered = {
        (operation, form)
        for operation in ("POST /events", "POST /events/batch", "GET /events", "GET /events/{event_id}")
        for form in (ONE, MANY)
        if form in of[operation]["responses"]["200"]["content"]
    }
    assert answered == {
        ("POST /events", ONE),
        ("POST /events/batch", MANY),
        ("GET /events", MANY),
        ("GET /events/{event_id}", ONE),
    }


def test_an_event_is_described_in_the_order_of_its_fields(document: Schema) -> None:
    event = document["components"]["schemas"]["EventBody"]
    assert list(event["properties"]) == EVENT_FIELDS
    assert set(event["required"]) == set(EVENT_FIELDS)
    of = operations(document)
    content = of["GET /events/{event_id}"]["responses"]["200"]["content"]["application/json"]
    assert resolved(document, content["schema"]) == event
    for status in ("201", "200"):
        one = of["POST /events"]["responses"][status]["content"]["application/json"]["schema"]
        assert resolved(document, one) == event


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        ("GET /events", {"kind", "source", "since", "until", "after", "before", "limit", "committed"}),
        ("GET /stream", {"kind", "source", "after", "named"}),
        ("GET /verify", {"from", "to", "deep"}),
        ("GET /stats", set()),
    ],
)
def test_the_query_parameters_are_all_described_and_all_optional(
    document: Schema, server: ServerProcess, operation: str, named: set[str]
) -> None:
    described = parameters(operations(document)[operation])
    assert {name for place, name in described if place == "query"} == named
    assert not any(parameter["required"] for parameter in described.values())
    if named and operation != "GET /stream":
        # The server names the same ones when it refuses another.
        refusal = server.get(f"{operation.split()[1]}?colour=red").json()["detail"]
        assert set(refusal.partition("there are ")[2].split(", ")) == named


def test_the_headers_that_matter_are_described(document: Schema) -> None:
    of = operations(document)
    assert ("header", "Idempotency-Key") in parameters(of["POST /events"])
    assert ("header", "Idempotency-Key") in parameters(of["POST /events/batch"])
    assert ("header", "Last-Event-ID") in parameters(of["GET /stream"])
    assert ("path", "event_id") in parameters(of["GET /events/{event_id}"])
    assert "text/event-stream" in of["GET /stream"]["responses"]["200"]["content"]


@pytest.mark.parametrize(
    ("operation", "statuses"),
    [
        ("POST /events", {"400", "409", "413", "415", "422", "503"}),
        ("POST /events/batch", {"400", "409", "413", "415", "422", "503"}),
        ("GET /events", {"400", "406", "409", "422", "503"}),
        ("GET /events/{event_id}", {"404", "406", "409", "422", "503"}),
        ("GET /stream", {"409", "422", "503"}),
        ("GET /verify", {"400", "422", "503"}),
        ("GET /stats", {"409", "503"}),
        ("GET /readyz", {"503"}),
    ],
)
def test_the_errors_are_described_as_problems(document: Schema, operation: str, statuses: set[str]) -> None:
    responses = operations(document)[operation]["responses"]
    assert statuses <= set(responses)
    for status in statuses:
        content = responses[status]["content"]
        assert list(content) == [PROBLEM]
        assert resolved(document, content[PROBLEM]["schema"]) == document["components"]["schemas"]["ProblemBody"]


def test_no_error_is_described_that_is_no_problem(document: Schema) -> None:
    other = [
        f"{name} {status} {media_type}"
        for name, operation in operations(document).items()
        for status, response in operation["responses"].items()
        for media_type in response.get("content", {})
        if status >= "400" and media_type != PROBLEM
    ]
    assert other == []


# --- what is answered

ONE, MANY = "application/cloudevents+json", "application/cloudevents-batch+json"
CLOUDEVENT: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/s", "type": "other", "subject": "x", "n": 1}
OK: dict[str, Any] = {"kind": "other", "source": "s", "payload": {"a": [1, None, {"b": 0.5}]}}


@pytest.mark.parametrize(
    ("operation", "path", "body", "headers", "status"),
    [
        ("GET /", "/", None, {}, 200),
        ("GET /healthz", "/healthz", None, {}, 200),
        ("GET /readyz", "/readyz", None, {}, 200),
        ("POST /events", "/events", OK, {}, 201),
        ("POST /events", "/events", OK, {"Idempotency-Key": "one"}, 201),
        ("POST /events", "/events", OK, {"Idempotency-Key": "one"}, 200),
        ("POST /events", "/events", b"{", {}, 400),
        ("POST /events", "/events", b" " * 300_000, {}, 413),
        ("POST /events", "/events", b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST /events", "/events", {"kind": "surprise", "source": "s"}, {}, 422),
        ("POST /events/batch", "/events/batch", [OK, OK], {}, 201),
        ("POST /events/batch", "/events/batch", [OK], {"Idempotency-Key": "two"}, 201),
        ("POST /events/batch", "/events/batch", [OK], {"Idempotency-Key": "two"}, 200),
        ("POST /events/batch", "/events/batch", [OK, {}], {}, 422),
        ("GET /events", "/events", None, {}, 200),
        ("POST /events", "/events", CLOUDEVENT, {"Content-Type": ONE, "Accept": ONE}, 201),
        ("POST /events", "/events", {"id": "1"}, {"Content-Type": ONE}, 422),
        (
            "POST /events/batch",
            "/events/batch",
            [CLOUDEVENT | {"id": "2"}],
            {"Content-Type": MANY, "Accept": MANY},
            201,
        ),
        ("GET /events", "/events", None, {"Accept": MANY}, 200),
        ("GET /events", "/events", None, {"Accept": "text/html"}, 406),
        ("GET /events/{event_id}", "/events/1", None, {"Accept": ONE}, 200),
        ("GET /events", "/events?committed=true", None, {}, 200),
        ("GET /events", "/events?limit=0", None, {}, 400),
        ("GET /events", "/events?kind=surprise", None, {}, 422),
        ("GET /events/{event_id}", "/events/1", None, {}, 200),
        ("GET /events/{event_id}", "/events/999999", None, {}, 404),
        ("GET /events/{event_id}", "/events/first", None, {}, 422),
        ("GET /stream", "/stream?after=999999", None, {}, 409),
        ("GET /stream", "/stream?after=x", None, {}, 422),
        ("GET /verify", "/verify", None, {}, 200),
        ("GET /verify", "/verify?from=0", None, {}, 400),
        ("GET /stats", "/stats", None, {}, 200),
    ],
)
def test_an_answer_is_what_its_schema_says(
    document: Schema, server: ServerProcess, operation: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    method = operation.split()[0]
    content = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
    sent = headers if body is None else {"Content-Type": "application/json", **headers}
    response = server.client.request(method, path, content=content, headers=sent)
    assert response.status_code == status, response.text
    described = operations(document)[operation]["responses"][str(status)]["content"]
    schema = described[response.headers["content-type"].partition(";")[0]]["schema"]
    assert schema, "an empty schema says nothing"
    assert violations(document, schema, response.json()) == []
    if status in (200, 201) and "payload" in resolved(document, schema).get("properties", {}):
        assert list(response.json()) == EVENT_FIELDS
