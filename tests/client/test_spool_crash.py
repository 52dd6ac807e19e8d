"""Crashes around the spool: what a producer was told is kept is appended, once."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.client.clients import event, numbers_in
from tests.client.front import front_of
from tests.client.spools import NOWHERE, client_of, fill, refused_in
from tests.harness import ROOT, ServerProcess, clean_environ


def test_a_crash_between_the_answer_and_the_cursor_stores_nothing_twice(server: ServerProcess, path: Path) -> None:
    fill(path, *range(10))
    with front_of(server.url, "hang") as front:
        code = (
            "import sys; from audit_stream.client import AuditClient;"
            "AuditClient(sys.argv[1], spool=sys.argv[2]).drain()"
        )
        drainer = subprocess.Popen([sys.executable, "-c", code, front.url, path], env=clean_environ())
        assert front.hanging.wait(60)
        drainer.kill()
        drainer.wait()
    assert numbers_in(server) == list(range(10))
    with client_of(server.url, path) as client:
        assert client.drain().stored == 10
    assert numbers_in(server) == list(range(10))


def test_a_crash_between_the_cursor_and_the_emptying_stores_nothing_twice(server: ServerProcess, path: Path) -> None:
    fill(path, 1, 2)
    full = path.read_bytes()
    with client_of(server.url, path) as client:
        client.drain()
        path.write_bytes(full)
        assert client.drain().stored == 0
        path.write_bytes(full)
        assert event(client.append("other", "tests", {"n": 3})).event_id == 3
    assert numbers_in(server) == [1, 2, 3]


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_torn_last_line_is_put_aside_and_hides_no_neighbour(server: ServerProcess, path: Path, cut: int) -> None:
    fill(path, 1, 2)
    whole = path.read_bytes()
    line = whole.splitlines()[-1].replace(b'"n":2', b'"n":9')
    torn = line[:cut]
    path.write_bytes(whole + torn)
    fill(path, 3)
    with client_of(server.url, path) as client:
        drained = client.drain()
    assert (drained.stored, drained.refused) == (3, 1)
    assert numbers_in(server) == [1, 2, 3]
    assert [entry["event"] for entry in refused_in(path)] == [torn.decode()]


def test_a_last_line_that_lacks_only_its_end_is_an_event(server: ServerProcess, path: Path) -> None:
    fill(path, 1, 2)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    with client_of(server.url, path) as client:
        assert client.drain().stored == 2
    assert numbers_in(server) == [1, 2]


@pytest.mark.parametrize("torn", [b"{", b'{"audit_stream_spool":1,"id":"0', bytes(100)])
def test_a_torn_first_line_is_no_reason_to_refuse_the_file(server: ServerProcess, path: Path, torn: bytes) -> None:
    path.write_bytes(torn)
    fill(path, 1)
    with client_of(server.url, path) as client:
        assert client.drain().stored == 1
    assert numbers_in(server) == [1]


def test_what_a_killed_producer_was_told_is_kept_is_appended_once_and_in_order(
    server: ServerProcess, path: Path
) -> None:
    told: dict[str, int] = defaultdict(int)
    producers = {
        name: subprocess.Popen(
            [sys.executable, "-m", "tests.client.producer", NOWHERE, path, name],
            env=clean_environ(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("left", "right")
    }
    for name, producer in producers.items():
        assert producer.stdout
        for _ in range(40):
            told[name] = int(producer.stdout.readline())
    for name, producer in producers.items():
        producer.kill()
        rest, _ = producer.communicate()
        told[name] = max([told[name], *map(int, rest.split())])
    with client_of(server.url, path) as client:
        assert client.drain().left == 0
        for name, last in told.items():
            found = [found.payload["n"] for found in client.query(source=name)]
            # One more than it was told: the kill came between the disk and the word.
            assert found in (list(range(1, last + 1)), list(range(1, last + 2)))
    assert server.verify()["valid"]
