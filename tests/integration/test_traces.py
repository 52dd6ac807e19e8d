"""OpenTelemetry traces: which spans there are, how they hang together, and that they reach a collector."""

import asyncio
import queue
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from audit_stream.errors import Misconfigured
from audit_stream.server.app import create_app
from audit_stream.server.process import layered, load_tracing
from audit_stream.server.requests import Requests
from audit_stream.server.traces import Tracing
from audit_stream.settings import Settings
from tests.harness import ROOT, clean_environ, running_server

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "s3cr3t"


@pytest.fixture(scope="module")
def spans(redis_url: str) -> list[ReadableSpan]:
    """What a server of this process makes of five requests, one of them with a traceparent."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    settings = Settings(data_dir=Path(), redis_url=redis_url, chain=f"traces.{secrets.token_hex(4)}")

    async def ask() -> None:
        tracing = Tracing(provider)
        app = create_app(settings, tracing=tracing)
        served: Any = Requests(tracing.around(layered(app, settings)))

        def as_uvicorn(scope: Any, receive: Any, send: Any) -> Any:
            return served({**scope, "state": {}}, receive, send)

        async with (
            app.lifespan(),
            httpx.AsyncClient(transport=httpx.ASGITransport(as_uvicorn), base_url="http://localhost") as client,
        ):
            body = {"kind": "other", "source": "s", "payload": {"password": SECRET}}
            traced = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "mine", "Authorization": SECRET}
            answers = await asyncio.gather(
                client.post("/events", json=body, headers=traced),
                *(client.post("/events", json=body) for _ in range(2)),
            )
            assert [answer.status_code for answer in answers] == [201] * 3
            await client.get("/events/1")
            await client.get(f"/verify?from=1&x={SECRET}")
            await client.get("/verify")

    asyncio.run(ask())
    return list(kept.get_finished_spans())


def named(spans: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def identity(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context
    return context.trace_id, context.span_id


def test_a_request_goes_on_with_its_caller_s_trace(spans: list[ReadableSpan]) -> None:
    (traced,) = [span for span in named(spans, "POST /events") if span.parent]
    assert traced.parent
    assert (traced.parent.trace_id, traced.parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
    assert identity(traced)[0] == int(TRACE, 16)
    assert traced.attributes
    assert traced.attributes["audit_stream.request_id"] == "mine"
    assert traced.attributes["http.response.status_code"] == 201
    assert len(named(spans, "POST /events")) == 3


def test_a_batch_is_a_trace_of_its_own_linked_to_each_request_in_it(spans: list[ReadableSpan]) -> None:
    batches = named(spans, "append batch")
    assert all(batch.parent is None for batch in batches)
    linked = [(link.context.trace_id, link.context.span_id) for batch in batches for link in batch.links]
    assert sorted(linked) == sorted(map(identity, named(spans, "POST /events")))
    assert sum(batch.attributes["audit_stream.batch.events"] for batch in batches if batch.attributes) == 3  # type: ignore[misc]


def test_a_call_to_redis_is_inside_of_what_it_was_made_for(spans: list[ReadableSpan]) -> None:
    names = {identity(span): span.name for span in spans}
    above = {(span.name, names.get((span.parent.trace_id, span.parent.span_id))) for span in spans if span.parent}
    assert above >= {
        ("redis append", "append batch"),
        ("redis page", "GET /events/{event_id}"),
        ("redis page", "verify"),
        ("redis end", "verify"),
    }
    assert [span.name for span in spans if span.name.startswith("redis ") and not span.parent] == []


def test_a_walk_over_the_chain_is_inside_of_the_request_that_asked_for_it(spans: list[ReadableSpan]) -> None:
    (walk,) = named(spans, "verify")
    asked = [identity(span)[1] for span in named(spans, "GET /verify")]
    assert walk.parent
    assert walk.parent.span_id in asked
    assert walk.attributes
    assert (walk.attributes["audit_stream.verify.valid"], walk.attributes["audit_stream.verify.from"]) == (True, 1)


def test_the_documented_spans_are_made(spans: list[ReadableSpan]) -> None:
    table = (ROOT / "docs/metrics.md").read_text().partition("| span | of |")[2]
    documented = {
        name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.M) for name in re.findall(r"`(.*?)`", row)
    }
    assert len(documented) == 6
    assert documented <= {span.name for span in spans}


def test_no_span_is_named_after_an_event_or_holds_what_a_client_sent(spans: list[ReadableSpan]) -> None:
    assert len(named(spans, "GET /events/{event_id}")) == 1
    assert SECRET not in "".join(span.to_json() for span in spans)


@contextmanager
def a_collector() -> Iterator[tuple[str, "queue.Queue[ExportTraceServiceRequest]"]]:
    """What takes OTLP over HTTP, and hands on what it was sent."""
    sent: queue.Queue[ExportTraceServiceRequest] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            sent.put(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", sent
        finally:
            server.shutdown()
            thread.join()


def test_spans_reach_the_collector_at_the_latest_when_the_server_stops(redis_url: str, chain: str) -> None:
    with a_collector() as (url, sent):
        settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, "AUDIT_STREAM_OTEL": "on"}
        with running_server(
            **settings, OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_COMPRESSION="none"
        ) as server:
            server.post({"kind": "other", "source": "s", "payload": {}})
            assert server.stop() == 0
        (resource,) = sent.get(timeout=10).resource_spans
    about = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert about["service.name"] == "audit-stream"
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert {"POST /events", "append batch", "redis append"} <= names


def test_traces_that_are_not_installed_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "audit_stream.server.traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Misconfigured, match=r"AUDIT_STREAM_OTEL: .*pip install '\.\[otel\]'"):
        load_tracing()


def test_unless_they_are_switched_on_nothing_that_makes_traces_is_loaded() -> None:
    program = "import sys, audit_stream.server.run; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], env=clean_environ(), text=True).split()
    assert "audit_stream.server.process" in loaded
    # redis-py loads OpenTelemetry's SDK where it is installed, but neither our spans nor what sends them.
    assert {"audit_stream.server.traces", "opentelemetry.exporter"}.isdisjoint(loaded)
