"""CloudEvents over HTTP: what the official SDK sends and reads, each mode on each route, and the page that says so."""

import json
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from cloudevents.core.bindings import http as sdk
from cloudevents.core.v1.event import CloudEvent

from audit_stream.chain import parse, verify
from tests.contract.test_readme import run_as_typed
from tests.harness import ROOT, ServerProcess, running_server

STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
PAGE = (ROOT / "docs" / "cloudevents.md").read_text()


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[ServerProcess]:
    with running_server(
        AUDIT_STREAM_REDIS_URL=redis_url,
        AUDIT_STREAM_CHAIN=f"cloudevents.{secrets.token_hex(4)}",
        AUDIT_STREAM_MAX_EVENT_BYTES="2048",
    ) as started:
        yield started


def cloudevent(**changes: Any) -> dict[str, Any]:
    event = {"specversion": "1.0", "id": secrets.token_hex(8), "source": "/billing", "type": "other", "data": {"a": 1}}
    return {name: value for name, value in (event | changes).items() if value is not ...}


def send(server: ServerProcess, path: str, mode: str, event: dict[str, Any], **headers: str) -> httpx.Response:
    """POST the event in one of the three modes."""
    if mode == "binary":
        attributes = {f"ce-{name}": str(value) for name, value in event.items() if name != "data"}
        body, media_type, headers = event.get("data"), "application/json", attributes | headers
    else:
        body, media_type = ([event], BATCH) if mode == "batch" else (event, STRUCTURED)
    content = b"" if body is None else json.dumps(body).encode()
    return server.client.post(path, content=content, headers={"Content-Type": media_type, **headers})


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    return body


def count(server: ServerProcess) -> int:
    return int(server.get("/stats").json()["count"])


