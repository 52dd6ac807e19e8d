"""Who may do what, over HTTP."""

import asyncio
import http.client
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import redis

from audit_stream.access.session import Sessions
from audit_stream.access.table import Tokens
from audit_stream.cloudevents import key_of
from audit_stream.server.auth import Guard, Revoked
from audit_stream.server.routes import ENDPOINTS
from tests.access.conftest import ORIGIN, Guarded
from tests.access.holders import Holder, write_tokens

EVENT = {"kind": "other", "source": "a"}
OPEN = {"/healthz": 200, "/readyz": 200, "/dashboard": 200, "/dashboard/main.js": 200, "/dashboard/login": 200}
LOGIN = {"/dashboard/login", "/dashboard/logout"}
PROBLEM = "application/problem+json"


def detail(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == PROBLEM
    body: dict[str, Any] = answer.json()
    assert body["status"] == answer.status_code
    return str(body["detail"])


# --- without a token


@pytest.mark.parametrize("path", OPEN)
def test_what_tells_nothing_about_the_chain_is_open(guarded: Guarded, path: str) -> None:
    assert guarded.server.get(path).status_code == OPEN[path]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(each.replace("{event_id}", "1").split() for each in ENDPOINTS if each.split()[1] not in {*OPEN, *LOGIN}),
        ("GET", "/schema/openapi.json"),
        ("GET", "/events/"),
        ("GET", "//events"),
        ("GET", "/%65vents"),
        ("GET", "/healthz%2f..%2fevents"),
        ("GET", "/healthz/../events"),
        ("GET", "/Events"),
        ("GET", "/no/such/path"),
        ("GET", "/dashboardx"),
        ("HEAD", "/events"),
        ("OPTIONS", "/events"),
        ("DELETE", "/events/1"),
        ("PUT", "/"),
    ],
)
def test_without_a_token_nothing_else_is_answered(guarded: Guarded, method: str, path: str) -> None:
    # By hand: httpx would tidy the path up.
    connection = http.client.HTTPConnection(
        guarded.server.client.base_url.host, guarded.server.client.base_url.port or 0
    )
    connection.request(method, path, headers={"Accept": "application/json"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if ".." in path or "%2f" in path:
        assert answer.status in (401, 404)
        assert b"event_id" not in body
        return
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="audit-stream"'


def test_a_browser_is_sent_on_to_the_page_which_has_the_login(guarded: Guarded) -> None:
    answer = guarded.server.get("/", Accept="text/html")
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")


@pytest.mark.parametrize(
    "given", ["Bearer nonsense", "bearer nonsense", "Bearer audit_" + "a" * 52, "Bearer " + "x" * 5000]
)
def test_a_token_that_is_not_known_is_refused_as_such(guarded: Guarded, given: str) -> None:
    answer = guarded.server.get("/stats", Authorization=given)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].endswith('error="invalid_token"')
    assert detail(answer) == "this token is not known here, or no longer"


def test_another_scheme_is_told_which_one_it_is_to_be(guarded: Guarded) -> None:
    answer = guarded.server.get("/stats", Authorization="Basic YTpi")
    assert (answer.status_code, "Bearer" in detail(answer)) == (401, True)


# --- scopes

READS = ["/events", "/events/1", "/stats", "/verify", "/events/?limit=1", "/stats/"]


@pytest.mark.parametrize("path", READS)
def test_reading_takes_the_scope_read(guarded: Guarded, path: str) -> None:
    assert guarded.get("reader", path).status_code in (200, 404)
    for holder in ("producer", "scraper"):
        answer = guarded.get(holder, path)
        assert answer.status_code == 403
        assert answer.headers["www-authenticate"].endswith('error="insufficient_scope", scope="read"')
        assert f"needs the scope read; the token {holder!r} has " in detail(answer)


@pytest.mark.parametrize("path", ["/events", "/events/batch", "/events/", "/events/batch/"])
def test_appending_takes_the_scope_append_and_what_is_refused_is_not_written(guarded: Guarded, path: str) -> None:
    body: object = [EVENT] if "batch" in path else EVENT
    before = guarded.get("reader", "/stats").json()["count"]
    for holder in ("reader", "scraper"):
        answer = guarded.post(holder, path, body)
        assert answer.status_code == 403
        assert "needs the scope append" in detail(answer)
    assert guarded.get("reader", "/stats").json()["count"] == before
    assert guarded.post("producer", path, body).status_code == 201


def test_a_refusal_is_one_line_whatever_was_asked_for(guarded: Guarded) -> None:
    said = detail(guarded.get("producer", "/events/%0aERROR%20all%20is%20lost"))
    assert said.startswith("GET /events/%0AERROR%20all%20is%20lost needs the scope read")


def test_a_large_body_that_is_refused_leaves_the_connection_in_use(guarded: Guarded) -> None:
    url = guarded.server.client.base_url
    connection = http.client.HTTPConnection(url.host, url.port or 0)
    for _ in range(2):
        connection.request("POST", "/events/batch", body=b"x" * 3_000_000, headers=guarded.holders["reader"].header)
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:1]) == (403, b"{")
        used = connection.sock
        connection.request("GET", "/stats", headers=guarded.holders["reader"].header)
        assert connection.getresponse().read().startswith(b'{"count"')
        assert connection.sock is used
    connection.close()


