"""Starting, refusing to start, and stopping: what operators meet first and last."""

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import redis

from audit_stream.embedded import EmbeddedValkey
from audit_stream.errors import Misconfigured
from audit_stream.settings import Settings
from tests.faults.evidence import FIELDS, check_receipts, check_sound
from tests.faults.processes import endings, free_port, needs_linux, stopped, valkeys_of
from tests.harness import ServerProcess, clean_environ, running_server, serve_command, url_in

STOPPED_WITHIN_S = 5.0
POSTS = 50
HANG_S = 0.3
"""Redis answers this late: a server that does not wait is gone by then, and one that does meets no deadline."""
REFUSED = 2


def body(request: object) -> dict[str, Any]:
    return {"kind": "other", "source": "s", "payload": {"request": request}}


# --- the embedded Valkey


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedded")


@pytest.fixture(scope="module")
def embedded(data_dir: Path) -> Iterator[ServerProcess]:
    """A server on a Valkey of its own."""
    with running_server(AUDIT_STREAM_DATA_DIR=str(data_dir)) as server:
        yield server


@needs_linux
def test_events_are_kept_when_the_server_ends_and_starts_again(tmp_path: Path) -> None:
    settings = {"AUDIT_STREAM_DATA_DIR": str(tmp_path / "data")}
    receipts: list[dict[str, Any]] = []
    for sig in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM):
        with running_server(**settings) as server:
            assert server.get("/events").json() == receipts
            receipts += [server.post(body(n)).json() for n in range(3)]
            check_receipts(check_sound(f"unix://{tmp_path}/data/valkey.sock", "audit"), receipts)
            with endings(valkeys_of(server.pid)) as ending:
                server.stop(sig)
                assert ending.left_after(STOPPED_WITHIN_S) == []


@needs_linux
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_ends_well_and_takes_its_valkey_along(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], sig: signal.Signals
) -> None:
    with running_server(AUDIT_STREAM_DATA_DIR=str(tmp_path)) as server:
        valkeys = valkeys_of(server.pid)
        assert len(valkeys) == 1
        with endings(valkeys) as ending:
            assert server.stop(sig, timeout=STOPPED_WITHIN_S) == 0
            # In good order: Valkey was told to stop and waited for, not left to the kernel.
            assert ending.left_after(0) == []
    assert "bye bye" in (tmp_path / "valkey.log").read_text()
    assert "Traceback" not in capfd.readouterr().err


@needs_linux
def test_the_embedded_valkey_listens_on_its_unix_socket_only(embedded: ServerProcess, data_dir: Path) -> None:
    (valkey,) = valkeys_of(embedded.pid)
    inodes = {str(fd.readlink()).removeprefix("socket:[").rstrip("]") for fd in Path(f"/proc/{valkey}/fd").iterdir()}
    assert not [line for name in ("tcp", "tcp6") for line in _table(valkey, name) if line.split()[9] in inodes]
    assert [line for line in _table(valkey, "unix") if line.endswith(f"{data_dir}/valkey.sock")]


def _table(pid: int, name: str) -> list[str]:
    path = Path(f"/proc/{pid}/net/{name}")
    return path.read_text().splitlines()[1:] if path.exists() else []


def test_a_second_server_on_the_same_data_is_refused_and_told_who_has_them(
    embedded: ServerProcess, data_dir: Path
) -> None:
    refusal = start_that_is_refused(AUDIT_STREAM_DATA_DIR=str(data_dir))
    assert f"{data_dir} is in use by audit-stream process {embedded.pid}" in refusal
    assert "AUDIT_STREAM_DATA_DIR" in refusal
    assert embedded.post(body("one")).status_code == 201


# --- refusals to start


