"""Any bytes at all on the socket: never the server's fault, and it goes on as before."""

import json
import re
import secrets
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from urllib.parse import quote_from_bytes, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzzing import fuzzed
from tests.harness import ServerProcess, running_server

GETS = [b"/", b"/healthz", b"/readyz", b"/events", b"/events/1", b"/stream", b"/verify", b"/stats", b"/schema"]
POSTS = [b"/events", b"/events/batch"]
PARAMETERS = b"kind source since until after before limit named from to deep".split()
HEADERS = b"Idempotency-Key Last-Event-ID Accept Content-Type Content-Encoding Cookie Host Expect Upgrade Range".split()
EVENT = {"kind": "other", "source": "raw", "payload": {"text": "é", "n": [1, 0.5, None]}}


@pytest.fixture(scope="module")
def started(redis_url: str) -> Iterator[ServerProcess]:
    chain = f"raw.{secrets.token_hex(4)}"
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as process:
        yield process


@pytest.fixture
def server(started: ServerProcess) -> Iterator[ServerProcess]:
    """The server; after each test it must answer, append and verify as if nothing had happened."""
    assert started.post(EVENT).status_code == 201
    yield started
    assert started.get("/healthz").json() == {"status": "ok"}
    receipt = started.post(EVENT)
    assert receipt.status_code == 201
    verdict = started.verify()
    assert (verdict["valid"], verdict["indexes"]) == (True, "agree")
    assert verdict["head"]["hash"] == receipt.json()["hash"]


def connect(server: ServerProcess) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port or 0), timeout=30)


def status_of(server: ServerProcess, request: bytes) -> int | None:
    """Send a request that ends; return the status of its whole answer, or None when it was closed on."""
    with connect(server) as connection, HTTPResponse(connection) as response:
        try:
            connection.sendall(request)
            response.begin()
        except ConnectionError:
            return None
        if response.headers.get_content_type() != "text/event-stream":
            response.read()  # raises for an answer that is cut short
        return response.status


def statuses_until_closed(server: ServerProcess, sent: bytes) -> list[int]:
    """Send bytes that may be no request, and nothing more; return what is answered until the server closes."""
    received = b""
    with connect(server) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            pass  # closed with bytes unread: that is an answer, too
    return [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3})", received, re.M)]


def assert_not_the_servers_fault(*statuses: int | None) -> None:
    assert [status for status in statuses if status and status >= 500 and status != 503] == []


def head(method: bytes, target: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join(
        [method + b" " + target + b" HTTP/1.1", b"Host: localhost", b"Connection: close", *lines, b"", b""]
    )


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"


# --- what is sent

raw = st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))
in_url = raw.map(lambda value: quote_from_bytes(value).encode())
in_line = raw.map(lambda value: re.sub(rb"[\r\n\0]", b"", value))
"""Bytes that stay one header value, so that they get past the parser of HTTP."""


def damaged(text: bytes, cut: slice, put: bytes) -> bytes:
    return text[: cut.start] + put + text[cut.stop :]


texts = st.sampled_from(
    [
        json.dumps(EVENT).encode(),
        json.dumps(EVENT, ensure_ascii=False).encode("utf-16"),
        json.dumps([EVENT, EVENT]).encode(),
        b"\n".join([json.dumps(EVENT).encode()] * 2),
    ]
)
cuts = st.tuples(st.integers(0, 90), st.integers(0, 3)).map(lambda cut: slice(cut[0], cut[0] + cut[1]))
bodies = st.binary(max_size=300) | texts | st.builds(damaged, texts, cuts, raw)
media_types = in_line | st.sampled_from(
    [
        b"application/json",
        b"application/json; charset=utf-16",
        b"application/x-ndjson",
        b"application/octet-stream",
        b"multipart/form-data; boundary=x",
        b"",
    ]
)
encodings = st.sampled_from([b"identity", b"gzip", b"br", b"deflate, gzip"]) | in_line


# --- where it is sent


@fuzzed
@given(path=st.sampled_from(POSTS), body=bodies, media_type=media_types, encoding=st.none() | encodings)
def test_no_bytes_in_a_body_are_the_servers_fault(
    server: ServerProcess, path: bytes, body: bytes, media_type: bytes, encoding: bytes | None
) -> None:
    lines = [b"Content-Type: " + media_type, b"Content-Length: %d" % len(body)]
    if encoding is not None:
        lines.append(b"Content-Encoding: " + encoding)
    assert_not_the_servers_fault(status_of(server, head(b"POST", path, *lines) + body))