def test_metrics_take_the_scope_metrics(guarded: Guarded) -> None:
    assert "needs the scope metrics" in detail(guarded.get("reader", "/metrics"))
    assert guarded.get("scraper", "/metrics").status_code in (200, 404)


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/schema", 200), ("/no/such/path", 404)])
def test_any_token_gets_the_service_info_and_a_404(guarded: Guarded, path: str, status: int) -> None:
    assert guarded.get("scraper", path).status_code == status


# --- sources


def test_a_producer_cannot_write_as_another_source(guarded: Guarded) -> None:
    before = guarded.get("reader", "/stats").json()["count"]
    answer = guarded.post("a-producer", "/events", EVENT | {"source": "b"})
    assert answer.status_code == 403
    assert detail(answer) == "source: the token 'a-producer' may not write as 'b', only as 'a'"
    assert answer.json()["field"] == "source"
    batch = [EVENT, EVENT | {"source": "A"}, EVENT]
    answer = guarded.post("a-producer", "/events/batch", batch)
    assert (answer.status_code, answer.json()["index"]) == (403, 1)
    assert guarded.get("reader", "/stats").json()["count"] == before
    assert guarded.post("a-producer", "/events/batch", [EVENT, EVENT]).status_code == 201


def test_a_producer_keeps_no_event_of_another_source_off_the_chain(guarded: Guarded) -> None:
    """Neither by a key that the other uses, nor by one that is made of its CloudEvent."""
    key, id_ = "a key of both", "order-1"
    assert guarded.post("a-producer", "/events", EVENT | {"idempotency_key": key}).status_code == 201
    assert guarded.post("producer", "/events", EVENT | {"source": "b", "idempotency_key": key}).status_code == 201
    made = key_of("b", id_)
    assert guarded.post("a-producer", "/events", EVENT | {"idempotency_key": made}).status_code == 422
    cloudevent = {"specversion": "1.0", "id": id_, "source": "b", "type": "other", "data": {"amount": 1000000}}
    headers = {"Content-Type": "application/cloudevents+json", **guarded.holders["producer"].header}
    answer = guarded.server.client.post("/events", content=json.dumps(cloudevent), headers=headers)
    assert answer.status_code == 201


@pytest.mark.parametrize(
    "path", ["/events", "/events?kind=other", "/events?after=0&limit=1", "/stream", "/stream?after=0"]
)
def test_an_answer_that_would_leave_events_out_is_refused(guarded: Guarded, path: str) -> None:
    answer = guarded.get("a-reader", path)
    assert answer.status_code == 403
    assert detail(answer) == "source: the token 'a-reader' reads only 'a', 'é'; ask with source=… for one of them"


