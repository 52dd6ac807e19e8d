"""What a server without tokens answers to browsers: for which hosts, and to which pages."""

import http.client
import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from audit_stream.server.door import Hosts
from audit_stream.server.problems import Misdirected
from audit_stream.settings import Settings
from tests.access.conftest import ORIGIN, Guarded
from tests.harness import ServerProcess, running_server

EVENT = {"kind": "other", "source": "a"}
NAMED = "audit.example.org"
APPENDS = [("/events", EVENT), ("/events/batch", [EVENT]), ("/events/", EVENT), ("//events", EVENT)]


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[ServerProcess]:
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": "door", "AUDIT_STREAM_CORS": ORIGIN}
    with running_server(AUDIT_STREAM_HOSTS=NAMED, **settings) as started:
        yield started


def count(server: ServerProcess) -> int:
    return int(server.get("/stats").raise_for_status().json()["count"])


# --- which host


def checked(host: str, **settings: str) -> bool:
    hosts = Hosts(Settings.from_env({"HOST": "audit-1.lan", **settings}))
    for _ in range(2):  # what was found once is remembered, and must not be remembered wrong
        try:
            hosts.check(host.encode())
        except Misdirected:
            assert host.encode() not in hosts.known
            return False
    return True


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8093", "LocalHost:1", "127.0.0.1", "127.0.0.1:8093", "[::1]", "[::1]:8093", "10.1.2.3:80",
     "audit-1.lan", "audit-1.lan:8093", NAMED, f"{NAMED.upper()}:443"],
)  # fmt: skip
def test_a_known_host_is_served(host: str) -> None:
    assert checked(host, AUDIT_STREAM_HOSTS=f"a.example, {NAMED}")


@pytest.mark.parametrize(
    "host",
    ["evil.test", "evil.test:8093", "localhost.evil.test", f"{NAMED}.evil.test", "127.0.0.1.evil.test",
     "localhost@evil", "127.1", "2130706433", "0x7f000001", "[127.0.0.1]", "::1", "[evil]", "localhost:8093:1",
     "localhost.", "é", "x,localhost"],
)  # fmt: skip
def test_any_other_host_is_not(host: str) -> None:
    assert not checked(host, AUDIT_STREAM_HOSTS=f"a.example, {NAMED}")


def test_with_tokens_the_names_are_checked_only_where_some_are_given() -> None:
    assert checked("evil.test", AUDIT_STREAM_TOKENS="f")
    assert not checked("evil.test", AUDIT_STREAM_TOKENS="f", AUDIT_STREAM_HOSTS=NAMED)
    assert checked("evil.test", AUDIT_STREAM_HOSTS="*")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/events"), ("POST", "/events"), ("GET", "/stream"), ("GET", "/dashboard"), ("GET", "/x")],
)
def test_a_request_for_another_host_is_answered_421_and_told_the_setting(
    server: ServerProcess, method: str, path: str
) -> None:
    before = count(server)
    answer = server.client.request(method, path, json=EVENT, headers={"Host": "rebind.test:8093"})
    assert answer.status_code == 421
    assert answer.headers["content-type"] == "application/problem+json"
    assert "'rebind.test:8093'" in answer.json()["detail"]
    assert "AUDIT_STREAM_HOSTS" in answer.json()["detail"]
    assert count(server) == before


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_probe_may_name_any_host(server: ServerProcess, path: str) -> None:
    assert server.get(path, Host="pod-7.audit.svc").status_code == 200


def test_a_client_that_names_no_host_is_not_a_browser_and_is_served(server: ServerProcess) -> None:
    url = server.client.base_url
    connection = http.client.HTTPConnection(url.host, url.port or 0)
    connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]
    connection.request("GET", "/stats")
    assert connection.getresponse().status == 200
    connection.close()


# --- which page


def append(server: ServerProcess, path: str, body: object, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json", **named})


@pytest.mark.parametrize(("path", "body"), APPENDS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Origin": "http://localhost:3000"},
        {"Sec_Fetch_Site": "cross-site", "Origin": "https://evil.example.org"},
        {"Origin": "https://evil.example.org"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": f"{ORIGIN}.evil.org"},
    ],
    ids=str,
)
def test_a_page_of_another_site_does_not_append(
    server: ServerProcess, path: str, body: object, headers: dict[str, str]
) -> None:
    before = count(server)
    answer = append(server, path, body, **headers)
    assert answer.status_code == 403
    assert "AUDIT_STREAM_CORS" in answer.json()["detail"]
    assert count(server) == before


def test_the_server_s_own_page_a_named_origin_and_what_is_not_a_page_append(server: ServerProcess) -> None:
    own = server.url
    assert append(server, "/events", EVENT, Origin=own).status_code == 201
    assert append(server, "/events", EVENT, Origin=own, Sec_Fetch_Site="same-origin").status_code == 201
    assert append(server, "/events", EVENT, Origin=ORIGIN).status_code == 201
    assert append(server, "/events", EVENT, Origin=ORIGIN, Sec_Fetch_Site="cross-site").status_code == 201
    assert append(server, "/events", EVENT, Sec_Fetch_Site="none").status_code == 201
    # A proxy put its own name for this server in the place of the browser's.
    assert append(server, "/events", EVENT, Origin="https://a.example", Sec_Fetch_Site="same-origin").status_code == 201
    # Reading is the browser's own affair: it hands the answer to no page of another origin.
    assert server.get("/stats", Origin="https://evil.example.org").status_code == 200


def test_a_page_of_another_site_logs_nobody_in(guarded: Guarded) -> None:
    body = {"token": guarded.holders["reader"].token}
    answer = append(guarded.server, "/dashboard/login", body, Origin="https://evil.example.org")
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)


# --- what a connection may cost; tests/unit/test_bounded.py has the times


def test_the_server_bounds_the_head_of_a_request(server: ServerProcess) -> None:
    before = count(server)
    with socket.create_connection((server.client.base_url.host, server.client.base_url.port or 0), 30) as connection:
        connection.sendall(b"POST /events HTTP/1.1\r\nHost: localhost\r\n" + b"x: y\r\n" * 20_000)
        with http.client.HTTPResponse(connection) as answer:
            answer.begin()
            assert (answer.status, json.loads(answer.read())["status"]) == (431, 431)
    assert count(server) == before
