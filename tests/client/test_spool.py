"""The spool: events wait in a file while the server is away, and are appended in order, each once."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audit_stream.bus import verify
from audit_stream.client import AuditClient, Event
from audit_stream.client.spool import Spool
from audit_stream.errors import Misconfigured, Refused, Unreachable
from tests.client.clients import append_numbers, event, numbers_in, spooled
from tests.client.front import Behaviour, front_of
from tests.client.spools import NOWHERE, client_of, fill, refused_in
from tests.faults.processes import free_port
from tests.harness import ServerProcess, clean_environ, running_server

# --- away and back


def test_what_was_spooled_is_appended_in_order_and_the_file_is_empty_then(server: ServerProcess, path: Path) -> None:
    fill(path, *range(5))
    with client_of(server.url, path) as client:
        drained = client.drain()
        assert (drained.stored, drained.refused, drained.left, drained.reason) == (5, 0, 0, None)
    assert numbers_in(server) == [0, 1, 2, 3, 4]
    assert path.read_bytes() == b""


def test_a_new_event_goes_behind_what_waits_and_comes_back_with_its_receipt(server: ServerProcess, path: Path) -> None:
    fill(path, 1, 2)
    with client_of(server.url, path) as client:
        receipt = event(client.append("other", "tests", {"n": 3}))
        assert client.check(receipt)
        assert client.get(receipt.event_id) == receipt
        assert event(client.append("other", "tests", {"n": 4})).event_id == 4
    assert numbers_in(server) == [1, 2, 3, 4]


def test_a_spooled_event_keeps_the_time_it_was_handed_in(server: ServerProcess, path: Path) -> None:
    fill(path, 1)
    handed_in = json.loads(path.read_text().splitlines()[1])["timestamp"]
    with client_of(server.url, path) as client:
        client.drain()
        (found,) = client.query()
    assert found.timestamp == handed_in


def test_an_event_whose_answer_was_lost_is_spooled_and_stored_once(server: ServerProcess, path: Path) -> None:
    with front_of(server.url, "cut after") as front, client_of(front.url, path) as client:
        receipt = spooled(client.append("other", "tests", {"n": 1}))
        assert receipt.path == str(path)
        assert "lost" in receipt.reason
        assert client.drain().stored == 1
        assert numbers_in(server) == [1]
        (seen, again) = [json.loads(seen.body)["idempotency_key"] for seen in front.seen]
        assert seen == again == receipt.idempotency_key


def test_one_client_goes_on_through_a_kill_of_the_server_and_its_return(redis_url: str, chain: str, path: Path) -> None:
    port = free_port()
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, "PORT": str(port)}
    with client_of(f"http://127.0.0.1:{port}", path) as client:
        with running_server(**settings) as server:
            event(client.append("other", "tests", {"n": 1}))
            server.stop(signal.SIGKILL)
            for receipt in append_numbers(client, 2, 3):
                spooled(receipt)
        with running_server(**settings) as server:
            assert client.drain().stored == 2
            event(client.append("other", "tests", {"n": 4}))
            assert numbers_in(server) == [1, 2, 3, 4]


def test_a_client_that_is_closed_offers_what_waits_once_more(server: ServerProcess, path: Path) -> None:
    fill(path, 1, 2)
    with client_of(server.url, path):
        pass
    assert numbers_in(server) == [1, 2]


def test_a_spool_larger_than_a_batch_is_drained_to_its_end(server: ServerProcess, path: Path) -> None:
    with client_of(NOWHERE, path) as client:
        client.append_many({"kind": "other", "source": "s", "payload": {"n": n}} for n in range(1_200))
    with client_of(server.url, path) as client:
        assert client.drain().stored == 1_200
    assert numbers_in(server) == list(range(1_200))


def test_a_drain_that_is_interrupted_goes_on_where_it_was(server: ServerProcess, path: Path) -> None:
    with client_of(NOWHERE, path) as client:
        client.append_many({"kind": "other", "source": "s", "payload": {"n": n}} for n in range(700))
    with front_of(server.url, "pass", "cut after", "busy") as front, client_of(front.url, path) as client:
        first, second = client.drain(), client.drain()
        assert (first.stored, first.left) == (500, 200)
        assert (second.stored, second.left, second.reason) == (0, 200, "Redis is away")
        assert client.drain().stored == 200
        assert len(front.seen) == 4
    assert numbers_in(server) == list(range(700))


def test_an_emptied_spool_is_filled_and_drained_again(server: ServerProcess, path: Path) -> None:
    for number in range(3):
        fill(path, number)
        with client_of(server.url, path) as client:
            assert client.drain().stored == 1
    assert numbers_in(server) == [0, 1, 2]


# --- refused


def test_a_refused_event_is_put_aside_with_its_reason_and_blocks_nobody(server: ServerProcess, path: Path) -> None:
    with client_of(NOWHERE, path) as client:
        for n, kind in enumerate(["other", "nonsense", "other", "nonsense", "other"]):
            client.append(kind, "s", {"n": n})
    with client_of(server.url, path) as client:
        drained = client.drain()
    assert (drained.stored, drained.refused, drained.left) == (3, 2, 0)
    assert numbers_in(server) == [0, 2, 4]
    entries = refused_in(path)
    assert [json.loads(entry["event"])["payload"]["n"] for entry in entries] == [1, 3]
    assert all("'nonsense' is not a kind" in entry["reason"] for entry in entries)


def test_a_refusal_that_names_no_event_is_found_by_halving(server: ServerProcess, path: Path) -> None:
    server.post({"kind": "other", "source": "s", "payload": {"n": -1}}, **{"Idempotency-Key": "taken"})
    with client_of(NOWHERE, path) as client:
        for n in range(7):
            client.append("other", "s", {"n": n}, idempotency_key="taken" if n == 4 else None)
    with client_of(server.url, path) as client:
        drained = client.drain()
    assert (drained.stored, drained.refused) == (6, 1)
    assert numbers_in(server) == [-1, 0, 1, 2, 3, 5, 6]
    assert "'taken' was used for an event with other content" in refused_in(path)[0]["reason"]


def test_an_own_event_that_is_refused_while_draining_is_told_as_spooled_and_found_aside(
    server: ServerProcess, path: Path
) -> None:
    fill(path, 1)
    with client_of(server.url, path) as client:
        key = spooled(client.append("nonsense", "s", {"n": 2})).idempotency_key
    assert key in refused_in(path)[0]["event"]


def test_a_wrong_address_puts_nothing_aside(server: ServerProcess, path: Path) -> None:
    fill(path, 1, 2)
    with client_of(f"{server.url}/elsewhere", path) as client:
        drained = client.drain()
        assert (drained.refused, drained.left) == (0, 2)
    assert refused_in(path) == []


@pytest.mark.parametrize("answer", ["401", "403"])
def test_a_token_that_is_refused_puts_nothing_aside(server: ServerProcess, path: Path, answer: Behaviour) -> None:
    fill(path, 1, 2)
    with front_of(server.url, answer) as front, client_of(front.url, path) as client:
        drained = client.drain()
        assert (drained.refused, drained.left, drained.reason) == (0, 2, "this token is refused")
    assert refused_in(path) == []
    assert numbers_in(server) == [1, 2]  # offered once more when the client was closed


def test_what_is_refused_at_once_is_raised_and_not_spooled(server: ServerProcess, path: Path) -> None:
    with client_of(server.url, path) as client, pytest.raises(Refused):
        client.append("nonsense", "s")
    assert path.read_bytes() == b""


def test_a_line_is_put_aside_once_even_if_the_cursor_did_not_move(path: Path) -> None:
    fill(path, 1)
    spool = Spool(path)
    for _ in range(2):
        (line,) = spool.peek(count=1, size_bytes=1)
        spool.refuse(line, "a reason")
        Path(f"{path}.cursor").unlink()
    (entry,) = refused_in(path)
    assert (entry["reason"], json.loads(entry["event"])["payload"]) == ("a reason", {"n": 1})


def test_a_torn_entry_of_what_was_refused_hides_no_neighbour(path: Path) -> None:
    fill(path, 1)
    Path(f"{path}.refused").write_text('{"reas')
    spool = Spool(path)
    spool.refuse(spool.peek(count=1, size_bytes=1)[0], "a reason")
    assert json.loads(Path(f"{path}.refused").read_text().splitlines()[1])["reason"] == "a reason"


# --- several at once


def test_threads_that_share_a_spool_lose_nothing_while_the_server_comes_back(server: ServerProcess, path: Path) -> None:
    away: list[Behaviour] = ["cut before", "cut after"] * 5
    with (
        front_of(server.url, *away) as front,
        client_of(front.url, path) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        receipts = list(threads.map(lambda n: client.append("other", "s", {"n": n}), range(60)))
        while client.drain().left:
            assert len(front.seen) <= len(away)
    assert sorted(numbers_in(server)) == list(range(60))
    assert any(not isinstance(receipt, Event) for receipt in receipts)


def test_only_one_drains_at_a_time(path: Path) -> None:
    fill(path, 1)
    with Spool(path).alone() as first, client_of(NOWHERE, path) as client:
        assert first
        drained = client.drain()
        assert (drained.left, drained.reason) == (1, "another process is draining it")


def test_while_the_server_is_away_it_is_not_asked_at_every_append(server: ServerProcess, path: Path) -> None:
    with front_of(server.url, "busy") as front, client_of(front.url, path) as client:
        append_numbers(client, *range(20))
        # The server asked for 7 s; all but the first go to the disk and wait.
        assert len(front.seen) == 1
        assert client.drain().stored == 20


# --- at start, and when the disk is no help


def test_a_spool_that_cannot_be_written_says_so_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "spool", tmp_path, tmp_path / "file" / "spool"):
        with pytest.raises(Misconfigured, match=r"^spool: .* cannot be written"):
            AuditClient(NOWHERE, spool=path)


@pytest.mark.parametrize("text", ["my thesis\n", "my thesis", '{"a":1}', "\n"])
def test_a_file_that_is_something_else_is_left_as_it_is(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(Misconfigured, match="is not a spool"):
        AuditClient(NOWHERE, spool=path)
    assert {found.name: found.read_text() for found in path.parent.iterdir()} == {path.name: text}


def test_where_there_are_no_file_locks_the_client_works_and_a_spool_says_so(path: Path) -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None; from audit_stream.client import AuditClient;"
        "AuditClient().close(); AuditClient(spool=sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], env=clean_environ(), capture_output=True, text=True, check=False
    )
    assert "Misconfigured: spool: this system has no file locks" in done.stderr


def test_a_damaged_cursor_is_told_at_start_and_what_it_means(path: Path) -> None:
    fill(path, 1)
    Path(f"{path}.cursor").write_text("{")
    with pytest.raises(Misconfigured, match=r"spool\.jsonl\.cursor is damaged"):
        AuditClient(NOWHERE, spool=path)


def test_nobody_else_can_read_what_is_kept(path: Path) -> None:
    fill(path, 1)
    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes


def test_an_event_that_the_disk_does_not_take_is_not_said_to_be_kept(
    server: ServerProcess, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with client_of(NOWHERE, path) as client:
        spooled(client.append("other", "s", {"n": 1}))
        before = path.read_bytes()
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(Unreachable, match="cannot keep the event: No space left on device"):
            client.append("other", "s", {"n": 2})
        monkeypatch.undo()
        assert path.read_bytes() == before


def test_half_a_line_that_a_full_disk_took_is_taken_back(path: Path) -> None:
    with client_of(NOWHERE, path) as client:
        spooled(client.append("other", "s", {"n": 1}))
        before = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))
        try:
            with pytest.raises(Unreachable, match="cannot keep the event"):
                client.append("other", "s", {"n": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before


def test_an_event_that_is_kept_is_not_said_to_be_lost_when_the_drain_fails(server: ServerProcess, path: Path) -> None:
    fill(path, 1)
    with AuditClient(server.url, spool=path, patience_s=0) as client:
        Path(f"{path}.cursor").write_text("{")
        assert "damaged" in spooled(client.append("other", "s", {"n": 2})).reason
        Path(f"{path}.cursor").unlink()
        assert client.drain().stored == 2
    assert numbers_in(server) == [1, 2]


def test_a_copy_of_the_spool_can_be_appended_by_hand(server: ServerProcess, path: Path) -> None:
    fill(path, 1, 2)
    events = [json.loads(line)["message"] for line in path.read_text().splitlines()[1:]]
    assert server.post_batch(events).is_success
    assert numbers_in(server) == [1, 2]


def test_what_waits_can_be_verified_as_any_bus(path: Path) -> None:
    fill(path, 1, 2)
    assert (verify([path]).valid, verify([path]).checked) == (True, 3)
    path.write_bytes(path.read_bytes().replace(b'{"n":1}', b'{"n":7}'))
    assert verify([path]).line == 2


def test_a_line_that_was_changed_is_put_aside_and_blocks_nobody(server: ServerProcess, path: Path) -> None:
    fill(path, 1, 2, 3)
    path.write_bytes(path.read_bytes().replace(b'{"n":2}', b'{"n":7}'))
    with client_of(server.url, path) as client:
        drained = client.drain()
    assert (drained.stored, drained.refused) == (2, 1)
    assert numbers_in(server) == [1, 3]
    assert refused_in(path)[0]["reason"] == "hash mismatch"


def test_two_clients_fill_and_drain_one_spool_in_turn(server: ServerProcess, path: Path) -> None:
    # Both fillings have the same size, so that it alone does not tell them apart.
    with client_of(NOWHERE, path) as away, client_of(server.url, path) as there:
        for number in range(1, 6):
            spooled(away.append("other", "tests", {"n": number}))
            assert verify([path]).valid
            assert there.drain().stored == 1
    assert numbers_in(server) == [1, 2, 3, 4, 5]


# --- a spool of the former format


def former(path: Path, *, settled: int = 0) -> list[bytes]:
    """As audit-stream 0.2.0 has left it: a header, one request a line, and a cursor behind what was appended."""
    header = b'{"audit_stream_spool":1,"id":"0123456789abcdef"}\n'
    lines = [
        b'{"kind":"other","source":"s","payload":{"n":%d},"timestamp":"2026-01-01T00:00:0%dZ","idempotency_key":"k%d"}\n'
        % (number, number, number)
        for number in range(4)
    ]
    path.write_bytes(header + b"".join(lines))
    if settled:
        offset = len(header) + sum(map(len, lines[:settled]))
        cursor = {"filling": header.decode().strip(), "offset": offset}
        Path(f"{path}.cursor").write_text(json.dumps(cursor))
    return lines


def test_a_spool_of_the_former_format_is_drained_from_where_it_was(server: ServerProcess, path: Path) -> None:
    former(path, settled=1)
    with path.open("ab") as file:
        file.write(b'{"kind":"oth')  # a crash cut it short
    with client_of(NOWHERE, path) as client:
        spooled(client.append("other", "tests", {"n": 4}))
    with client_of(server.url, path) as client:
        drained = client.drain()
    assert (drained.stored, drained.refused, drained.left) == (4, 1, 0)
    assert numbers_in(server) == [1, 2, 3, 4]
    assert refused_in(path)[0]["event"] == '{"kind":"oth'
    # Under the keys they had: what had been sent before is not stored twice.
    replay = server.client.post("/events", content=former(path)[2], headers={"Content-Type": "application/json"})
    assert replay.headers["Idempotent-Replayed"] == "true"


def test_a_damaged_cursor_of_the_former_format_is_told_and_nothing_is_changed(path: Path) -> None:
    former(path, settled=1)
    before = path.read_bytes()
    Path(f"{path}.cursor").write_text("{")
    with pytest.raises(Misconfigured, match=r"spool: .*cursor is damaged"):
        AuditClient(NOWHERE, spool=path)
    assert path.read_bytes() == before


def test_without_a_spool_there_is_nothing_to_drain() -> None:
    with AuditClient(NOWHERE) as client, pytest.raises(Misconfigured):
        client.drain()