@pytest.mark.parametrize("mode", ["binary", "structured", "batch"])
@pytest.mark.parametrize(("source", "status"), [("a", 201), ("b", 403)])
def test_a_cloudevent_is_of_the_source_that_it_says(guarded: Guarded, mode: str, source: str, status: int) -> None:
    event = {"specversion": "1.0", "id": f"{mode} of {source}", "source": source, "type": "other", "data": {}}
    headers, body = {"Content-Type": f"application/cloudevents{'-batch' * (mode == 'batch')}+json"}, [event]
    content = json.dumps(body if mode == "batch" else event)
    if mode == "binary":
        headers = {"Content-Type": "application/json", **{f"ce-{k}": str(v) for k, v in event.items() if k != "data"}}
        content = "{}"
    headers |= guarded.holders["a-producer"].header
    assert guarded.server.client.post("/events", content=content, headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/events?source=b", "/stream?source=b&after=0", "/events?source=a%00"])
def test_another_source_is_not_read(guarded: Guarded, path: str) -> None:
    answer = guarded.get("a-reader", path)
    assert answer.status_code == 403
    assert "may not read" in detail(answer)


@pytest.mark.parametrize(
    "path", ["/events?source=a&source=b", "/events?source=a&Source=b", "/events?source=a;source=b"]
)
def test_no_spelling_of_the_filter_reads_another_source(guarded: Guarded, path: str) -> None:
    answer = guarded.get("a-reader", path)
    assert answer.status_code in (403, 422)


def test_its_own_sources_are_read_and_one_event_of_another_is_not(guarded: Guarded) -> None:
    found = guarded.get("a-reader", "/events?source=%C3%A9").json()
    assert [event["source"] for event in found] == ["é"]
    assert guarded.get("a-reader", "/events/1").json()["source"] == "a"
    answer = guarded.get("a-reader", "/events/2")
    assert answer.status_code == 403
    assert detail(answer) == "event #2 is of a source that the token 'a-reader' may not read"
    assert guarded.get("a-reader", "/events/999999").status_code == 404


def test_metrics_count_the_sources_of_a_bound_token_alone(guarded: Guarded) -> None:
    for source in ("a", "b"):
        guarded.post("producer", "/events", EVENT | {"source": source}).raise_for_status()
    seen = {
        holder: set(
            re.findall(r'^audit_stream_events_total\{.*source="(.*?)"', guarded.get(holder, "/metrics").text, re.M)
        )
        for holder in ("scraper", "a-scraper")
    }
    assert seen["scraper"] >= {"a", "b"}
    assert seen["a-scraper"] == {"a"}


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_verdict_names_no_index_of_another_source_to_a_bound_token(
    guarded: Guarded, redis_url: str, accept: str
) -> None:
    chain = guarded.get("reader", "/stats").json()["chain"]
    guarded.post("producer", "/events", EVENT | {"source": "secret project"}).raise_for_status()
    with redis.Redis.from_url(redis_url) as client:
        index = f"{{{chain}}}:source:secret project"
        whole = client.dump(index)
        client.delete(index)
        try:
            verdicts = {
                (holder, path): guarded.get(holder, path, Accept=accept).text
                for path in ("/verify", "/stats")
                for holder in ("reader", "a-reader")
            }
        finally:
            client.restore(index, 0, cast("bytes", whole))
    assert guarded.get("reader", "/verify").json()["valid"]
    assert "secret project" in verdicts["reader", "/verify"]
    assert "the index of a source disagrees" in verdicts["a-reader", "/verify"]
    for path in ("/verify", "/stats"):
        assert "secret project" not in verdicts["a-reader", path]


def test_hashes_and_counts_are_for_every_reader(guarded: Guarded) -> None:
    assert guarded.get("a-reader", "/verify").json()["valid"] is True
    assert guarded.get("a-reader", "/stats").json()["count"] >= 3


# --- limits


def test_over_its_limit_of_requests_a_token_is_told_how_long_to_wait(guarded: Guarded) -> None:
    guarded.post("slow", "/events", EVENT)  # the first of all its requests is answered, here or in another test
    answer = guarded.post("slow", "/events", EVENT)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 100
    assert detail(answer) == "the token 'slow' is over its limit of 0.01 requests a second; nothing was done"
    assert guarded.post("producer", "/events", EVENT).status_code == 201


def test_over_its_limit_of_bytes_a_token_still_reads(guarded: Guarded) -> None:
    body = json.dumps(EVENT).encode()

    def parts() -> Iterator[bytes]:
        yield body[:10]
        yield body[10:]

    headers = {**guarded.holders["thin"].header, "Content-Type": "application/json"}
    # A body that does not say how long it is is charged as it comes.
    assert guarded.server.client.post("/events", content=parts(), headers=headers).status_code == 201
    answer = guarded.post("thin", "/events", EVENT)
    assert answer.status_code == 429
    assert "0.5 bytes a second" in detail(answer)
    assert int(answer.headers["retry-after"]) <= len(body) / 0.5
    assert guarded.get("thin", "/stats").status_code == 200


# --- a change of the file


@contextmanager
def following(guarded: Guarded, holder: Holder) -> Iterator[Iterator[bytes]]:
    with guarded.server.client.stream("GET", "/stream", headers=holder.header) as answer:
        assert answer.status_code == 200
        yield answer.iter_bytes()


def test_a_change_is_in_force_without_a_restart_and_ends_the_streams_of_who_is_gone(guarded: Guarded) -> None:
    leaver, joiner = Holder("leaver", "read"), Holder("joiner", "read")
    write_tokens(guarded.path, *guarded.holders.values(), leaver)
    answers = (guarded.server.get("/stats", **leaver.header) for _ in range(2_000))
    assert any(answer.status_code == 200 for answer in answers)
    with following(guarded, leaver) as chunks, following(guarded, guarded.holders["reader"]) as staying:
        assert b"retry:" in next(chunks)
        next(staying)
        write_tokens(guarded.path, *guarded.holders.values(), joiner)
        # It ends well, as a stream that was cut would not.
        assert b"".join(chunks).count(b"data:") == 0
        assert guarded.server.get("/stats", **leaver.header).status_code == 401
        assert guarded.server.get("/stats", **joiner.header).status_code == 200
        guarded.post("everything", "/events", EVENT | {"source": "still followed"}).raise_for_status()
        assert any(b"still followed" in chunk for chunk in staying)


@pytest.mark.parametrize("path", ["/events?after=0&limit=100000", "/verify"])
def test_an_answer_that_its_token_does_not_outlive_is_cut_off_and_cannot_pass_for_whole(
    guarded: Guarded, path: str
) -> None:
    # The application never ends its answer: an answer that takes the second of a look would need a long chain.
    leaver = Holder("leaver", "read")
    write_tokens(guarded.path.with_name("other.toml"), leaver)
    tokens = Tokens(guarded.path.with_name("other.toml"))
    sent: list[Any] = []
    begun = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}", "more_body": True})
        begun.set()
        await asyncio.Event().wait()

    async def talk() -> None:
        headers = [(b"authorization", f"Bearer {leaver.token}".encode())]
        scope = {"type": "http", "method": "GET", "path": path.partition("?")[0], "headers": headers}
        answer = asyncio.ensure_future(Guard(endless, tokens, Sessions(tokens))(cast("Any", scope), receive, send))
        await begun.wait()
        write_tokens(guarded.path.with_name("other.toml"), Holder("joiner", "read"))
        tokens.look()
        with pytest.raises(Revoked):
            await asyncio.wait_for(answer, 20)
        assert sent[-1]["more_body"], "an end would have made it look whole"

    async def receive() -> Any: ...

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(talk())


