import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from audit_stream.client.sse import Parser
from audit_stream.settings import VARIABLES
from tests.e2e.terminal import Answer, ScriptedServer, command, ids, on_terminal, read_ids, run, running
from tests.harness import ServerProcess, clean_environ, running_server, start_server

NOWHERE = "http://127.0.0.1:1"
NO_REDIS = "redis://127.0.0.1:1/0"


def some_events(count: int, *, first: int = 1) -> list[dict[str, Any]]:
    return [
        {"kind": ("other", "request_denied")[n % 2], "source": f"s{n % 3}", "payload": {"n": n}}
        for n in range(first, first + count)
    ]


def as_lines(events: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def tamper(redis_url: str, chain: str, event_id: int) -> None:
    """Replace the chain by one in which an event's payload is another."""
    client = redis_py.Redis.from_url(redis_url)
    key = f"{{{chain}}}:events"
    entries: Any = client.xrange(key)
    client.delete(key)
    for entry_id, fields in entries:
        if entry_id == b"%d-0" % event_id:
            fields[b"payload"] = b'{"n":0}'
        client.xadd(key, fields, id=entry_id)
    client.close()


# --- help, and starting


def test_help_names_every_command() -> None:
    shown = run("--help").stdout.decode()
    for name in ("serve", "append", "tail", "query", "verify", "export", "import", "stats", "doctor", "reindex"):
        assert re.search(rf"^│ {name} ", shown, re.MULTILINE)


def test_serve_help_shows_every_setting_with_its_default_and_meaning() -> None:
    shown = " ".join(run("serve", "--help", TERMINAL_WIDTH="250").stdout.decode().replace("│", " ").split())
    for name, variable in VARIABLES.items():
        assert re.search(rf"\b{name}\b", shown), name
        if variable.default:
            assert variable.help in shown
            assert re.search(rf"{name}( or \w+)?, default: {re.escape(variable.default)}", shown), name


def test_help_loads_neither_the_server_nor_a_client() -> None:
    heavy = "{'httpx', 'redis', 'litestar', 'uvicorn'}"
    code = f"import sys, audit_stream.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=clean_environ(), capture_output=True, check=True)
    assert done.stdout == b"set()\n"


def test_the_version_is_shown() -> None:
    from audit_stream import __version__

    assert run("--version").stdout.decode() == f"audit-stream {__version__}\n"


def test_a_wrong_flag_is_named_with_exit_code_2_and_no_traceback() -> None:
    done = run("serve", "--ack", "maybe")
    assert done.returncode == 2
    assert b"--ack: 'maybe' is no promise" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_wrong_variable_is_named_with_exit_code_2() -> None:
    done = run("serve", AUDIT_STREAM_ACK="maybe")
    assert done.returncode == 2
    assert b"AUDIT_STREAM_ACK: 'maybe' is no promise" in done.stderr


def test_an_unknown_option_is_one_line_with_exit_code_2() -> None:
    done = run("query", "--nonsense")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"--nonsense" in done.stderr


def test_a_flag_overrides_the_environment(redis_url: str, chain: str) -> None:
    environ = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": f"{chain}.not", "AUDIT_STREAM_ACK": "fsync"}
    with running_server("--chain", chain, "--ack", "memory", **environ) as server:
        stats = server.get("/stats").json()
    assert (stats["chain"], stats["ack"]) == (chain, "memory")


def test_audit_stream_alone_serves_until_sigterm_and_ends_with_0(redis_url: str, chain: str) -> None:
    environ = clean_environ(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain)
    with subprocess.Popen(command(), env=environ, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert b"http://127.0.0.1:" in process.stdout.readline()
        process.terminate()
        assert process.wait(30) == 0


def test_an_embedded_valkey_is_stopped_with_its_server(tmp_path: Path) -> None:
    server = start_server(AUDIT_STREAM_DATA_DIR=str(tmp_path))
    server.client.close()
    assert server.stop() == 0
    assert server.process.stdout
    server.process.stdout.close()
    # Valkey removes its socket when it ends in good order, not when it is killed.
    assert not (tmp_path / "valkey.sock").exists()


# --- append


def test_append_prints_the_event_as_the_server_answered_it(server: ServerProcess) -> None:
    done = run("append", "--kind", "other", "--source", "me", "--payload", '{"ü": 1.50}', url=server.url)
    assert done.returncode == 0
    assert done.stdout == server.get("/events/1").content + b"\n"
    assert json.loads(done.stdout)["payload"] == {"ü": 1.5}


def test_the_payload_can_come_from_a_file_or_from_standard_input(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"from": "file"}')
    flags = ("append", "--kind", "other", "--source", "me", "--payload")
    from_file = run(*flags, f"@{tmp_path / 'p.json'}", url=server.url)
    from_stdin = run(*flags, "-", url=server.url, stdin=b'{"from": "stdin"}')
    assert json.loads(from_file.stdout)["payload"] == {"from": "file"}
    assert json.loads(from_stdin.stdout)["payload"] == {"from": "stdin"}


@pytest.mark.parametrize("payload", ['{"a":', '{},"kind":"request_denied"', "@/no/such/file"])
def test_a_payload_that_is_not_json_is_refused_before_it_is_sent(server: ServerProcess, payload: str) -> None:
    done = run("append", "--kind", "other", "--source", "me", "--payload", payload, url=server.url)
    assert done.returncode == 2
    assert b"--payload" in done.stderr
    assert server.get("/stats").json()["count"] == 0


def test_the_flag_with_the_bad_payload_is_named_once() -> None:
    said = run("append", "--kind", "other", "--source", "me", "--payload", "{", url=NOWHERE).stderr.decode()
    assert said.startswith("audit-stream: --payload: it is not JSON: ")
    assert said.count("--payload") == 1


def test_the_same_idempotency_key_gives_the_same_receipt(server: ServerProcess) -> None:
    flags = ("append", "--kind", "other", "--source", "me", "--idempotency-key", "schlüssel 1")
    first, second = run(*flags, url=server.url), run(*flags, url=f"{server.url}/")
    assert first.returncode == second.returncode == 0
    assert first.stdout == second.stdout


def test_an_unknown_kind_is_refused_in_the_words_of_the_server(server: ServerProcess) -> None:
    done = run("append", "--kind", "nonsense", "--source", "me", url=server.url)
    assert done.returncode == 1
    assert b"'nonsense' is not a kind" in done.stderr
    assert done.stdout == b""


def test_lines_are_appended_in_order_and_blank_ones_skipped(server: ServerProcess) -> None:
    lines = as_lines(some_events(1203)).replace(b"\n", b"\n\n", 5).removesuffix(b"\n")
    done = run("append", url=server.url, stdin=lines)
    assert done.returncode == 0
    assert ids(done.stdout) == list(range(1, 1204))
    assert done.stdout == run("query", "--limit", "2000", url=server.url).stdout
    assert [json.loads(line)["payload"]["n"] for line in done.stdout.splitlines()] == list(range(1, 1204))


def test_a_bad_line_is_named_by_its_number_and_the_batches_before_it_stay(server: ServerProcess) -> None:
    lines = as_lines(some_events(900)).splitlines()
    lines.insert(3, b"")
    lines[699] = b'{"kind": "nonsense", "source": "s"}'
    done = run("append", url=server.url, stdin=b"\n".join(lines))
    assert done.returncode == 1
    assert b"line 700: kind: 'nonsense' is not a kind" in done.stderr
    assert b"500 events were written before, and nothing from line 502 on: correct the line and send" in done.stderr
    assert ids(done.stdout) == list(range(1, 501))
    assert server.get("/stats").json()["count"] == 500


def test_a_line_that_is_not_json_is_named_by_its_number(server: ServerProcess) -> None:
    done = run("append", url=server.url, stdin=as_lines(some_events(2)) + b"{oops\n")
    assert done.returncode == 1
    assert b"line 3: " in done.stderr
    assert server.get("/stats").json()["count"] == 0


def test_lines_are_sent_when_the_input_pauses(server: ServerProcess) -> None:
    with running("append", url=server.url) as process:
        assert process.stdin
        for n in (1, 2):
            process.stdin.write(as_lines(some_events(1)))
            process.stdin.flush()
            assert read_ids(process, 1) == [n]
        process.stdin.close()
        assert process.wait(30) == 0


def test_large_lines_are_sent_in_batches_that_the_server_takes(server: ServerProcess) -> None:
    event = {"kind": "other", "source": "s", "payload": {"x": "x" * 200_000}}
    done = run("append", url=server.url, stdin=as_lines([event] * 30))
    assert done.returncode == 0, done.stderr
    assert server.get("/stats").json()["count"] == 30


def test_append_without_a_server_says_what_to_do() -> None:
    done = run("append", "--kind", "other", "--source", "me", url=NOWHERE)
    assert done.returncode == 1
    assert b"no server at http://127.0.0.1:1" in done.stderr
    assert b"--url" in done.stderr
    assert b"Traceback" not in done.stderr


# --- query


def test_query_follows_the_pages_to_the_limit(server: ServerProcess) -> None:
    for first in (1, 1501):
        server.post_batch(some_events(1500, first=first)).raise_for_status()
    assert ids(run("query", "--limit", "2100", url=server.url).stdout) == list(range(901, 3001))
    assert ids(run("query", "--after", "5", "--limit", "1500", url=server.url).stdout) == list(range(6, 1506))
    of_a_kind = run("query", "--kind", "other", "--limit", "5000", url=server.url)
    assert ids(of_a_kind.stdout) == list(range(2, 3001, 2))
    both = run("query", "--source", "s1", "--kind", "other", "--before", "100", "--limit", "3", url=server.url)
    assert ids(both.stdout) == [82, 88, 94]


def test_a_filter_that_the_server_refuses_ends_with_1(server: ServerProcess) -> None:
    done = run("query", "--kind", "nonsense", url=server.url)
    assert done.returncode == 1
    assert b"'nonsense' is not a kind" in done.stderr


def test_a_reader_that_has_seen_enough_of_a_query_ends_it_quietly(server: ServerProcess) -> None:
    events = [{"kind": "other", "source": "s", "payload": {"x": "x" * 2000}}] * 1000
    server.post_batch(events).raise_for_status()
    with running("query", url=server.url) as process:
        assert process.stdout
        assert process.stderr
        assert read_ids(process, 1) == [1]
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


# --- tail


def test_tail_shows_the_same_lines_as_query(server: ServerProcess) -> None:
    server.post_batch(some_events(20)).raise_for_status()
    assert run("tail", "--from-start", "--limit", "20", url=server.url).stdout == run("query", url=server.url).stdout
    after = run("tail", "--after", "4", "--kind", "other", "--source", "s2", "--limit", "2", url=server.url)
    assert ids(after.stdout) == [8, 14]


def until_subscribed(server: ServerProcess) -> None:
    deadline = time.monotonic() + 30
    while not server.get("/stats").json()["subscribers"]:
        assert time.monotonic() < deadline


def test_tail_begins_with_what_comes_next(server: ServerProcess) -> None:
    server.post_batch(some_events(3)).raise_for_status()
    with running("tail", url=server.url) as process:
        until_subscribed(server)
        server.post(some_events(1)[0]).raise_for_status()
        assert read_ids(process, 1) == [4]


def test_ctrl_c_ends_tail_with_0_and_no_traceback(server: ServerProcess) -> None:
    with running("tail", url=server.url) as process:
        until_subscribed(server)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr
        assert process.stderr.read() == b""


def test_tail_ends_with_its_reader_before_another_event_comes(server: ServerProcess) -> None:
    server.post(some_events(1)[0]).raise_for_status()
    with running("tail", "--from-start", url=server.url) as process:
        assert process.stdout
        assert process.stderr
        assert read_ids(process, 1) == [1]
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


def test_tail_survives_a_restart_without_gap_or_duplicate(redis_url: str, chain: str) -> None:
    environ = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain}
    with ExitStack() as ends:
        with running_server(**environ) as server:
            server.post_batch(some_events(3)).raise_for_status()
            process = ends.enter_context(running("tail", "--from-start", url=server.url))
            assert read_ids(process, 3) == [1, 2, 3]
        with running_server(**environ) as elsewhere:
            elsewhere.post_batch(some_events(4)).raise_for_status()
        with running_server("--port", server.url.rpartition(":")[2], **environ) as server:
            assert read_ids(process, 4) == [4, 5, 6, 7]
            server.post_batch(some_events(2)).raise_for_status()
            assert read_ids(process, 2) == [8, 9]
            # What came twice would stand before this one.
            server.post(some_events(1)[0]).raise_for_status()
            assert read_ids(process, 1) == [10]


def frame(event_id: int) -> bytes:
    return b'event: other\nid: %d\ndata: {"event_id":%d}\n\n' % (event_id, event_id)


SSE = "text/event-stream"


def test_tail_waits_as_it_is_told_and_resumes_after_the_last_id() -> None:
    answers = [
        Answer(b"retry: 20\n\n" + frame(8) + frame(9) + b'id: 10\ndata: {"event_', type_=SSE),
        Answer(b"", status=503, Retry_After="1"),
        Answer(frame(9) + frame(10) + b"id: 15\n\n", type_=SSE),
        Answer(frame(16), type_=SSE),
    ]
    with ScriptedServer(answers) as server:
        done = run("tail", "--after", "7", "--limit", "4", url=server.url)
    assert done.returncode == 0, done.stderr
    assert ids(done.stdout) == [8, 9, 10, 16]
    assert [asked.headers["last-event-id"] for asked in server.asked] == ["7", "9", "9", "15"]
    assert b"the server ended the stream; trying again, after event #9\n" in done.stderr
    assert b"connected again, after event #9\n" in done.stderr
    assert server.asked[2].at - server.asked[1].at >= 1


def test_tail_ends_with_1_for_an_error_that_waiting_does_not_fix(server: ServerProcess) -> None:
    done = run("tail", "--after", "1000", url=server.url)
    assert done.returncode == 1
    assert b"the cursor #1000 is ahead of the chain" in done.stderr
    done = run("tail", "--kind", "nonsense", url=server.url)
    assert done.returncode == 1
    assert b"'nonsense' is not a kind" in done.stderr


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_frames_are_the_same_wherever_the_bytes_are_cut(newline: bytes) -> None:
    text = (
        b"\xef\xbb\xbfretry: 1500\n: a comment\n\n"
        b"event: other\nid: 1\ndata: one\ndata:two\nunknown: x\n\n"
        b"id: 2\0\ndata: same id\n\n"
        b"id: 7\n\n"
        b"data\n\n"
        b"data: last\nid: 8\n\n: not cut\n"
        b"id: 9\ndata: not ended\n"
    ).replace(b"\n", newline)
    expected = [(b"1", b"one\ntwo"), (b"1", b"same id"), (b"8", b"last")]
    for size in range(1, len(text) + 1):
        parser = Parser()
        frames = [f for at in range(0, len(text), size) for f in parser.feed(text[at : at + size])]
        assert frames == expected, size
        assert (parser.last_id, parser.retry_ms) == (b"8", 1500)


# --- verify


def by_url_or_redis(how: str, server: ServerProcess, redis_url: str, chain: str) -> tuple[str, ...]:
    return ("--url", server.url) if how == "url" else ("--redis-url", redis_url, "--chain", chain)


@pytest.mark.parametrize("how", ["url", "redis"])
def test_verify_ends_with_0_on_an_intact_chain_and_tells_its_head(
    server: ServerProcess, redis_url: str, chain: str, how: str
) -> None:
    receipts = server.post_batch(some_events(50)).json()
    done = run("verify", *by_url_or_redis(how, server, redis_url, chain))
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert (verdict["valid"], verdict["checked"], verdict["indexes"]) == (True, 50, "agree")
    assert verdict["head"] == {"event_id": 50, "hash": receipts[-1]["hash"]}


@pytest.mark.parametrize("how", ["url", "redis"])
def test_verify_ends_with_1_on_a_tampered_chain_and_names_the_break(
    server: ServerProcess, redis_url: str, chain: str, how: str
) -> None:
    server.post_batch(some_events(10)).raise_for_status()
    tamper(redis_url, chain, 6)
    flags = by_url_or_redis(how, server, redis_url, chain)
    done = run("verify", *flags)
    assert done.returncode == 1
    verdict = json.loads(done.stdout)
    assert (verdict["first_break_at"], verdict["reason"]) == (6, "hash mismatch at event #6")
    assert run("verify", "--to", "5", *flags).returncode == 0
    assert run("verify", "--from", "7", *flags).returncode == 0


@pytest.mark.parametrize("flags", [("--url", NOWHERE), ("--redis-url", NO_REDIS), ("--url", "nonsense")])
def test_verify_ends_with_2_when_nothing_answers(flags: tuple[str, ...]) -> None:
    done = run("verify", *flags)
    assert done.returncode == 2
    assert b"cannot tell: " in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize("how", ["url", "redis"])
def test_verify_ends_with_2_when_it_is_refused(server: ServerProcess, redis_url: str, chain: str, how: str) -> None:
    done = run("verify", "--from", "99", *by_url_or_redis(how, server, redis_url, chain))
    assert done.returncode == 2
    assert b"cannot tell: " in done.stderr
    assert b"Traceback" not in done.stderr
    if how == "redis":
        assert b"from: the chain ends at event #0" in done.stderr


@pytest.mark.parametrize(
    "answer", [b"", b"hello", b"[]", b'{"valid":false}\n', b'{"checked":1,"expected":9}\n', b'{"checked":1}\n']
)
def test_an_answer_that_is_no_verdict_is_never_taken_for_one(answer: bytes) -> None:
    with ScriptedServer([Answer(answer)]) as server:
        done = run("verify", url=server.url)
    assert done.returncode == 2
    assert b"cannot tell" in done.stderr


@pytest.mark.parametrize("how", ["url", "redis"])
def test_a_checkpoint_contradicts_a_chain_that_was_written_anew(
    server: ServerProcess, redis_url: str, chain: str, how: str
) -> None:
    kept = server.post_batch(some_events(5)).json()[2]
    flags = by_url_or_redis(how, server, redis_url, chain)
    holds = run("verify", "--checkpoint", f"3:{kept['hash']}", *flags)
    assert holds.returncode == 0
    assert json.loads(holds.stdout)["checkpoint"]["holds"] is True
    other = run("verify", "--checkpoint", f"4:{kept['hash']}", *flags)
    assert (other.returncode, json.loads(other.stdout)["valid"]) == (1, True)
    assert "event #4 is not the pinned one" in json.loads(other.stdout)["checkpoint"]["reason"]
    absent = run("verify", "--checkpoint", f"6:{kept['hash']}", *flags)
    assert absent.returncode == 1
    assert "chain is shorter than the pinned head" in json.loads(absent.stdout)["checkpoint"]["reason"]


def test_a_misspelt_checkpoint_is_refused(server: ServerProcess) -> None:
    assert run("verify", "--checkpoint", "3:abc", url=server.url).returncode == 2


# --- stats and doctor


def test_stats_in_a_pipe_is_the_servers_answer(server: ServerProcess) -> None:
    server.post_batch(some_events(3)).raise_for_status()
    assert json.loads(run("stats", url=server.url).stdout) == server.get("/stats").json()


def test_doctor_finds_nothing_wrong_with_a_server_or_a_redis_that_keeps_the_promise(
    server: ServerProcess, redis_url: str, chain: str
) -> None:
    head = server.post_batch(some_events(3)).json()[-1]
    for flags in (("--url", server.url), ("--redis-url", redis_url, "--chain", chain)):
        done = run("doctor", *flags)
        assert done.returncode == 0, done.stdout
        found = {check["name"]: check["found"] for check in json.loads(done.stdout)["checks"]}
        assert found["head"] == f"#3 {head['hash']}"


def test_doctor_says_what_falls_short_and_how_to_mend_it(redis_url: str, chain: str) -> None:
    done = run("doctor", "--redis-url", redis_url, "--chain", chain, "--ack", "fsync,replicas=3")
    assert done.returncode == 1
    (short,) = [check for check in json.loads(done.stdout)["checks"] if not check["fine"]]
    assert (short["name"], short["wanted"]) == ("replicas", "3 or more")
    assert "REPLICAOF" in short["mend"]


def test_doctor_notices_a_key_that_is_no_chain(redis_url: str, chain: str) -> None:
    client = redis_py.Redis.from_url(redis_url)
    client.set(f"{{{chain}}}:events", "hello", ex=600)
    client.close()
    done = run("doctor", "--redis-url", redis_url, "--chain", chain)
    assert done.returncode == 1
    assert b"a string" in done.stdout


@pytest.mark.parametrize("flags", [("--url", NOWHERE), ("--redis-url", NO_REDIS)])
def test_doctor_ends_with_2_when_nothing_answers(flags: tuple[str, ...]) -> None:
    done = run("doctor", *flags)
    assert done.returncode == 2
    assert b"cannot tell: " in done.stderr
    assert b"Traceback" not in done.stderr


def test_two_places_to_look_at_are_one_too_many() -> None:
    for name in ("doctor", "verify"):
        done = run(name, "--url", NOWHERE, "--redis-url", NO_REDIS)
        assert done.returncode == 2
        assert b"Choose one of --url and --redis-url" in done.stderr


# --- on a terminal


@pytest.mark.parametrize("name", ["query", "tail"])
def test_no_line_is_longer_than_the_terminal_is_wide(server: ServerProcess, name: str) -> None:
    long = {"kind": "tool_invocation_required_approval", "source": "s" * 200, "payload": {"x": "ü" * 500}}
    server.post_batch([*some_events(3), long]).raise_for_status()
    flags = ("--from-start", "--limit", "4") if name == "tail" else ()
    for width in (80, 120):
        code, shown = on_terminal(name, *flags, url=server.url, width=width)
        assert code == 0
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
        assert sum("#" in line for line in lines) == 4
        assert max(map(len, lines)) <= width


def test_what_producers_write_never_commands_the_terminal(server: ServerProcess) -> None:
    evil = "\x1b]0;owned\x07\u202e[bold]\r\n"
    server.post({"kind": "other", "source": evil, "payload": {evil: evil}}).raise_for_status()
    for flags in (("query",), ("tail", "--from-start", "--limit", "1")):
        _, shown = on_terminal(*flags, url=server.url, width=200)
        assert "\x1b]" not in shown
        assert "\x07" not in shown
        assert "\u202e" not in shown
        assert "\\x1b]0;owned\\x07\\u202e[bold]\\r\\n" in shown


def test_a_person_is_told_the_verdict_in_words(server: ServerProcess, redis_url: str, chain: str) -> None:
    hash_ = server.post_batch(some_events(10)).json()[-1]["hash"]
    code, shown = on_terminal("verify", url=server.url)
    assert code == 0
    assert "intact" in shown
    assert f"--expect 10:{hash_}" in shown
    tamper(redis_url, chain, 6)
    code, shown = on_terminal("verify", url=server.url)
    assert code == 1
    assert "broken at event #6" in shown


def test_stats_and_doctor_are_shown_whole_on_a_terminal(server: ServerProcess, redis_url: str, chain: str) -> None:
    hash_ = server.post_batch(some_events(2)).json()[-1]["hash"]
    for flags in (("stats",), ("doctor",), ("doctor", "--redis-url", redis_url, "--chain", chain)):
        code, shown = on_terminal(*flags, url=server.url)
        assert code == 0
        assert hash_ in shown


def test_a_break_that_is_known_is_told_by_stats_and_doctor_at_any_width(
    server: ServerProcess, redis_url: str, chain: str
) -> None:
    hash_ = server.post_batch(some_events(8)).json()[-1]["hash"]
    doctors = (("doctor",), ("doctor", "--redis-url", redis_url, "--chain", chain))
    _, shown = on_terminal("doctor", url=server.url)
    assert "! " in shown
    assert "never verified" in shown
    tamper(redis_url, chain, 6)
    assert server.verify()["first_break_at"] == 6
    for width in (60, 80, 120):
        code, shown = on_terminal("stats", url=server.url, width=width)
        assert code == 0
        plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
        lines = plain.splitlines()
        assert lines[0].startswith("last verdict  BROKEN at #6, found just now")
        assert "31m" in shown.splitlines()[0]  # red
        assert "hash mismatch at event #6" in " ".join(plain.split())
        assert "…" not in plain
        assert hash_ in plain
        assert [line for line in lines if len(line) > width and hash_ not in line] == []
    for flags in doctors:
        code, shown = on_terminal(*flags, url=server.url)
        assert code == 1
        plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
        assert re.search(r"✗ last verdict +BROKEN at #6, found just now", plain)
        assert "hash mismatch at event #6" in plain


def test_json_is_to_be_had_on_a_terminal_as_well(server: ServerProcess) -> None:
    server.post(some_events(1)[0]).raise_for_status()
    _, shown = on_terminal("query", "--json", url=server.url)
    assert shown.encode().rstrip() == server.get("/events/1").content


# --- reindex


def test_reindex_repairs_the_indexes_while_a_writer_appends(server: ServerProcess, redis_url: str, chain: str) -> None:
    for first in (1, 1001, 2001):
        server.post_batch(some_events(1000, first=first)).raise_for_status()
    client = redis_py.Redis.from_url(redis_url)
    client.xdel(f"{{{chain}}}:kind:other", "2-0", "1000-0", "3000-0")
    client.delete(f"{{{chain}}}:source:s1")
    assert not server.verify()["valid"]

    done, failed, written = threading.Event(), list[str](), threading.Event()

    def write() -> None:
        while not done.is_set():
            answer = server.post(some_events(1)[0])
            if answer.status_code != 201:
                failed.append(answer.text)
            written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(30)
        at_start = server.get("/stats").json()["count"]
        reindexed = run("reindex", "--yes", "--redis-url", redis_url, "--chain", chain)
    finally:
        done.set()
        writer.join()
    assert reindexed.returncode == 0, reindexed.stderr
    assert failed == []
    verdict = server.verify()
    assert (verdict["valid"], verdict["indexes"]) == (True, "agree"), verdict
    assert verdict["checked"] > at_start
    assert at_start <= json.loads(reindexed.stdout)["events"] <= verdict["checked"]
    assert list(client.scan_iter(f"{{{chain}}}:rebuilt:*", count=10_000)) == []
    client.close()


def test_reindex_wants_a_yes(server: ServerProcess, redis_url: str, chain: str) -> None:
    server.post_batch(some_events(3)).raise_for_status()
    client = redis_py.Redis.from_url(redis_url)
    key = f"{{{chain}}}:kind:other"
    client.delete(key)
    flags = ("reindex", "--redis-url", redis_url, "--chain", chain)
    refused = run(*flags)
    assert refused.returncode == 2
    assert b"--yes" in refused.stderr
    code, shown = on_terminal(*flags, typed=b"n\n")
    assert code != 0
    assert f"Replace the indexes of chain '{chain}'?" in shown
    assert not client.exists(key)
    code, shown = on_terminal(*flags, typed=b"y\n")
    assert code == 0, shown
    assert client.exists(key)
    client.close()
