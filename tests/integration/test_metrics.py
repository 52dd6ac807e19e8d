"""GET /metrics: what a server with several workers says of itself."""

import itertools
import os
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.faults.processes import needs_linux
from tests.harness import ROOT, ServerProcess, running_server

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name.removeprefix("audit_stream_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def scraped(server: ServerProcess) -> Samples:
    """What one of the workers says; each time over a new connection, so that any of them may answer."""
    response = httpx.get(f"{server.url}/metrics", timeout=30).raise_for_status()
    return samples(response.text)


def post(server: ServerProcess, source: str = "s", kind: str = "other", **headers: str) -> httpx.Response:
    """One event over a new connection."""
    return httpx.post(
        f"{server.url}/events", json={"kind": kind, "source": source, "payload": {}}, headers=headers, timeout=30
    )


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[ServerProcess]:
    settings = {"AUDIT_STREAM_CHAIN": f"metrics.{secrets.token_hex(4)}", "AUDIT_STREAM_VERIFY_EVERY": "off"}
    with running_server("--workers", "2", AUDIT_STREAM_REDIS_URL=redis_url, **settings) as started:
        yield started


def workers(server: ServerProcess) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


def test_whichever_worker_is_asked_answers_for_all_of_them(server: ServerProcess) -> None:
    before = scraped(server)
    for number in range(12):
        assert post(server, source="café", kind="flag_swapped").status_code == 201
        assert scraped(server)["events_total", (("kind", "flag_swapped"), ("source", "café"))] == number + 1
    after = scraped(server)
    for name in ("append_seconds_count", "append_batch_events_sum", "append_batch_events_count"):
        assert after[name, ()] - before.get((name, ()), 0) == 12
    assert after["append_seconds_sum", ()] > before["append_seconds_sum", ()]
    assert after["redis_seconds_count", (("call", "append"),)] >= 12
    assert after["chain_height", ()] == before["chain_height", ()] + 12
    assert after["ready", ()] == 1
    assert after["queue_events", ()] == after["queue_bytes", ()] == 0


def test_a_request_without_a_receipt_is_counted_by_its_reason(server: ServerProcess) -> None:
    before = scraped(server)
    assert post(server, kind="no such kind").status_code == 422
    assert server.post(b"{").status_code == 400
    assert server.post_batch([]).status_code == 422
    json = {"Content-Type": "application/json"}
    assert server.client.post("/events/", content=b"{", headers=json).status_code == 400  # the way past the express one
    key = {"Idempotency-Key": secrets.token_hex(4)}
    assert [post(server, **key).status_code for _ in range(3)] == [201, 200, 200]
    after = scraped(server)
    grown = {name: after[name] - before[name] for name in after if "failures" in name[0] and after[name] > before[name]}
    assert grown == {("append_failures_total", (("reason", "refused"),)): 4}
    assert after["replays_total", ()] == before["replays_total", ()] + 2


@needs_linux
def test_a_worker_that_is_killed_takes_no_count_along_and_leaves_no_subscriber_behind(server: ServerProcess) -> None:
    def subscribers() -> float:
        return scraped(server)["sse_subscribers", ()]

    before = scraped(server)
    with httpx.stream("GET", f"{server.url}/stream", timeout=30) as stream:
        chunks = stream.iter_raw()
        assert b"retry" in next(chunks)
        assert subscribers() == 1
        for pid in workers(server):  # one of them has the stream
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            for _ in chunks:
                pass
    # The listening socket outlives the workers, and so the questions wait for their successors.
    assert next(count for count in iter(subscribers, None) if count == 0) == 0
    after = scraped(server)
    counts = [name for name in before if name[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert [name for name in counts if after[name] < before[name]] == []
    post(server, source="afterwards")
    assert scraped(server)["events_total", (("kind", "other"), ("source", "afterwards"))] == 1


def test_a_verdict_is_told_by_every_worker_and_none_is_none(server: ServerProcess) -> None:
    names = ("chain_valid", "verify_timestamp_seconds", "verify_checked_events")
    assert [name for name in names if (name, ()) in scraped(server)] == []
    assert server.get("/stats").json()["last_verdict"] is None
    checked = server.verify()["checked"]
    for _ in range(8):
        found = scraped(server)
        assert (found["chain_valid", ()], found["verify_checked_events", ()]) == (1, checked)
    last = httpx.get(f"{server.url}/stats").json()["last_verdict"]
    assert (last["valid"], last["checked"], last["at"]) == (True, checked, last["whole_at"])


def test_prometheus_gets_the_format_it_asks_for(server: ServerProcess) -> None:
    plain = server.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    openmetrics = server.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in parse_openmetrics(openmetrics.text)} == {
        family.name for family in parse(plain.text)
    }
    for odd in ("application/openmetrics-text; version=x", "text/plain;version=.", ";", "*/*", "text/html"):
        assert server.get("/metrics", Accept=odd).status_code == 200, odd


def test_what_a_source_is_called_cannot_forge_a_sample(server: ServerProcess) -> None:
    name = 'a"} 7\naudit_stream_chain_valid 0\n#\\'
    assert post(server, source=name).status_code == 201
    assert scraped(server)["events_total", (("kind", "other"), ("source", name))] == 1
    assert ("chain_valid", ()) not in scraped(server) or scraped(server)["chain_valid", ()] == 1


def families(server: ServerProcess) -> dict[str, str]:
    """Every metric of ours, as it is called in queries, and what it says it is."""
    shown = itertools.pairwise(server.get("/metrics").text.splitlines())
    return {
        match["name"]: match["text"]
        for line, _ in shown
        if (match := re.match(r"# HELP (?P<name>audit_stream_\w+) (?P<text>.*)", line))
    }


def test_the_documented_metrics_are_the_served_ones(server: ServerProcess) -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)(?:\{.*?\})?` \| \w+ \| (.*?) \|$", text, flags=re.M)
    assert dict(rows) == families(server)
    assert len(rows) == len(dict(rows))