# --- the cookie


def cookie(answer: httpx.Response) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


def log_in(guarded: Guarded, token: str, **headers: str) -> httpx.Response:
    return guarded.server.client.post("/dashboard/login", json={"token": token}, headers=headers)


def test_a_cookie_reads_and_never_writes(guarded: Guarded) -> None:
    answer = log_in(guarded, guarded.holders["everything"].token)
    guarded.server.client.cookies.clear()
    assert answer.status_code == 204
    assert answer.headers["set-cookie"].endswith("; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200")
    assert guarded.holders["everything"].token not in answer.headers["set-cookie"]
    jar = f"other=1; {cookie(answer)}; more=2"
    assert guarded.server.get("/stats", Cookie=jar).status_code == 200
    assert guarded.server.get("/dashboard/login", Cookie=jar).json() == {"needed": True, "name": "everything"}
    # The token itself is not a session.
    token = f"audit_stream={guarded.holders['everything'].token}"
    assert guarded.server.get("/dashboard/login", Cookie=token).json() == {"needed": True, "name": None}
    assert guarded.server.get("/stats", Cookie=token).status_code == 401
    assert guarded.server.post(EVENT, Cookie=jar).status_code == 401
    assert guarded.server.post_batch([EVENT], Cookie=jar).status_code == 401
    assert guarded.server.get("/stats", Cookie="audit_stream=nonsense").status_code == 401


