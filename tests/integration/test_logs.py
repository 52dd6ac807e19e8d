"""What stands in the log, in which form, and what never does."""

import io
import json
import logging
import re
import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from audit_stream import __version__
from audit_stream.server.logs import set_up_logs
from audit_stream.server.requests import current_request
from audit_stream.settings import LogForm
from tests.harness import ROOT, clean_environ, running_server, serve_command, url_in

SECRET = "s3cr3t-9f2a"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as pytest had it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:], root.level = handlers, level


def logged(form: LogForm, stream: io.StringIO) -> str:
    """What one line of each sort looks like."""
    set_up_logs(form, "warning", stream)
    payload = SECRET
    try:
        raise RuntimeError("of ours")
    except RuntimeError:
        logging.getLogger("audit_stream.x").exception("it %s", "failed", extra={"event_id": 7})
    logging.getLogger("uvicorn.error").warning("from %r", "the\x1b[2J server")
    logging.getLogger("redis").warning("\x1b[2Jmoved")
    logging.getLogger("audit_stream.x").info("not told")
    assert payload == SECRET
    return stream.getvalue()


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(("form", "stream"), [("auto", io.StringIO()), ("json", Terminal())])
def test_a_log_for_machines_is_one_json_object_a_line(form: LogForm, stream: io.StringIO) -> None:
    token = current_request.set(b"r-1")
    text = logged(form, stream)
    current_request.reset(token)
    ours, uvicorn, of_redis = map(json.loads, text.splitlines())
    assert (ours["event"], ours["level"], ours["logger"], ours["event_id"]) == (
        "it failed",
        "error",
        "audit_stream.x",
        7,
    )
    assert "RuntimeError: of ours" in ours["exception"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", ours["timestamp"])
    assert {line["request_id"] for line in (ours, uvicorn, of_redis)} == {"r-1"}
    assert (uvicorn["logger"], of_redis["event"]) == ("uvicorn.error", "\x1b[2Jmoved")
    assert SECRET not in text


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(("form", "stream"), [("auto", Terminal()), ("text", io.StringIO())])
def test_a_log_for_people_is_text_that_cannot_move_their_cursor(form: LogForm, stream: io.StringIO) -> None:
    text = logged(form, stream)
    plain = re.sub(r"\x1b\[\d*(;\d+)*m", "", text)
    assert "it failed" in plain
    assert "RuntimeError: of ours" in plain
    assert "\x1b" not in plain
    assert r"\x1b[2Jmoved" in plain
    assert SECRET not in plain
    assert "not told" not in plain
    with pytest.raises(json.JSONDecodeError):
        json.loads(plain.splitlines()[0])


def answered(url: str) -> dict[str, httpx.Response]:
    body = {"kind": "other", "source": "s", "payload": {"password": SECRET}}
    headers = {"Authorization": f"Bearer {SECRET}", "Cookie": SECRET}
    with httpx.Client(base_url=url, headers=headers) as client:
        return {
            "appended": client.post("/events", json=body, headers={"X-Request-ID": "mine-1"}),
            "refused": client.post("/events", json={**body, "kind": SECRET}, headers={"X-Request-ID": "x" * 128}),
            "batch": client.post("/events/batch", content=b"[{" + SECRET.encode()),
            "read": client.get(f"/events?source={SECRET}", headers={"X-Request-ID": "of mine"}),
            "too long": client.get("/healthz", headers={"X-Request-ID": "x" * 129}),
            "missing": client.get("/nowhere%0A%1b[2J/x", headers={"X-Request-ID": "mine-2"}),
        }


@pytest.fixture(scope="module")
def told(redis_url: str) -> dict[str, Any]:
    """What a server logs of these requests, and the ids that it answered with."""
    chain = f"logs.{secrets.token_hex(4)}"
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, "AUDIT_STREAM_PIN": "off"}
    process = subprocess.Popen(
        serve_command("--log-level", "info"),
        env=clean_environ(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        started = process.stdout.readline()
        answers = answered(url_in(started))
    finally:
        process.terminate()
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    lines = [json.loads(line) for line in stderr.splitlines()]
    return {"answers": answers, "text": stderr, "lines": lines, "started": started, "pid": process.pid}


def test_the_line_of_the_start_has_the_form_of_the_log(told: dict[str, Any], redis_url: str, chain: str) -> None:
    line = json.loads(told["started"])
    assert list(line) == ["event", "level", "logger", "url", "timestamp", "pid"]
    assert line["url"].startswith("http://127.0.0.1:")
    assert line["event"].startswith(f"audit-stream {__version__} on {line['url']} · chain 'logs.")
    assert (line["level"], line["logger"], line["pid"]) == ("info", "audit_stream.server.run", told["pid"])
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, AUDIT_STREAM_LOG="text") as server:
        assert server.ready.startswith(f"audit-stream {__version__} on {server.url} · chain '{chain}'")


def test_a_request_id_that_is_sane_is_taken_over_and_any_other_is_made(told: dict[str, Any]) -> None:
    ids = {name: answer.headers.get_list("x-request-id") for name, answer in told["answers"].items()}
    assert (ids["appended"], ids["refused"], ids["missing"]) == (["mine-1"], ["x" * 128], ["mine-2"])
    made = [ids[name][0] for name in ("batch", "read", "too long")]
    assert all(re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", name) for name in made)
    assert len(set(made)) == 3


def test_each_request_is_a_line_that_says_what_was_answered_under_its_id(told: dict[str, Any]) -> None:
    lines = {line["request_id"]: line for line in told["lines"] if line["logger"] == "audit_stream.server.requests"}
    for name, answer in told["answers"].items():
        line = lines[answer.headers["x-request-id"]]
        assert (line["status"], line["method"]) == (answer.status_code, answer.request.method), name
        assert line["duration_ms"] >= 0
        assert line["level"] == "info"
    assert len(lines) == len(told["answers"])
    assert {line["level"] for line in told["lines"]} == {"info"}
    assert not [line for line in told["lines"] if "color_message" in line]
    assert lines["mine-2"]["path"] == "/nowhere%0A%1b[2J/x"
    assert lines["mine-1"]["event"] == "POST /events 201"


def test_a_line_has_the_fields_that_are_documented(told: dict[str, Any]) -> None:
    (example,) = re.findall(r"^    (\{.*\})$", (ROOT / "docs/metrics.md").read_text(), flags=re.MULTILINE)
    (line,) = [line for line in told["lines"] if line.get("request_id") == "mine-1"]
    assert list(json.loads(example)) == list(line)


def test_neither_payloads_nor_credentials_nor_queries_are_logged(told: dict[str, Any]) -> None:
    assert told["answers"]["appended"].status_code == 201
    assert SECRET not in told["text"]


def test_nothing_is_logged_of_requests_unless_asked_for(
    redis_url: str, chain: str, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, "AUDIT_STREAM_PIN": "off"}
    with running_server(**settings) as server:
        assert server.post({"kind": "other", "source": "s", "payload": {}}).headers["x-request-id"]
        assert server.get("/stats").headers["x-request-id"]
    assert capfd.readouterr().err == ""