class Starting:
    """A start that is expected to be refused."""

    def __init__(self, **settings: str) -> None:
        self._process = subprocess.Popen(
            serve_command(), env=clean_environ(**settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def refusal(self) -> str:
        try:
            said, complaint = self._process.communicate(timeout=40)
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise
        assert self._process.returncode == REFUSED, (self._process.returncode, complaint)
        assert "http://" not in said
        assert "Traceback" not in complaint
        return complaint


def start_that_is_refused(**settings: str) -> str:
    return Starting(**settings).refusal()


@pytest.fixture(scope="module")
def nowhere() -> Iterator[Starting]:
    """A start that waits for a Redis which is not there; begun early, for it takes its time."""
    starting = Starting(AUDIT_STREAM_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    yield starting
    starting._process.kill()
    starting._process.communicate()


@pytest.fixture(scope="module")
def own_valkey(tmp_path_factory: pytest.TempPathFactory, nowhere: Starting) -> Iterator[EmbeddedValkey]:
    """Ours alone, so that its settings may be changed."""
    with EmbeddedValkey(tmp_path_factory.mktemp("own")) as valkey:
        yield valkey


@contextmanager
def configured(valkey: EmbeddedValkey, **settings: str) -> Iterator[None]:
    names = {name.replace("_", "-"): value for name, value in settings.items()}
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        before: dict[str, str] = {}
        for name in names:
            before |= client.config_get(name)
        try:
            for name, value in names.items():
                client.config_set(name, value)
            yield
        finally:
            for name in reversed(names):
                client.config_set(name, before[name])


SETTINGS_TO_REFUSE = {
    "fsync every second": (
        {"appendfsync": "everysec"},
        ("appendfsync is everysec, should be always", "CONFIG SET appendfsync always"),
    ),
    "neither": (
        {"appendonly": "no", "appendfsync": "everysec"},
        ("CONFIG SET appendonly yes", "CONFIG SET appendfsync always"),
    ),
    "eviction": (
        {"maxmemory": "1gb", "maxmemory_policy": "allkeys-lru"},
        ("maxmemory-policy is allkeys-lru, should be noeviction", "CONFIG SET maxmemory-policy noeviction"),
    ),
}


@pytest.mark.parametrize(("settings", "words"), SETTINGS_TO_REFUSE.values(), ids=SETTINGS_TO_REFUSE.keys())
def test_a_redis_that_cannot_keep_the_promise_is_refused_with_what_to_change(
    own_valkey: EmbeddedValkey, chain: str, settings: dict[str, str], words: Sequence[str]
) -> None:
    with configured(own_valkey, **settings):
        refusal = start_that_is_refused(AUDIT_STREAM_REDIS_URL=own_valkey.url, AUDIT_STREAM_CHAIN=chain)
    assert "AUDIT_STREAM_ACK=fsync" in refusal
    for word in words:
        assert word in refusal


def test_a_weaker_promise_starts_on_a_redis_without_append_only_file(own_valkey: EmbeddedValkey, chain: str) -> None:
    with (
        configured(own_valkey, appendonly="no"),
        running_server(
            AUDIT_STREAM_REDIS_URL=own_valkey.url, AUDIT_STREAM_CHAIN=chain, AUDIT_STREAM_ACK="memory"
        ) as server,
    ):
        assert "a 201 means: memory" in server.ready
        assert server.get("/stats").json()["ack"] == "memory"
        assert server.post(body("one")).status_code == 201
        assert server.get("/readyz").status_code == 200


def test_a_replica_is_refused_and_the_primary_asked_for(own_valkey: EmbeddedValkey, chain: str) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.replicaof("127.0.0.1", 1)
        try:
            refusal = start_that_is_refused(AUDIT_STREAM_REDIS_URL=own_valkey.url, AUDIT_STREAM_CHAIN=chain)
        finally:
            client.replicaof("NO", "ONE")
    assert "role is slave, should be master" in refusal
    assert "AUDIT_STREAM_REDIS_URL" in refusal


def test_a_key_of_another_type_is_refused_by_name(redis_url: str, chain: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{{{chain}}}:events", "no stream")
    refusal = start_that_is_refused(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain)
    assert f"{{{chain}}}:events is a string, not a stream" in refusal
    assert "AUDIT_STREAM_CHAIN" in refusal


@pytest.mark.parametrize("entry", ["2-0", "1-1"])
def test_a_foreign_entry_at_the_end_of_the_stream_is_refused_by_its_id(redis_url: str, chain: str, entry: str) -> None:
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain}
    with redis.Redis.from_url(redis_url) as client:
        fields = (b"2026-05-15T03:14:15Z", b"other", b"s", b"{}", b"0" * 64, b"0" * 64)
        client.xadd(f"{{{chain}}}:events", dict(zip(FIELDS, fields, strict=True)), "1-0")
        client.xadd(f"{{{chain}}}:events", {"not": "ours"}, entry)
    refusal = start_that_is_refused(**settings)
    assert f"{{{chain}}}:events" in refusal
    assert f"entry {entry} is not an event" in refusal


def test_a_port_in_use_is_refused_by_its_number(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refusal = start_that_is_refused(AUDIT_STREAM_REDIS_URL=redis_url, PORT=str(port))
    assert f"127.0.0.1:{port}" in refusal
    assert "PORT" in refusal


BAD_SETTINGS = {
    "PORT": "70000",
    "REDIS_URL": "http://127.0.0.1",
    "AUDIT_STREAM_REDIS_URL": "localhost:6379",
    "AUDIT_STREAM_CHAIN": "a{b}",
    "AUDIT_STREAM_KINDS": "no kind!",
    "AUDIT_STREAM_ACK": "everysec",
    "AUDIT_STREAM_HASHING": "fast",
    "AUDIT_STREAM_MAX_EVENT_BYTES": "12",
    "AUDIT_STREAM_IDEMPOTENCY_TTL": "0",
    "AUDIT_STREAM_AKC": "fsync",
}


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS.items())
def test_a_bad_setting_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(Misconfigured, match=rf"^{name}\b"):
        Settings.from_env({name: value})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AUDIT_STREAM_ACK", "everysec", "'everysec' is no promise; use fsync or memory"),
        ("HOST", "nowhere.invalid", "'nowhere.invalid' is no address of this machine"),
    ],
)
def test_a_server_with_a_bad_setting_does_not_start(tmp_path: Path, name: str, value: str, words: str) -> None:
    refusal = start_that_is_refused(AUDIT_STREAM_DATA_DIR=str(tmp_path / "data"), **{name: value})
    assert f"{name}: {words}" in refusal
    assert not (tmp_path / "data").exists()


def test_a_server_on_a_redis_that_is_not_there_gives_up_and_names_the_setting(nowhere: Starting) -> None:
    refusal = nowhere.refusal()
    assert "Redis is away" in refusal
    assert "AUDIT_STREAM_REDIS_URL" in refusal


# --- serving


def test_64_keep_alive_connections_are_served_at_once(server: ServerProcess) -> None:
    connections, rounds = 64, 4
    meeting = threading.Barrier(connections, timeout=30)
    host, port = server.url.removeprefix("http://").split(":")

    def produce(number: int) -> list[dict[str, Any]]:

        receipts = []
        headers = {"Content-Type": "application/json"}
        with closing(http.client.HTTPConnection(host, int(port), timeout=30)) as connection:
            connection.connect()
            connection.auto_open = 0  # a connection that the server closes is an error, not opened again
            for round_ in range(rounds):
                meeting.wait()  # all of them are connected, now and to the end
                connection.request("POST", "/events", json.dumps(body([number, round_])), headers)
                with connection.getresponse() as answer:
                    receipts.append(json.loads(answer.read()))
                assert answer.status == 201
        return receipts

    with ThreadPoolExecutor(connections) as threads:
        receipts = [receipt for receipts in threads.map(produce, range(connections)) for receipt in receipts]
    assert {receipt["event_id"] for receipt in receipts} == set(range(1, connections * rounds + 1))
    assert server.verify()["valid"]


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
def test_an_ipv6_host_is_served_and_named_as_a_url(redis_url: str, chain: str) -> None:
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, HOST="::1") as server:
        assert server.url.startswith("http://[::1]:")
        assert server.post(body("one")).status_code == 201