def test_the_cookie_is_for_https_alone_where_our_proxy_says_that_it_is_spoken(guarded: Guarded) -> None:
    token = guarded.holders["reader"].token
    answer = log_in(guarded, token, **{"X-Forwarded-Proto": "https"})
    # The name makes the browser see to it that no other host, port or plain http sets or gets it (RFC 6265bis).
    assert re.fullmatch(
        "__Host-audit_stream=[^;]+; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200; Secure",
        answer.headers["set-cookie"],
    )
    guarded.server.client.cookies.clear()
    assert guarded.server.get("/stats", Cookie=f"audit_stream=tossed; {cookie(answer)}").status_code == 200
    assert guarded.server.get("/stats", Cookie=f"{cookie(answer)}; audit_stream=tossed").status_code == 200


@pytest.mark.parametrize(
    ("holder", "status", "said"),
    [("producer", 403, "needs the scope read"), ("a-reader", 403, "shows the whole chain"), ("", 401, "not known")],
)
def test_who_cannot_use_the_page_is_told_so_at_the_login(guarded: Guarded, holder: str, status: int, said: str) -> None:
    answer = log_in(
        guarded, guarded.holders[holder].token if holder else "x", **{"X-Forwarded-For": f"10.1.0.{status}"}
    )
    assert (answer.status_code, "set-cookie" in answer.headers) == (status, False)
    assert said in detail(answer)


@pytest.mark.parametrize(
    ("content", "type_", "status"),
    [
        (b"token=x", "application/x-www-form-urlencoded", 415),
        (b'{"token":"x"}', "text/plain", 415),
        (b"{", "application/json", 422),
        (b'{"token":1}', "application/json", 422),
        (b'{"token":"x","more":1}', "application/json", 422),
        (b'{"token":"' + b"x" * 5000 + b'"}', "application/json", 413),
        ('{"token":"é; x"}'.encode(), "application/json", 401),
    ],
)
def test_a_login_that_is_none_is_refused(guarded: Guarded, content: bytes, type_: str, status: int) -> None:
    headers = {"Content-Type": type_, "X-Forwarded-For": f"10.2.0.{status % 256}"}
    answer = guarded.server.client.post("/dashboard/login", content=content, headers=headers)
    assert answer.status_code == status


def test_mistaken_logins_are_limited_by_address(guarded: Guarded) -> None:
    # Only the last address is the proxy's word. The client varies what it claims before that.
    addresses = [f"1.2.3.{n}, 10.3.0.1" for n in range(12)]
    statuses = [log_in(guarded, "guess", **{"X-Forwarded-For": address}).status_code for address in addresses]
    assert statuses[:10] == [401] * 10
    assert statuses[-1] == 429
    assert log_in(guarded, "guess", **{"X-Forwarded-For": "10.3.0.2"}).status_code == 401


def test_a_proxy_that_adds_a_line_of_its_own_is_the_one_that_is_believed(guarded: Guarded) -> None:
    def guess(n: int) -> int:
        lines = [("X-Forwarded-For", f"1.2.3.{n}"), ("X-Forwarded-For", "10.3.0.3")]
        return guarded.server.client.post("/dashboard/login", json={"token": "guess"}, headers=lines).status_code

    assert [guess(n) for n in range(12)][-1] == 429


def test_the_right_token_logs_in_however_many_mistakes_were_made(guarded: Guarded) -> None:
    from_there = {"X-Forwarded-For": "10.3.0.4"}
    while log_in(guarded, "guess", **from_there).status_code != 429:
        pass
    for _ in range(3):
        assert log_in(guarded, guarded.holders["reader"].token, **from_there).status_code == 204
        guarded.server.client.cookies.clear()
    assert log_in(guarded, "guess", **from_there).status_code == 429


