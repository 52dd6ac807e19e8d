"""OpenTelemetry traces: requests, batches, calls to Redis, walks over the chain.

Only loaded when they are switched on. What they watch knows nothing of them: each part is a subclass or a wrapper of
the plain one, so that without traces not a line of this runs.
"""

import asyncio
import re
import threading
from collections.abc import Awaitable, Sequence
from typing import Any, cast

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from audit_stream import __version__
from audit_stream.appender import Appender
from audit_stream.event import Draft
from audit_stream.indexes import Indexes
from audit_stream.server.requests import current_request
from audit_stream.server.routes import ENDPOINTS
from audit_stream.spine import Parts
from audit_stream.stream import Stream
from audit_stream.submission import Batch, Submission
from audit_stream.verifier import Report, Walk

FLUSH_S = 2.0
"""At the end: a collector that is away must not hold up the server's stop."""

_STREAM_CALLS = {name: name for name in ("append", "head", "page", "pick", "end")}
_INDEX_CALLS = {name: name for name in ("lengths", "first_at", "last_before")} | {
    "ids": "index",
    "ids_among": "in_index",
}
"""Methods, and what the spans of their calls are named."""

_PATHS = {endpoint.partition(" ")[2] for endpoint in ENDPOINTS}


class Tracing:
    """Traces to one provider: the parts of a spine that make spans, and the layer around the application."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        tracer = provider.get_tracer("audit_stream", __version__)
        self._tracer = tracer
        self.parts = Parts(_stream(tracer), _appender(tracer), _walking(tracer))

    @classmethod
    def to_collector(cls) -> "Tracing":
        """Send spans by OTLP over HTTP, as the standard OTEL_… variables say. What it cannot read of these it logs."""
        about = Resource({"service.name": "audit-stream", "service.version": __version__})
        provider = TracerProvider(resource=about.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def around(self, app: ASGIApp) -> ASGIApp:
        return _Requests(app, self._tracer)

    async def close(self) -> None:
        """Send what is left, for FLUSH_S at most."""
        flushing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_S)


class _Requests:
    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app, self._tracer = app, tracer
        self._traceparent = TraceContextTextMapPropagator()  # W3C Trace Context §3

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if cast("str", scope["type"]) != "http":
            await self._app(scope, receive, send)
            return
        method, path = cast("Any", scope)["method"], scope["path"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        about = {"http.request.method": method, "url.path": path}
        if route := _route(path):
            about["http.route"] = route
        if request_id := current_request.get(None):
            about["audit_stream.request_id"] = request_id.decode()
        with self._tracer.start_as_current_span(
            f"{method} {route}" if route else method,
            context=self._traceparent.extract(headers, Context()),
            kind=SpanKind.SERVER,
            attributes=about,
        ) as span:

            def sending(message: Message) -> Awaitable[None]:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                return send(message)

            await self._app(scope, receive, sending)


def _route(path: str) -> str | None:
    """What the path is an instance of. A span must not be named after one event."""
    if path in _PATHS:
        return path
    return "/events/{event_id}" if re.fullmatch(r"/events/[^/]+", path) else None


def _stream(tracer: Tracer) -> type[Stream]:
    def traced(owner: type[Stream] | type[Indexes], method: str, name: str) -> Any:
        plain = getattr(owner, method)

        async def call(self: Stream | Indexes, *arguments: Any, **options: Any) -> Any:
            # Of what nobody traces, like the tail's reading, no trace of its own is begun.
            if not get_current_span().is_recording():
                return await plain(self, *arguments, **options)
            about = {"db.system.name": "redis", "db.operation.name": name, "db.collection.name": self.keys.chain}
            with tracer.start_as_current_span(f"redis {name}", kind=SpanKind.CLIENT, attributes=about):
                return await plain(self, *arguments, **options)

        return call

    of_indexes = {method: traced(Indexes, method, name) for method, name in _INDEX_CALLS.items()}
    of_stream = {method: traced(Stream, method, name) for method, name in _STREAM_CALLS.items()}
    indexes = type("TracedIndexes", (Indexes,), of_indexes)
    return type("TracedStream", (Stream,), {**of_stream, "indexes_type": indexes})


class _TracedSubmission(Submission):
    def __init__(self, drafts: Sequence[Draft]) -> None:
        super().__init__(drafts)
        self.handed_in_by = get_current_span().get_span_context()


def _appender(tracer: Tracer) -> type[Appender]:
    class TracedAppender(Appender):
        submission = _TracedSubmission

        async def _append(self, batch: Batch, ahead: "asyncio.Task[None] | None") -> None:
            # It belongs to all of its requests, and so to the trace of none: links lead from one to the other.
            asked_by = [cast("_TracedSubmission", submission).handed_in_by for submission in batch.submissions]
            links = [Link(context) for context in asked_by if context.is_valid]
            with tracer.start_as_current_span("append batch", context=Context(), links=links) as span:
                span.set_attribute("audit_stream.batch.events", len(batch.pending()))
                await super()._append(batch, ahead)

    return TracedAppender


def _walking(tracer: Tracer) -> Any:
    async def walk(of: Walk) -> Report:
        with tracer.start_as_current_span("verify", attributes={"audit_stream.verify.from": of.first}) as span:
            report = await of.run()
            span.set_attribute("audit_stream.verify.checked", report.verdict.checked)
            span.set_attribute("audit_stream.verify.valid", report.verdict.valid)
            return report

    return walk
