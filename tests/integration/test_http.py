"""The HTTP contract: every endpoint, and every way we know to use it wrong. No test here may see a 5xx but the last."""

import json
import os
import secrets
import select
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.client import HTTPResponse
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
import msgspec
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from audit_stream.embedded import EmbeddedValkey
from audit_stream.kinds import BUILT_IN
from tests.fuzzing import fuzzed
from tests.harness import ServerProcess, running_server

FIELDS = ["event_id", "timestamp", "kind", "source", "payload", "prev_hash", "hash"]
NDJSON = "application/x-ndjson"


@pytest.fixture(scope="module")
def shared(redis_url: str) -> Iterator[ServerProcess]:
    """A server for tests that do not mind what is on its chain."""
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=f"http.{secrets.token_hex(4)}") as server:
        yield server


def request(**changes: object) -> dict[str, Any]:
    return {"kind": "other", "source": "billing", "payload": {"a": 1}} | changes


def without(name: str) -> dict[str, Any]:
    return {field: value for field, value in request().items() if field != name}


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


def count(server: ServerProcess) -> int:
    return int(server.get("/stats").json()["count"])


def ids(events: list[dict[str, Any]]) -> list[int]:
    return [event["event_id"] for event in events]


def connect(server: ServerProcess) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port or 0), timeout=30)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read one answer off a bare connection."""
    with HTTPResponse(connection) as response:
        response.begin()
        return response.status, response.read()


def say(connection: socket.socket, method: str, path: str, *headers: str, body: bytes = b"") -> None:
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers])
    connection.sendall(head.encode() + b"\r\n\r\n" + body)


# --- POST /events


def test_the_vector_chain_gives_the_published_hashes(
    server: ServerProcess, vectors: dict[str, list[dict[str, object]]]
) -> None:
    for event in vectors["chain"]:
        request = {name: event[name] for name in ("kind", "source", "payload", "timestamp")}
        assert server.post(request).json() == event
    assert server.verify()["valid"]


def test_a_receipt_is_the_event_as_it_can_be_read_ever_after(server: ServerProcess) -> None:
    receipt = server.post(request())
    assert receipt.status_code == 201
    assert receipt.headers["content-type"] == "application/json"
    assert list(receipt.json()) == FIELDS
    assert receipt.headers["location"] == "/events/1"
    assert server.get(receipt.headers["location"]).content == receipt.content
    assert server.get("/events").content == b"[" + receipt.content + b"]"
    assert server.get("/events", Accept=NDJSON).content == receipt.content + b"\n"


def test_what_is_left_out_is_filled_in_and_what_is_given_is_kept_verbatim(shared: ServerProcess) -> None:
    bare = shared.post({"kind": "other", "source": "s"}).json()
    assert bare["payload"] == {}
    assert bare["timestamp"].endswith("+00:00")
    for timestamp in ("2026-05-15T03:14:15Z", "2016-12-31t23:59:60.123456789-05:30"):
        assert shared.post(request(timestamp=timestamp)).json()["timestamp"] == timestamp
    assert shared.post(request(timestamp=None, idempotency_key=None)).status_code == 201


@pytest.mark.parametrize(
    "text",
    [
        '{"n":123456789012345678901234567890}',
        '{"n":-123456789012345678901234567890}',
        '{"n":[1.5,1e+22,0.1,-0.0,5e-324]}',
        '{"\\u0000":"\\u2028 \\ud83d\\ude00 \\u00fc"}',
        '{"deep":' + "[" * 63 + "]" * 63 + "}",
    ],
)
def test_a_payload_comes_back_as_it_was_sent(shared: ServerProcess, text: str) -> None:
    receipt = shared.post(b'{"kind":"other","source":"s","payload":%b}' % text.encode())
    assert receipt.status_code == 201
    assert f'"payload":{text},"prev_hash"' in receipt.text
    assert shared.get(receipt.headers["location"]).text == receipt.text


def payload(text: str) -> bytes:
    return b'{"kind":"other","source":"s","payload":{"a":%b}}' % text.encode()


BROKEN: list[tuple[str, bytes, int, str | None]] = [
    # what it is, the body, the status, the field that is named
    *(
        (what, json.dumps(body).encode(), 422, field)
        for what, body, field in [
            ("an unknown kind", request(kind="surprise"), "kind"),
            ("an empty kind", request(kind=""), "kind"),
            ("a kind that is a number", request(kind=1), "kind"),
            ("no kind", without("kind"), "kind"),
            ("an empty source", request(source=""), "source"),
            ("a source too long", request(source="s" * 257), "source"),
            ("a source that is null", request(source=None), "source"),
            ("no source", without("source"), "source"),
            ("a payload that is an array", request(payload=[1]), "payload"),
            ("a payload that is text", request(payload="{}"), "payload"),
            ("a payload that is null", request(payload=None), "payload"),
            ("a timestamp in words", request(timestamp="yesterday"), "timestamp"),
            ("a timestamp without offset", request(timestamp="2026-05-15T03:14:15"), "timestamp"),
            ("a timestamp with a space", request(timestamp="2026-05-15 03:14:15Z"), "timestamp"),
            ("a day that is not", request(timestamp="2026-02-30T03:14:15Z"), "timestamp"),
            ("a timestamp that is a number", request(timestamp=1), "timestamp"),
            ("a timestamp with quotes", request(timestamp='2026-05-15T03:14:15Z","kind":"x'), "timestamp"),
            ("an empty idempotency key", request(idempotency_key=""), "idempotency_key"),
            ("an idempotency key too long", request(idempotency_key="k" * 256), "idempotency_key"),
            ("an extra field", request(colour="red"), "colour"),
            ("a field that only the server gives", request(event_id=7), "event_id"),
            ("an array", [request()], None),
            ("text", "event", None),
            ("null", None, None),
        ]
    ),
    ("NaN", payload("NaN"), 422, "payload"),
    ("Infinity", payload("-Infinity"), 422, "payload"),
    ("a number beyond a double", payload("1e400"), 422, "payload"),
    ("an integer beyond a double", payload("9" * 400), 422, "payload"),
    ("an integer of 5,000 digits", payload("9" * 5000), 422, "payload"),
    ("a lone surrogate", payload('"\\ud800"'), 422, "payload"),
    ("65 levels", payload("[" * 64 + "]" * 64), 422, "payload"),
    ("10,000 levels", payload("[" * 10_000 + "]" * 10_000), 422, "payload"),
    ("a body that is cut short", b'{"kind":"other","sou', 400, None),
    ("two bodies", b'{"kind":"other","source":"s"} {}', 400, None),
    ("a body that is no UTF-8", b'{"kind":"other","source":"\xff"}', 400, None),
    ("a body with a byte order mark", b'\xef\xbb\xbf{"kind":"other","source":"s"}', 400, None),
    ("a form", b"kind=other&source=s", 400, None),
    ("10,000 levels and no end", payload("[" * 10_000)[:-2], 422, "payload"),
    ("nothing but 10,000 brackets", b"[" * 10_000, 422, None),
    ("nothing", b"", 400, None),
]
each_broken = pytest.mark.parametrize(
    ("body", "status", "field"), [row[1:] for row in BROKEN], ids=[r[0] for r in BROKEN]
)


@each_broken
def test_a_broken_event_is_refused_by_name_and_nothing_is_written(
    shared: ServerProcess, body: bytes, status: int, field: str | None
) -> None:
    before = count(shared)
    found = problem(shared.post(body), status)
    assert found.get("field") == field
    assert field is None or field in found["detail"]
    assert "index" not in found
    assert count(shared) == before


def test_a_misspelt_kind_is_told_the_nearest_and_where_all_are_listed(shared: ServerProcess) -> None:
    misspelt = "kind: 'decision_card_drafed' is not a kind; did you mean 'decision_card_drafted'? GET / lists them"
    assert problem(shared.post(request(kind="decision_card_drafed")), 422)["detail"] == misspelt
    assert problem(shared.get("/events?kind=decision_card_drafed"), 422)["detail"] == misspelt
    detail = problem(shared.post(request(kind="surprise")), 422)["detail"]
    assert detail.startswith("kind: 'surprise' is not a kind; GET / lists them")
    assert "AUDIT_STREAM_KINDS" in detail
    assert shared.get("/").json()["kinds"] == list(BUILT_IN)


def test_all_mistakes_of_an_event_are_named_at_once(shared: ServerProcess) -> None:
    wrong = {"kind": "decision_card_drafed", "source": "", "timestamp": "2026-05-15T03:14:15", "colour": "red"}
    found = problem(shared.post(wrong), 422)
    assert [mistake["field"] for mistake in found["errors"]] == ["kind", "source", "timestamp", "colour"]
    assert found["errors"][1]["detail"] == "source: is empty; 1 to 256 characters"
    assert found["field"] == "kind"
    assert found["detail"] == "; also ".join(mistake["detail"] for mistake in found["errors"])
    within = problem(shared.post_batch([request(), request(), wrong]), 422)
    assert (within["index"], within["errors"]) == (2, found["errors"])
    assert within["detail"] == f"the 3rd event of the batch (index 2): {found['detail']}"


def test_a_mistake_in_lines_is_found_by_its_line(shared: ServerProcess) -> None:
    good, bad = json.dumps(request()), json.dumps(request(source=""))
    response = shared.post_batch(f"\n{good}\n\n\n{bad}\n".encode(), **{"Content-Type": NDJSON})
    found = problem(response, 422)
    assert found["detail"] == "line 5 of the body (index 1): source: is empty; 1 to 256 characters"


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "Text/Plain; charset=utf-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        ";charset=utf-8",
        "json",
        "application/",
        "*",
        "a/b/json",
    ],
)
@pytest.mark.parametrize("path", ["/events", "/events/batch"])
def test_a_type_that_any_web_page_may_send_is_refused(shared: ServerProcess, path: str, media_type: str) -> None:
    before = count(shared)
    body = json.dumps(request() if path == "/events" else [request()])
    response = shared.client.post(path, content=body, headers={"Content-Type": media_type})
    assert media_type in problem(response, 415)["detail"]
    assert count(shared) == before


# --- limits


def test_the_largest_event_is_taken_and_one_byte_more_is_not(redis_url: str, chain: str) -> None:
    with running_server(
        AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, AUDIT_STREAM_MAX_EVENT_BYTES="2000"
    ) as server:
        body = json.dumps(request())
        largest = body.ljust(2000).encode()
        assert server.post(largest).status_code == 201
        assert server.post_batch(b"[" + largest + b"]").status_code == 201
        assert server.post_batch(largest + b"\n", **{"Content-Type": NDJSON}).status_code == 201
        for answer in (
            server.post(largest + b" "),
            server.post_batch(b'[%b,{"kind":"other","source":"%b"}]' % (body.encode(), b"s" * 2000)),
            server.post_batch(b"%b\n%b \n" % (body.encode(), largest), **{"Content-Type": NDJSON}),
        ):
            assert "2000 bytes" in problem(answer, 413)["detail"]
        assert count(server) == 3


@pytest.mark.parametrize(("path", "limit"), [("/events", 256 * 1024), ("/events/batch", 4 * 1024 * 1024)])
def test_a_body_over_the_limit_is_refused_before_it_has_all_come(shared: ServerProcess, path: str, limit: int) -> None:
    before = count(shared)
    with connect(shared) as connection:
        say(connection, "POST", path, f"Content-Length: {limit + 1}")
        status, body = answer(connection)
    assert (status, json.loads(body)["status"]) == (413, 413)
    with connect(shared) as connection:
        chunk = b"%x\r\n%b\r\n" % (limit + 1, b" " * (limit + 1))
        say(connection, "POST", path, "Transfer-Encoding: chunked", body=chunk)  # and no last chunk
        status, body = answer(connection)
    assert (status, json.loads(body)["status"]) == (413, 413)
    assert count(shared) == before


def test_a_chunked_body_is_taken_whole(shared: ServerProcess) -> None:
    parts = iter([b'{"kind":"oth', b'er","source":', b'"in parts"}'])
    response = shared.client.post("/events", content=parts, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["source"]) == (201, "in parts")


@pytest.mark.parametrize("ends", ["in the middle", "before the last chunk"])
@pytest.mark.parametrize("path", ["/events", "/events/batch"])
def test_a_client_that_goes_away_in_the_middle_writes_nothing(shared: ServerProcess, path: str, ends: str) -> None:
    last = shared.post(request()).json()["event_id"]
    # What has come is a whole event; only HTTP says that more was to follow.
    body = json.dumps(request() if path == "/events" else [request()]).encode()
    with connect(shared) as connection:
        if ends == "in the middle":
            say(connection, "POST", path, f"Content-Length: {len(body) + 1}", body=body)
        else:
            say(connection, "POST", path, "Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n" % (len(body), body))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""  # the server has seen the end, and answers nothing
    assert shared.post(request()).json()["event_id"] == last + 1
    assert count(shared) == last + 1


# --- POST /events/batch


def as_array(*bodies: bytes) -> tuple[bytes, str]:
    return b"[%b]" % b",".join(bodies), "application/json"


def as_lines(*bodies: bytes) -> tuple[bytes, str]:
    return b"\n".join(bodies), NDJSON


def can_be_split(array: bytes) -> bool:
    """An array is read by its brackets; where those cannot be told, nobody can say which event is to blame."""
    try:
        msgspec.json.decode(array, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def test_a_batch_is_appended_in_order_whichever_way_it_is_written(server: ServerProcess) -> None:
    texts = [json.dumps(request(payload={"n": n})).encode() for n in range(5)]
    written: list[dict[str, Any]] = []
    for body, media_type in (
        as_array(*texts),
        as_lines(*texts),
        (b"\n \r\n" + b"\r\n\r\n".join(texts) + b"\r\n", NDJSON + "; charset=utf-8"),
        (b"\n".join(texts), "application/jsonl"),
        (b" [" + b" , ".join(texts) + b"]\n", "application/octet-stream"),
        (b"\n".join(texts), "application/octet-stream"),
    ):
        receipts = server.post_batch(body, **{"Content-Type": media_type})
        assert receipts.status_code == 201, receipts.text
        assert [list(receipt) for receipt in receipts.json()] == [FIELDS] * 5
        assert [receipt["payload"]["n"] for receipt in receipts.json()] == list(range(5))
        written += receipts.json()
    assert ids(written) == list(range(1, 31))
    assert server.get("/events").json() == written
    assert server.verify()["checked"] == 30


@pytest.mark.parametrize("wrap", [as_array, as_lines])
@each_broken
def test_one_broken_event_refuses_its_whole_batch(
    shared: ServerProcess, wrap: Any, body: bytes, status: int, field: str | None
) -> None:
    before = count(shared)
    good = json.dumps(request()).encode()
    batch, media_type = wrap(good, body, good)
    response = shared.post_batch(batch, **{"Content-Type": media_type})
    if wrap is as_lines and body == b"":
        assert response.status_code == 201  # a blank line is nothing
        return
    if wrap is as_array and not can_be_split(batch):
        problem(response, status)
    else:
        found = problem(response, 422)
        assert (found.get("field"), found["index"]) == (field, 1)
        place = "the 2nd event of the batch" if wrap is as_array else "line 2 of the body"
        assert found["detail"].startswith(f"{place} (index 1): ")
    assert count(shared) == before


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b"[]", "application/json", 422),
        (b"", NDJSON, 422),
        (b"\n \n", NDJSON, 422),
        (b"", "application/json", 400),
        (b'{"kind":"other","source":"s"}', "application/json", 422),
        (b"7", "application/json", 422),
        (b"[1,", "application/json", 400),
    ],
)
def test_what_is_no_batch_is_refused(shared: ServerProcess, body: bytes, media_type: str, status: int) -> None:
    problem(shared.post_batch(body, **{"Content-Type": media_type}), status)


def test_2000_events_are_a_batch_and_one_more_is_not(shared: ServerProcess) -> None:
    before = count(shared)
    too_many = [request(payload={})] * 2001
    assert "2001" in problem(shared.post_batch(too_many), 413)["detail"]
    assert count(shared) == before
    assert ids(shared.post_batch(too_many[1:]).json()) == list(range(before + 1, before + 2001))


# --- idempotency


def replayed(response: httpx.Response) -> bool:
    told: bool = response.headers.get("idempotent-replayed") == "true"
    assert response.status_code == (200 if told else 201), response.text
    return told


def test_one_key_appends_once_however_it_is_written(shared: ServerProcess) -> None:
    key, before = secrets.token_hex(), count(shared)
    first = shared.post(request(), **{"Idempotency-Key": key})
    assert not replayed(first)
    for again in (
        shared.post(request(), **{"Idempotency-Key": key}),
        shared.post(request(), **{"Idempotency-Key": f'"{key}"'}),
        shared.post(request(idempotency_key=key)),
        shared.post(request(idempotency_key=key), **{"Idempotency-Key": f'"{key}"'}),
        shared.post(dict(reversed(request().items())), **{"Idempotency-Key": key}),
    ):
        assert replayed(again)
        assert again.content == first.content
        assert again.headers["location"] == first.headers["location"]
    assert not replayed(shared.post(request(), **{"Idempotency-Key": f'"a \\"quoted\\" {key}"'}))
    assert replayed(shared.post(request(idempotency_key=f'a "quoted" {key}')))
    assert count(shared) == before + 2


@pytest.mark.parametrize("change", [{"kind": "flag_swapped"}, {"payload": {"a": 2}}])
def test_a_key_with_other_content_is_refused(shared: ServerProcess, change: dict[str, Any]) -> None:
    key = secrets.token_hex()
    assert not replayed(shared.post(request(), **{"Idempotency-Key": key}))
    before = count(shared)
    found = problem(shared.post(request(**change), **{"Idempotency-Key": key}), 422)
    assert (found["field"], key in found["detail"]) == ("idempotency_key", True)
    assert count(shared) == before


def test_a_given_timestamp_is_content(shared: ServerProcess) -> None:
    given = request(timestamp="2026-05-15T03:14:15Z", idempotency_key=secrets.token_hex())
    assert not replayed(shared.post(given))
    assert replayed(shared.post(given))
    problem(shared.post(given | {"timestamp": "2026-05-15T03:14:16Z"}), 422)


@pytest.mark.parametrize("key", ["", '""', "k" * 256, "caf\u00e9", "a\tb"])
def test_a_bad_key_is_refused(shared: ServerProcess, key: str) -> None:
    header = {b"Idempotency-Key": key.encode("latin-1")}
    for path, body in (("/events", request()), ("/events/batch", [request()])):
        response = shared.client.post(path, content=json.dumps(body), headers=header)
        assert problem(response, 422)["field"] == "idempotency_key"


def test_two_different_keys_are_refused(shared: ServerProcess) -> None:
    response = shared.post(request(idempotency_key="one"), **{"Idempotency-Key": "two"})
    assert problem(response, 422)["field"] == "idempotency_key"


def test_a_key_on_a_batch_replays_the_whole_batch(shared: ServerProcess) -> None:
    key, before = secrets.token_hex(), count(shared)
    batch = [request(payload={"n": n}) for n in range(3)]
    first = shared.post_batch(batch, **{"Idempotency-Key": key})
    again = shared.post_batch(batch, **{"Idempotency-Key": f'"{key}"'})
    assert (replayed(first), replayed(again)) == (False, True)
    assert again.content == first.content
    other = [*batch[:2], request(payload={"n": "other"})]
    problem(shared.post_batch(other, **{"Idempotency-Key": key}), 422)
    assert count(shared) == before + 3


def test_a_key_of_another_source_is_free_and_nothing_shows_that_it_is_used(shared: ServerProcess) -> None:
    key = secrets.token_hex()
    first = shared.post(request(source="alice"), **{"Idempotency-Key": key})
    second = shared.post(request(source="bob"), **{"Idempotency-Key": key})
    fresh = shared.post(request(source="bob"), **{"Idempotency-Key": f"{key}-"})
    assert [answer.status_code for answer in (first, second, fresh)] == [201, 201, 201]
    assert second.headers.keys() == fresh.headers.keys()
    batch = [request(source=source, idempotency_key=key) for source in ("bob", "carol", "alice")]
    receipts = shared.post_batch(batch)
    assert (receipts.status_code, replayed(receipts)) == (201, False)
    assert receipts.json()[::2] == [second.json(), first.json()]


@pytest.mark.parametrize("key", ['cloudevent:["bob","order-1"]', "audit-stream:accept-loss:1:2"])
def test_a_key_that_only_the_server_makes_is_refused(shared: ServerProcess, key: str) -> None:
    before = count(shared)
    answers = [
        shared.post(request(idempotency_key=key)),
        shared.post(request(), **{"Idempotency-Key": key}),
        shared.post_batch([request(), request(idempotency_key=key)]),
        shared.post_batch([request()], **{"Idempotency-Key": key}),
    ]
    for answer in answers:
        found = problem(answer, 422)
        assert found["field"] == "idempotency_key"
        assert "begin yours with something else" in found["detail"]
    assert count(shared) == before


def test_keys_inside_a_batch_are_each_for_their_event(shared: ServerProcess) -> None:
    one, two, three = (secrets.token_hex() for _ in range(3))
    first = shared.post(request(idempotency_key=one)).json()
    last = first["event_id"]
    batch = [request(idempotency_key=two), request(idempotency_key=one), request(idempotency_key=two)]
    receipts = shared.post_batch(batch)
    assert receipts.status_code == 201
    assert ids(receipts.json()) == [last + 1, last, last + 1]
    assert receipts.json()[1] == first
    clash = [request(idempotency_key=three), request(idempotency_key=three, payload={"a": 2})]
    assert problem(shared.post_batch(clash), 422)["index"] == 1
    assert count(shared) == last + 1


# --- GET /events


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/events?limit=0", 400, None),
        ("/events?limit=-1", 400, None),
        ("/events?limit=100001", 400, None),
        ("/events?limit=99999999999999999999999", 400, None),
        ("/events?limit=abc", 422, "limit"),
        ("/events?limit=", 422, "limit"),
        ("/events?limit=1.5", 422, "limit"),
        ("/events?after=-1", 422, "after"),
        ("/events?before=-1", 422, "before"),
        ("/events?after=x", 422, "after"),
        ("/events?kind=surprise", 422, "kind"),
        ("/events?kind=", 422, "kind"),
        ("/events?since=yesterday", 422, "since"),
        ("/events?until=2026-05-15", 422, "until"),
        ("/events?since=0001-01-01T00:00:00%2B14:00", 422, "since"),
        ("/events?knid=other", 422, "knid"),
        ("/events?committed=maybe", 422, "committed"),
        ("/events?kind=other&kind=flag_swapped", 422, "kind"),
        ("/events/abc", 422, "event_id"),
        ("/events/-1", 422, "event_id"),
        ("/events/0", 404, None),
        ("/events/99999999", 404, None),
        ("/events/99999999999999999999", 404, None),
        (f"/events/{'9' * 5000}", 404, None),
        ("/events/1/2", 404, None),
        ("/nowhere", 404, None),
        ("/schema/nowhere", 404, None),
        ("/verify?from=0", 400, None),
        ("/verify?to=0", 400, None),
        ("/verify?to=99999999999999999999", 400, None),
        ("/verify?from=abc", 422, "from"),
        ("/verify?from=3&to=2", 422, "to"),
        ("/verify?from=99999999", 422, "from"),
        ("/verify?form=1", 422, "form"),
    ],
)
def test_a_misspelt_question_gets_no_wrong_answer(
    shared: ServerProcess, path: str, status: int, field: str | None
) -> None:
    for accept in ("application/json", NDJSON):
        found = problem(shared.get(path, Accept=accept), status)
        assert found.get("field") == field
        assert field is None or field in found["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/events", {"GET", "POST"}),
        ("PUT", "/events", {"GET", "POST"}),
        ("DELETE", "/events/1", {"GET"}),
        ("PATCH", "/events/1", {"GET"}),
        ("GET", "/events/batch", {"POST"}),
        ("POST", "/verify", {"GET"}),
        ("POST", "/stats", {"GET"}),
        ("DELETE", "/stream", {"GET"}),
    ],
)
def test_a_method_that_is_not_offered_is_told_which_are(
    shared: ServerProcess, method: str, path: str, allowed: set[str]
) -> None:
    response = shared.client.request(method, path)
    assert problem(response, 405)["detail"] == f"{method} is not one of {', '.join(sorted(allowed))}"
    assert set(response.headers["allow"].split(", ")) - {"OPTIONS"} == allowed


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/event", "there is no /event; did you mean /events?"),
        ("/evnets?kind=other", "there is no /evnets; did you mean /events?"),
        ("/no%20where", "there is no /no%20where; GET / lists what there is"),
        ("/schema/nowhere", "there is nothing here; GET / lists what there is"),
    ],
)
def test_a_path_that_is_not_there_is_told_the_nearest(shared: ServerProcess, path: str, says: str) -> None:
    assert problem(shared.get(path), 404)["detail"] == says


@pytest.mark.parametrize("path", ["/events", "/events?kind=other", "/verify"])
def test_a_cache_buster_is_taken_and_means_nothing(shared: ServerProcess, path: str) -> None:
    shared.post(request()).raise_for_status()
    busted = f"{path}{'&' if '?' in path else '?'}_=1780000000&_=2"
    plain, found = shared.get(path).json(), shared.get(busted).json()
    assert found == plain if path != "/verify" else found["valid"]
    assert problem(shared.get("/events?knid=other"), 422)["detail"].startswith(
        "knid: no such parameter; did you mean kind?"
    )


@pytest.fixture(scope="module")
def library(redis_url: str) -> Iterator[ServerProcess]:
    """A server with 240 events of two kinds and three sources, which no test adds to."""
    mixed = product(range(40), ("request_allowed", "request_denied"), ("gate", "mesh", "caf\u00e9/&?"))
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=f"lib.{secrets.token_hex(4)}") as server:
        server.post_batch(
            [request(kind=kind, source=source, payload={"n": n, "pad": "x" * 1400}) for n, kind, source in mixed]
        ).raise_for_status()
        yield server


def pages(server: ServerProcess, path: str) -> list[list[int]]:
    """The event_ids of every page, following the Link header to its end."""
    found = []
    while path:
        response = server.get(path).raise_for_status()
        found.append(ids(response.json()))
        path = response.links.get("next", {}).get("url", "")
        assert len(found) < 500, "the pages never end"
    return found


QUERIES = [
    {},
    {"kind": "request_denied"},
    {"source": "caf\u00e9/&?"},
    {"kind": "request_denied", "source": "mesh"},
    {"since": "2026-01-01T00:00:00+00:00", "kind": "request_allowed"},
    {"until": "2999-01-01T00:00:00Z"},
]


@pytest.mark.parametrize("limit", [7, 40, 240])
@pytest.mark.parametrize("query", QUERIES, ids=[" ".join(query) or "all" for query in QUERIES])
def test_the_pages_visit_every_event_once_in_both_directions(
    library: ServerProcess, query: dict[str, str], limit: int
) -> None:
    everything = [
        event["event_id"]
        for event in library.get("/events").json()
        if query.get("kind") in (None, event["kind"]) and query.get("source") in (None, event["source"])
    ]
    backward = pages(library, f"/events?{urlencode({**query, 'limit': limit})}")
    forward = pages(library, f"/events?{urlencode({**query, 'limit': limit, 'after': 0})}")
    assert [event_id for page in reversed(backward) for event_id in page] == everything
    assert [event_id for page in forward for event_id in page] == everything
    assert {len(page) for page in backward[:-1] + forward[:-1]} <= {limit}
    assert len(forward) == len(backward) == -(-len(everything) // limit)


def test_pages_of_one_event_end(library: ServerProcess) -> None:
    path = "/events?kind=request_denied&source=gate&limit=1"
    assert pages(library, path) == list(reversed(pages(library, f"{path}&after=0")))
    assert len(pages(library, path)) == 40


def test_the_pages_stay_between_the_cursors(library: ServerProcess) -> None:
    for path in ("/events?after=50&before=61&limit=3", "/events?before=61&limit=3&after=50&kind=request_allowed"):
        visited = [event_id for page in pages(library, path) for event_id in page]
        assert visited == sorted(set(visited))
        assert set(visited) <= set(range(51, 61))
    assert ids(library.get("/events?after=50&before=61").json()) == list(range(51, 61))
    assert ids(library.get("/events?before=11&limit=3").json()) == [8, 9, 10]
    assert ids(library.get("/events?after=10&limit=3").json()) == [11, 12, 13]
    for nothing in ("after=240", "before=1", "after=5&before=6", "before=0", "after=99999999999999999999"):
        assert library.get(f"/events?{nothing}").json() == []


def test_filters_must_all_hold(library: ServerProcess) -> None:
    everything = library.get("/events").json()
    assert len(everything) == 240
    for kind, source in product(("request_allowed", "request_denied", "other"), ("gate", "mesh", "nobody")):
        found = library.get(f"/events?{urlencode({'kind': kind, 'source': source})}").json()
        assert found == [event for event in everything if (event["kind"], event["source"]) == (kind, source)]
        newest = library.get(f"/events?{urlencode({'kind': kind, 'source': source, 'limit': 3})}").json()
        assert newest == found[-3:]


def test_a_long_answer_is_streamed_and_still_whole(library: ServerProcess) -> None:
    one_by_one = [library.get(f"/events/{event_id}").text for event_id in range(1, 241)]
    array, lines = library.get("/events"), library.get("/events", Accept=NDJSON)
    for response in (array, lines):
        assert response.headers["transfer-encoding"] == "chunked"
    assert array.headers["content-type"] == "application/json"
    assert lines.headers["content-type"].startswith(NDJSON)
    assert array.text == f"[{','.join(one_by_one)}]"
    assert lines.text == "".join(f"{text}\n" for text in one_by_one)
    scattered = library.get("/events?kind=request_denied&source=gate&limit=35")
    assert [json.dumps(event, separators=(",", ":"), ensure_ascii=True) for event in scattered.json()] == [
        text for text in one_by_one if '"kind":"request_denied","source":"gate"' in text
    ][-35:]


@pytest.fixture(scope="module")
def empty(redis_url: str) -> Iterator[ServerProcess]:
    """A server that no test writes to."""
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=f"none.{secrets.token_hex(4)}") as server:
        yield server


def test_nothing_is_an_empty_list(empty: ServerProcess) -> None:
    for path in ("/events", "/events?after=0", "/events?kind=other", "/events?since=2026-01-01T00:00:00Z"):
        response = empty.get(path)
        assert (response.json(), response.links) == ([], {})
        assert empty.get(path, Accept=NDJSON).text == ""


def test_since_and_until_go_by_the_time_of_commit(server: ServerProcess, redis_url: str, chain: str) -> None:
    committed: list[int] = []
    with redis.Redis.from_url(redis_url) as client:
        while len(set(committed)) < 4:
            # What a producer says of its own clock does not move its event.
            server.post(request(timestamp="1999-12-31T23:59:59Z")).raise_for_status()
            entries = client.xrange(f"{{{chain}}}:time")
            committed = [int(entry_id.split(b"-")[0]) for entry_id, _ in entries]
    for boundary in set(committed):
        moment = quote(rfc3339(boundary))
        since = [number for number, ms in enumerate(committed, start=1) if ms >= boundary]
        until = [number for number, ms in enumerate(committed, start=1) if ms < boundary]
        assert ids(server.get(f"/events?since={moment}").json()) == since
        assert ids(server.get(f"/events?until={moment}").json()) == until
        assert server.get(f"/events?since={moment}&until={moment}").json() == []
    assert server.get("/events?until=2000-01-01T00:00:00Z").json() == []
    assert server.get("/events?since=2999-01-01T00:00:00Z").json() == []
    # Asked for, the answer carries that time, and an index that lacks an event costs it nothing else.
    times = [rfc3339(ms).replace("+00:00", "Z") for ms in committed]
    plain, lines = server.get("/events").json(), server.get("/events?committed=true", Accept=NDJSON).text.splitlines()
    assert server.get("/events?committed=false").content == server.get("/events").content
    assert server.get("/events?committed=true").text == f"[{','.join(lines)}]"
    assert [json.loads(line) for line in lines] == [
        {**event, "committed_at": time} for event, time in zip(plain, times, strict=True)
    ]
    assert [line.partition(',"committed_at"')[0] + "}" for line in lines] == server.get(
        "/events", Accept=NDJSON
    ).text.splitlines()
    with redis.Redis.from_url(redis_url) as client:
        client.xdel(f"{{{chain}}}:time", f"{committed[1]}-2")
    left = [event.get("committed_at") for event in server.get("/events?committed=true&kind=other").json()]
    assert left == [times[0], None, *times[2:]]
    assert "committed=true" in server.get("/events?committed=true&limit=1").links["next"]["url"]
    refused = server.get("/events?committed=true", Accept="application/cloudevents-batch+json")
    assert problem(refused, 422)["field"] == "committed"


def rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}+00:00"


# --- the deployment's own kinds; the pages about the server


def test_a_deployment_adds_its_own_kinds(redis_url: str, chain: str, shared: ServerProcess) -> None:
    own = request(kind="model_retired")
    problem(shared.post(own), 422)
    with running_server(
        AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, AUDIT_STREAM_KINDS="model_retired, model_born"
    ) as server:
        assert server.get("/").json()["kinds"] == [*BUILT_IN, "model_retired", "model_born"]
        assert server.post(own).status_code == 201
        assert server.post_batch([request(), own, request(kind="model_born")]).status_code == 201
        assert ids(server.get("/events?kind=model_retired").json()) == [1, 3]
        problem(server.post(request(kind="model_lost")), 422)


def test_the_front_page_lists_endpoints_that_are_there(shared: ServerProcess) -> None:
    page = shared.get("/").json()
    assert page["name"] == "audit-stream"
    for endpoint in page["endpoints"]:
        method, path = endpoint.split()
        if method == "GET" and path != "/stream":
            path = path.replace("{event_id}", "1")
            assert shared.get(path).status_code in (200, 404 if path == "/events/1" else 200), path


def test_stats_tell_count_head_and_promise(server: ServerProcess, chain: str) -> None:
    empty = server.get("/stats").json()
    assert (empty["count"], empty["last_event_id"], empty["latest_hash"]) == (0, 0, None)
    receipts = server.post_batch([request()] * 3).json()
    stats = server.get("/stats").json()
    assert (stats["count"], stats["last_event_id"], stats["latest_hash"]) == (3, 3, receipts[-1]["hash"])
    assert (stats["chain"], stats["ack"], stats["hashing"]) == (chain, "fsync", "checked")
    assert (stats["batches"], stats["subscribers"], stats["index_trouble"]) == (1, 0, "")
    assert stats["redis"].split()[0] in ("Valkey", "Redis")
    assert (stats["replicas"], stats["pin"]) == (0, None)


def test_an_empty_chain_is_valid(empty: ServerProcess) -> None:
    verdict = empty.verify()
    assert verdict.pop("took_ms") >= 0
    assert verdict == {
        "valid": True,
        "checked": 0,
        "first_break_at": None,
        "reason": None,
        "first": 1,
        "head": {"event_id": 0, "hash": "0" * 64},
        "indexes": "agree",
        "unchecked": None,
    }


# --- whatever is sent, it is the client's fault

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(BUILT_IN),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
_names = st.sampled_from(["kind", "source", "payload", "timestamp", "idempotency_key", "event_id", ""])
_near_events = st.builds(
    lambda base, changes: base | changes, st.just(request()), st.dictionaries(_names, _values, max_size=2)
)
_json = (_near_events | _values).map(lambda value: json.dumps(value).encode())


@fuzzed
@given(body=st.binary(max_size=200) | _json, keyed=st.none() | st.text(st.characters(codec="latin-1"), max_size=5))
def test_no_body_whatever_is_the_servers_fault(shared: ServerProcess, body: bytes, keyed: str | None) -> None:
    headers = {b"Content-Type": b"application/json"}
    if keyed is not None and keyed.isprintable():
        headers[b"Idempotency-Key"] = keyed.strip().encode("latin-1")
    response = shared.client.post("/events", content=body, headers=headers)
    if response.status_code in (200, 201):
        assert shared.get(response.headers["location"]).content == response.content
    else:
        problem(response, response.status_code)
        assert response.status_code < 500


@fuzzed
@given(
    body=st.binary(max_size=200)
    | st.lists(_json, max_size=4).map(lambda texts: b"[" + b",".join(texts) + b"]")
    | st.lists(_json, max_size=4).map(b"\n".join),
    media_type=st.sampled_from(["application/json", NDJSON, "application/octet-stream"]),
)
def test_no_batch_whatever_is_the_servers_fault(shared: ServerProcess, body: bytes, media_type: str) -> None:
    response = shared.post_batch(body, **{"Content-Type": media_type})
    if response.status_code not in (200, 201):
        problem(response, response.status_code)
        assert response.status_code < 500


_parameters = st.sampled_from(["kind", "source", "since", "until", "after", "before", "limit", "from", "to", "named"])
_texts = st.one_of(
    st.text(max_size=6),
    st.integers().map(str),
    st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"),
    st.sampled_from([*BUILT_IN, "-0", "1e3", "NaN", "9" * 400, "9999-12-31T23:59:60Z", "0000-01-01T00:00:00Z"]),
)


@fuzzed
@given(
    path=st.sampled_from(["/events", "/verify", "/stats", "/events/1", "/", "/readyz"]),
    query=st.lists(st.tuples(_parameters | st.text(max_size=3), _texts), max_size=3).map(urlencode)
    | st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=20),
)
def test_no_question_whatever_is_the_servers_fault(shared: ServerProcess, path: str, query: str) -> None:
    with connect(shared) as connection:
        say(connection, "GET", f"{path}?{query}", "Connection: close")
        status, body = answer(connection)
    assert status < 500, body
    assert json.loads(body) is not None


def test_the_chain_holds_after_all_that(shared: ServerProcess) -> None:
    verdict = shared.verify()
    assert (verdict["valid"], verdict["indexes"]) == (True, "agree")


# --- verify beside other work, on a Redis of its own


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as started:
        yield started


LONG = 20_000


@pytest.fixture(scope="module")
def long_chain(valkey: EmbeddedValkey) -> Iterator[ServerProcess]:
    with running_server(AUDIT_STREAM_REDIS_URL=valkey.url, AUDIT_STREAM_CHAIN="long") as server:
        for _ in range(LONG // 2000):
            server.post_batch([request(payload={})] * 2000).raise_for_status()
        yield server


def xranges(valkey: EmbeddedValkey) -> int:
    """How many pages were read since this was asked before."""
    with redis.Redis.from_url(valkey.url) as client:
        stats = client.info("commandstats")
        client.config_resetstat()
    return int(stats.get("cmdstat_xrange", {}).get("calls", 0))


def test_twenty_who_verify_at_the_same_time_share_the_walk(long_chain: ServerProcess, valkey: EmbeddedValkey) -> None:
    xranges(valkey)
    assert long_chain.verify()["checked"] == LONG
    one_walk = xranges(valkey)
    assert one_walk > 10
    connections = [connect(long_chain) for _ in range(20)]
    for connection in connections:
        say(connection, "GET", "/verify", "Connection: close")
    for connection in connections:
        with connection:
            status, body = answer(connection)
        verdict = json.loads(body)
        assert (status, verdict["valid"], verdict["checked"], verdict["indexes"]) == (200, True, LONG, "agree")
    assert xranges(valkey) <= 5 * one_walk


def test_others_are_answered_while_the_chain_is_verified(long_chain: ServerProcess) -> None:
    def answered_first() -> bool:
        with connect(long_chain) as verify, connect(long_chain) as health:
            say(verify, "GET", "/verify", "Connection: close")
            say(health, "GET", "/healthz", "Connection: close")
            assert answer(health) == (200, b'{"status":"ok"}')
            verdict_is_there = bool(select.select([verify], [], [], 0)[0])
            assert json.loads(answer(verify)[1])["valid"]
            return not verdict_is_there

    # Once may be chance: this process may have been held up between the two. Five times is not.
    assert any(answered_first() for _ in range(5))


def test_appending_goes_on_while_the_chain_is_verified(valkey: EmbeddedValkey) -> None:
    with running_server(AUDIT_STREAM_REDIS_URL=valkey.url, AUDIT_STREAM_CHAIN="busy") as server:
        server.post_batch([request()] * 2000).raise_for_status()
        with ThreadPoolExecutor(1) as pool:
            appending = pool.submit(lambda: [server.post_batch([request()] * 10).status_code for _ in range(40)])
            checked = []
            while not appending.done():
                verdict = server.verify()
                assert (verdict["valid"], verdict["indexes"]) == (True, "agree"), verdict
                checked.append(verdict["checked"])
        assert set(appending.result()) == {201}
        assert checked == sorted(checked)
        assert server.verify()["checked"] == 2400


def test_a_part_is_verified_from_and_to_where_it_is_asked(library: ServerProcess) -> None:
    for query, checked, head in (
        ("from=1&to=100", 100, 100),
        ("from=101&to=200", 100, 200),
        ("from=201", 40, 240),
        ("to=7", 7, 7),
        ("from=240&to=240", 1, 240),
        ("from=241", 0, 240),
        ("to=9999", 240, 240),
    ):
        verdict = library.get(f"/verify?{query}").json()
        assert (verdict["valid"], verdict["checked"]) == (True, checked), query
        assert verdict["head"] == {"event_id": head, "hash": library.get(f"/events/{head}").json()["hash"]}
        assert verdict["indexes"] == "not checked"


def test_progress_is_told_line_by_line_and_the_verdict_is_the_last(
    long_chain: ServerProcess, valkey: EmbeddedValkey
) -> None:
    os.kill(valkey.pid, signal.SIGSTOP)  # so that it cannot be done before it has told
    try:
        with long_chain.client.stream("GET", "/verify", headers={"Accept": NDJSON}) as response:
            assert response.headers["content-type"].startswith(NDJSON)
            lines = response.iter_lines()
            first = json.loads(next(lines))
            os.kill(valkey.pid, signal.SIGCONT)
            *progress, verdict = [first, *map(json.loads, lines)]
    finally:
        os.kill(valkey.pid, signal.SIGCONT)
    assert progress
    assert all(set(line) == {"checked", "expected"} and line["checked"] <= line["expected"] for line in progress)
    assert [line["checked"] for line in progress] == sorted(line["checked"] for line in progress)
    assert (verdict["valid"], verdict["checked"]) == (True, LONG)


def test_a_server_whose_redis_keeps_the_promise_no_longer_is_not_ready(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey, running_server(AUDIT_STREAM_REDIS_URL=valkey.url) as server:
        assert server.get("/readyz").json()["status"] == "ready"
        with redis.Redis.from_url(valkey.url) as client:
            client.config_set("appendfsync", "everysec")
        response = server.get("/readyz")
        found = problem(response, 503)
        assert any("CONFIG SET appendfsync always" in reason for reason in found["reasons"])
        assert int(response.headers["retry-after"]) > 0
        valkey.stop()
        problem(server.get("/readyz"), 503)
        assert server.get("/healthz").json() == {"status": "ok"}