def test_logging_out_takes_the_cookie_away(guarded: Guarded) -> None:
    answer = guarded.server.client.post("/dashboard/logout", json={})
    assert answer.status_code == 204
    assert answer.headers["set-cookie"] == "audit_stream=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"
    assert guarded.server.client.post("/dashboard/logout").status_code == 415


# --- CORS


@pytest.mark.parametrize("path", ["/healthz", "/stats", "/events/batch", "/dashboard"])
def test_a_page_of_an_allowed_origin_reads_every_answer_and_one_of_another_origin_none(
    guarded: Guarded, path: str
) -> None:
    allowed = guarded.server.get(path, Origin=ORIGIN)
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "WWW-Authenticate" in allowed.headers["access-control-expose-headers"]
    assert "Origin" in allowed.headers["vary"]
    for origin in ("https://evil.example.org", f"{ORIGIN}.evil.org", ORIGIN.replace("https", "http"), "null"):
        other = guarded.server.get(path, Origin=origin)
        assert "access-control-allow-origin" not in other.headers
        assert "Origin" in other.headers["vary"]
    assert "access-control-allow-credentials" not in allowed.headers


def test_a_stream_and_an_append_carry_the_headers_too(guarded: Guarded) -> None:
    headers = {**guarded.holders["everything"].header, "Origin": ORIGIN}
    with guarded.server.client.stream("GET", "/stream", headers=headers) as answer:
        assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert guarded.server.post(EVENT, **headers).headers["access-control-allow-origin"] == ORIGIN


def test_a_preflight_is_answered_without_a_token_for_allowed_origins(guarded: Guarded) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    answer = guarded.server.client.options("/events", headers={"Origin": ORIGIN, **asked})
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    refused = guarded.server.client.options("/events", headers={"Origin": "https://evil.example.org", **asked})
    assert refused.status_code == 401
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize("path", ["/events", "/events/1", "/events/999999", "/stats", "/verify", "/metrics", "/", "/x"])
def test_no_answer_is_taken_for_something_else_than_its_type(guarded: Guarded, path: str, accept: str) -> None:
    answer = guarded.get("everything", path, Accept=accept)
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


# --- what is written down


def test_the_openapi_document_tells_of_tokens_and_refusals(guarded: Guarded) -> None:
    document = guarded.get("reader", "/schema").json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["token"]["type"] == "http"
    assert schemes["token"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            asks = path not in ("/healthz", "/readyz")
            assert ({"token": []} in operation.get("security", [])) is asks
            assert ({"cookie": []} in operation.get("security", [])) is (asks and method == "get")
            assert ({"401", "403", "429"} <= set(operation["responses"])) is asks


def test_tokens_and_payloads_are_never_logged(guarded: Guarded) -> None:
    secret, payload = Holder("stranger", "read").token, "a-payload-nobody-logs"
    everything = guarded.holders["everything"].header
    event = EVENT | {"payload": {"note": payload}}
    guarded.server.get("/stats", Authorization=f"Bearer {secret}")
    guarded.server.get("/stats", Authorization=f"Basic {secret}")
    guarded.server.get("/stats", Cookie=f"audit_stream={secret}")
    guarded.server.get(f"/stats?token={secret}")
    guarded.server.get(f"/stats?token={secret}", **everything)
    log_in(guarded, secret, **{"X-Forwarded-For": "10.4.0.1"})
    log_in(guarded, guarded.holders["reader"].token)
    guarded.server.client.cookies.clear()
    guarded.post("everything", "/events", event).raise_for_status()
    guarded.post("reader", "/events", event)
    guarded.post("a-producer", "/events", event | {"source": "b"})
    guarded.post("everything", "/events", event | {"kind": payload})
    guarded.server.post(b'{"payload":{"note":"%b"' % payload.encode(), **everything)
    guarded.server.post_batch([event, {}], **everything)
    log = Path(guarded.log).read_text()
    assert "was refused: " in log, "the log is at work"
    assert payload not in log
    for token in (secret, *(holder.token for holder in guarded.holders.values())):
        assert token not in log