@fuzzed
@given(path=st.sampled_from(POSTS), parts=st.lists(bodies, max_size=4), media_type=media_types)
def test_no_bytes_in_chunks_are_the_servers_fault(
    server: ServerProcess, path: bytes, parts: list[bytes], media_type: bytes
) -> None:
    lines = head(b"POST", path, b"Content-Type: " + media_type, b"Transfer-Encoding: chunked")
    assert_not_the_servers_fault(status_of(server, lines + chunked(parts)))


lengths = st.integers(-2, 10**20).map(lambda length: b"%d" % length) | raw
framings = st.one_of(
    lengths.map(lambda length: [b"Content-Length: " + length]),
    st.tuples(lengths, lengths).map(lambda two: [b"Content-Length: " + length for length in two]),
    raw.map(lambda coding: [b"Transfer-Encoding: " + coding]),
    lengths.map(lambda length: [b"Transfer-Encoding: chunked", b"Content-Length: " + length]),
    st.just([b"Transfer-Encoding: chunked"]),
    st.just([]),
)


@fuzzed
@example(path=b"/events", lines=[b"Content-Length: " + b"9" * 5000], body=b"")
@given(path=st.sampled_from(POSTS + GETS), lines=framings, body=bodies | st.lists(bodies, max_size=3).map(chunked))
def test_no_lie_about_the_length_is_the_servers_fault(
    server: ServerProcess, path: bytes, lines: list[bytes], body: bytes
) -> None:
    assert_not_the_servers_fault(*statuses_until_closed(server, head(b"POST", path, *lines) + body))


pairs = st.tuples(st.sampled_from(PARAMETERS) | in_url, in_url | st.integers().map(lambda number: b"%d" % number))
queries = st.lists(pairs, max_size=3).map(lambda query: b"&".join(name + b"=" + value for name, value in query))


@fuzzed
@given(path=st.sampled_from(GETS), query=queries | in_line)
def test_no_bytes_in_a_query_are_the_servers_fault(server: ServerProcess, path: bytes, query: bytes) -> None:
    assert_not_the_servers_fault(status_of(server, head(b"GET", path + b"?" + query)))


@fuzzed
@example(above=b"/events/", segment=b"9" * 5000)
@example(above=b"/events/", segment=b"%D9%A1")
@given(above=st.sampled_from([b"/", b"/events/", b"/schema/", b"//", b""]), segment=in_url | in_line)
def test_no_bytes_in_a_path_are_the_servers_fault(server: ServerProcess, above: bytes, segment: bytes) -> None:
    assert_not_the_servers_fault(status_of(server, head(b"GET", above + segment)))


@fuzzed
@given(path=st.sampled_from(GETS), name=st.sampled_from(HEADERS), value=in_line | in_url)
def test_no_bytes_in_a_header_of_a_question_are_the_servers_fault(
    server: ServerProcess, path: bytes, name: bytes, value: bytes
) -> None:
    assert_not_the_servers_fault(status_of(server, head(b"GET", path, name + b": " + value)))


@fuzzed
@given(path=st.sampled_from(POSTS), name=st.sampled_from(HEADERS), value=in_line, number=st.integers(1, 3))
def test_no_bytes_in_a_header_of_an_append_are_the_servers_fault(
    server: ServerProcess, path: bytes, name: bytes, value: bytes, number: int
) -> None:
    body = json.dumps([EVENT] if path == b"/events/batch" else EVENT).encode()
    lines = [name + b": " + value] * number
    assert_not_the_servers_fault(
        status_of(server, head(b"POST", path, *lines, b"Content-Length: %d" % len(body)) + body)
    )


@fuzzed
@given(
    before=st.binary(max_size=200),
    method=st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PRI", b"CONNECT"]) | raw,
    target=st.sampled_from(GETS) | raw,
    after=st.binary(max_size=60),
)
def test_no_bytes_around_a_request_are_the_servers_fault(
    server: ServerProcess, before: bytes, method: bytes, target: bytes, after: bytes
) -> None:
    assert_not_the_servers_fault(*statuses_until_closed(server, before + head(method, target) + after))
    assert_not_the_servers_fault(*statuses_until_closed(server, head(method, target, after) + before))