# --- the official SDK


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_what_the_sdk_sends_it_reads_again(server: ServerProcess, mode: str) -> None:
    attributes = {
        "id": secrets.token_hex(300),  # longer than a key may be
        "source": "urn:billing:caf%C3%A9",
        "type": "flag_swapped",
        "time": datetime(2026, 5, 15, 3, 14, 15, tzinfo=UTC),
        "datacontenttype": "application/json",
        "dataschema": "https://schemas.example/flag",
        "subject": 'Euro € "quoted" 100%',
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    event = CloudEvent(attributes=attributes, data={"flag": "beta", "n": [1, None, {"é": 0.5}]})
    message = (sdk.to_structured_event if mode == "structured" else sdk.to_binary_event)(event)
    answer = server.client.post("/events", content=message.body, headers=message.headers)
    assert answer.status_code == 201, answer.text
    again = server.client.post("/events", content=message.body, headers=message.headers | {"Accept": STRUCTURED})
    assert again.status_code == 200
    assert again.headers["idempotent-replayed"] == "true"
    read = server.get(answer.headers["location"], Accept=STRUCTURED)
    assert read.content == again.content
    assert read.headers["content-type"] == STRUCTURED
    found = sdk.from_structured_event(sdk.HTTPMessage(dict(read.headers), read.content))
    receipt = answer.json()
    assert found.get_data() == event.get_data()
    assert found.get_attributes() == event.get_attributes() | {
        "id": str(receipt["event_id"]),
        "prevhash": receipt["prev_hash"],
        "hash": receipt["hash"],
    }


# --- every mode on every route


@pytest.mark.parametrize("mode", ["structured", "binary", "batch"])
@pytest.mark.parametrize("path", ["/events", "/events/batch"])
def test_each_mode_is_taken_at_each_address(server: ServerProcess, path: str, mode: str) -> None:
    event = cloudevent(time="2026-05-15T03:14:15Z", subject="s")
    one = path == "/events" and mode != "batch"
    for status, accept in ((201, "*/*"), (200, STRUCTURED if one else BATCH)):
        answer = send(server, path, mode, event, Accept=accept)
        assert answer.status_code == status, answer.text
        body = answer.json() if one else answer.json()[0]
        assert answer.headers["content-type"] == ("application/json" if status == 201 else accept)
        assert ("location" in answer.headers) == one
    stored = server.get(f"/events/{body['id']}").json()
    assert (stored["kind"], stored["source"], stored["timestamp"]) == ("other", "/billing", event["time"])
    assert stored["payload"] == {"a": 1, "cloudevent": {"subject": "s"}}
    assert body["data"] == {"a": 1}
    assert (body["subject"], body["hash"]) == ("s", stored["hash"])


@pytest.mark.parametrize("mode", ["structured", "binary", "batch"])
@pytest.mark.parametrize("name", ["specversion", "type", "source", "id"])
def test_an_event_without_a_required_attribute_is_refused(server: ServerProcess, mode: str, name: str) -> None:
    before = count(server)
    found = refusal(send(server, "/events", mode, cloudevent(**{name: ...})), 422)
    assert found["field"] == name
    assert name in found["detail"]
    assert found.get("index") == (0 if mode == "batch" else None)
    assert count(server) == before


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ({"Content-Type": "application/cloudevents+avro"}, b"x", 415, STRUCTURED),
        ({"Content-Type": "application/cloudevents"}, b"{}", 415, STRUCTURED),
        ({"Content-Type": STRUCTURED}, b"{", 400, "not JSON"),
        ({"Content-Type": STRUCTURED}, b"", 400, "not JSON"),
        ({"Content-Type": STRUCTURED}, b"[]", 422, "object"),
        ({"Content-Type": BATCH}, b"{}", 422, "array"),
        ({"Content-Type": BATCH}, b"[]", 422, "empty"),
        ({"Content-Type": STRUCTURED, "Idempotency-Key": "k"}, b"{}", 422, "leave the header out"),
        ({"Content-Type": STRUCTURED}, b"{" + b" " * 2048, 413, "2048"),
        ({"ce-id": "1"}, b'{"kind":"other","source":"s"}', 422, "specversion"),
        ({"Content-Type": "application/xml", "ce-id": "1"}, b"<a/>", 415, "application/json"),
        ({"Content-Type": "text/plain", "ce-id": "1"}, b"a", 415, "application/json"),
        ({"ce-id": "1", "ce-subject": "100%"}, b"{}", 422, "percent"),
        ({"ce-id": "1", "ce-datacontenttype": "application/json"}, b"{}", 422, "Content-Type says"),
        ({"ce-id": "1", "ce-subject": "s" * 2048}, b"{}", 413, "2048"),
        ({"ce-id": "1"}, b"{", 400, "not JSON"),
        ({"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "other"}, b"[1]", 422, "JSON object"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_what_to_do(
    server: ServerProcess, headers: dict[str, str], body: bytes, status: int, words: str
) -> None:
    before = count(server)
    answer = server.client.post("/events", content=body, headers=headers)
    assert words in refusal(answer, status)["detail"]
    assert count(server) == before


def test_a_header_that_comes_twice_is_refused(server: ServerProcess) -> None:
    headers = [(f"ce-{name}", str(value)) for name, value in cloudevent(data=...).items()]
    answer = server.client.post("/events", content=b"{}", headers=[*headers, ("CE-Id", "other")])
    assert "ce-id: given more than once" in refusal(answer, 422)["detail"]


def test_a_source_and_id_stand_for_one_event_and_for_no_other(server: ServerProcess) -> None:
    event = cloudevent()
    assert send(server, "/events", "structured", event).status_code == 201
    assert send(server, "/events", "structured", event | {"source": "/other"}).status_code == 201
    assert "other content" in refusal(send(server, "/events", "structured", event | {"data": {}}), 422)["detail"]


def test_a_batch_with_one_bad_event_is_refused_whole(server: ServerProcess) -> None:
    before = count(server)
    batch = [cloudevent(), cloudevent(type="surprise")]
    answer = server.client.post("/events/batch", content=json.dumps(batch), headers={"Content-Type": BATCH})
    found = refusal(answer, 422)
    assert (found["index"], found["field"]) == (1, "type")
    assert count(server) == before


# --- reading


def test_what_accept_names_is_what_comes(server: ServerProcess) -> None:
    first = server.post({"kind": "other", "source": "my service", "payload": {"n": 1}}).json()["event_id"]
    server.post({"kind": "other", "source": "s"})
    path = f"/events?after={first - 1}&limit=2"
    for accept, media_type in (
        ("*/*", "application/json"),
        (BATCH, BATCH),
        (f"application/json;q=0.5, {BATCH}", BATCH),
        (f"{BATCH};q=0.5, application/x-ndjson", "application/x-ndjson"),
    ):
        answer = server.get(path, Accept=accept)
        assert answer.headers["content-type"] == media_type
        assert answer.headers["vary"] == "Accept"
    events = server.get(path, Accept=BATCH).json()
    assert [event["id"] for event in events] == [str(first), str(first + 1)]
    assert events[0]["source"] == "my%20service"
    assert server.get(f"/events/{first}", Accept=STRUCTURED).json() == events[0]
    assert events[1]["prevhash"] == events[0]["hash"]


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/events", "text/html"),
        ("/events", STRUCTURED),
        ("/events?limit=1", "application/json;q=0"),
        ("/events/1", BATCH),
        ("/events/1", "image/png"),
    ],
)
def test_who_takes_no_form_there_is_is_told_which_there_are(server: ServerProcess, path: str, accept: str) -> None:
    server.post({"kind": "other", "source": "s"})
    detail = refusal(server.get(path, Accept=accept), 406)["detail"]
    assert "application/json" in detail
    assert (BATCH if path.startswith("/events?") or path == "/events" else STRUCTURED) in detail


def test_a_receipt_is_given_whatever_accept_says(server: ServerProcess) -> None:
    answer = server.post({"kind": "other", "source": "s"}, Accept="text/html")
    assert (answer.status_code, answer.headers["content-type"]) == (201, "application/json")
    answer = server.post({"kind": "other", "source": "s"}, Accept=STRUCTURED)
    assert (answer.status_code, answer.headers["content-type"]) == (201, STRUCTURED)
    assert answer.json()["source"] == "s"


# --- the page


def test_the_examples_of_the_page_run_as_typed(redis_url: str, chain: str) -> None:
    typed = [line.strip() for line in PAGE.splitlines() if line.startswith("    curl ")]
    assert len(typed) == 5
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as server:
        answers = [json.loads(run_as_typed(command, server)) for command in typed]
        assert [event["event_id"] for event in (answers[0], answers[1], *answers[2])] == [1, 2, 3, 4]
        assert answers[1]["payload"] == {"flag": "beta", "cloudevent": {"subject": "Euro €"}}
        assert answers[3]["id"] == "1"
        assert [event["id"] for event in answers[4]] == ["1", "2", "3"]
        events = [parse(json.dumps(event)) for event in server.get("/events").json()]
        assert verify(events).valid


def test_the_page_names_each_attribute_of_the_specification() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.M))
    spec = {"specversion", "type", "source", "id", "time", "data", "datacontenttype", "subject", "dataschema"}
    assert spec | {"prevhash", "hash"} == named