# --- stopping


class Posted(NamedTuple):
    request: str
    answer: httpx.Response | None
    """None: the connection ended without an answer."""


class Producers:
    """Clients that post, each over a connection of its own, and keep what they were answered."""

    def __init__(self, server: ServerProcess, stack: ExitStack) -> None:
        self._server = server
        self._threads = stack.enter_context(ThreadPoolExecutor(POSTS))
        self.answers: queue.SimpleQueue[Posted] = queue.SimpleQueue()

    def post_once(self) -> None:
        """Send a post on each connection; returns when all of them are on their way."""
        sent = threading.Barrier(POSTS + 1, timeout=30)
        for number in range(POSTS):
            self._threads.submit(self._post, f"once {number}", sent.wait)
        sent.wait()

    def post_on_and_on(self) -> None:
        """Post until the server is gone."""
        for number in range(POSTS):
            self._threads.submit(self._post_all, number)

    def _post_all(self, number: int) -> None:
        round_ = 0
        while self._post(f"{number} {round_}", lambda: None):
            round_ += 1

    def _post(self, request: str, sent: Callable[[], object]) -> bool:

        content = json.dumps(body(request)).encode()
        host, _, port = self._server.url.removeprefix("http://").partition(":")
        answer = None
        try:
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(
                    b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
                )
                sent()
                with closing(http.client.HTTPResponse(connection)) as raw:
                    raw.begin()
                    answer = httpx.Response(raw.status, content=raw.read())
        except (OSError, http.client.HTTPException):
            pass
        self.answers.put(Posted(request, answer))
        return answer is not None and answer.status_code == 201

    def end(self) -> list[Posted]:
        self._threads.shutdown()
        return [self.answers.get_nowait() for _ in range(self.answers.qsize())]


def check_accounts(redis_url: str, chain: str, posted: Sequence[Posted]) -> int:
    """201 and stored, or neither; only a 503 may leave it in doubt, and says so. Returns how many were accepted."""
    events = check_sound(redis_url, chain)
    held = {json.loads(event.payload)["request"] for event in events}
    assert len(held) == len(events)
    accepted = 0
    for request, answer in posted:
        if answer is not None and answer.status_code == 201:
            check_receipts(events, [answer.json()])
            assert answer.json()["payload"]["request"] == request
            accepted += 1
        elif answer is None or "not known yet" not in answer.text:
            assert request not in held
    assert {found.answer.status_code for found in posted if found.answer} <= {201, 503}
    return accepted


@contextmanager
def server_in_its_own_group(*arguments: str, **settings: str) -> Iterator[ServerProcess]:
    """As a shell starts it, so that a Ctrl-C can be sent to it and all its children, and not to this process."""
    process = subprocess.Popen(
        serve_command(*arguments),
        env=clean_environ(**settings),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    try:
        ready = process.stdout.readline()
        server = ServerProcess(process, url_in(ready), ready)
        with server.client:
            yield server
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def stop_by_sigterm(server: ServerProcess) -> None:
    os.kill(server.pid, signal.SIGTERM)


def stop_by_ctrl_c(server: ServerProcess) -> None:
    os.killpg(server.pid, signal.SIGINT)


def wait_until_it_takes_no_connections(server: ServerProcess) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    deadline = time.monotonic() + STOPPED_WITHIN_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=STOPPED_WITHIN_S).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            pass  # queued, and then not accepted
    raise AssertionError("it still takes connections")


both_ways_to_stop = pytest.mark.parametrize("stop", [stop_by_sigterm, stop_by_ctrl_c])


@needs_linux
@both_ways_to_stop
def test_every_post_under_way_is_answered_before_the_server_stops(
    tmp_path: Path, stop: Callable[[ServerProcess], None]
) -> None:
    with ExitStack() as stack:
        # A Valkey of our own, for it must outlive the server to be asked.
        valkey = stack.enter_context(EmbeddedValkey(tmp_path))
        server = stack.enter_context(server_in_its_own_group(AUDIT_STREAM_REDIS_URL=valkey.url))
        producers = Producers(server, stack)
        with stopped(valkey.pid):
            producers.post_once()
            # This request came after theirs and is answered, so theirs were all read.
            assert server.get("/healthz").status_code == 200
            stop(server)
            wait_until_it_takes_no_connections(server)
            time.sleep(HANG_S)
        server.process.wait(STOPPED_WITHIN_S)
        posted = producers.end()
        for request, answer in posted:
            assert answer is not None, f"{request} was not answered"
            assert answer.status_code == 201 or "not known yet" in answer.text
        check_accounts(valkey.url, "audit", posted)


@needs_linux
@pytest.mark.parametrize(("workers", "stop"), [(1, stop_by_sigterm), (2, stop_by_ctrl_c)])
def test_a_post_is_stored_exactly_when_it_is_answered_while_the_server_stops(
    tmp_path: Path, workers: int, stop: Callable[[ServerProcess], None]
) -> None:
    settings = {"AUDIT_STREAM_DATA_DIR": str(tmp_path)}
    with ExitStack() as stack:
        server = stack.enter_context(server_in_its_own_group("--workers", str(workers), **settings))
        producers = Producers(server, stack)
        producers.post_on_and_on()
        seen = [producers.answers.get(timeout=30) for _ in range(2 * POSTS)]
        stop(server)
        server.process.wait(STOPPED_WITHIN_S)
        posted = seen + producers.end()
        with EmbeddedValkey(tmp_path) as valkey:
            assert check_accounts(valkey.url, "audit", posted) >= 2 * POSTS
