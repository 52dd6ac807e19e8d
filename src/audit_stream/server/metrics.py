"""GET /metrics: the numbers of this server, all of its workers together, for Prometheus."""

import asyncio
import platform
from collections.abc import Iterable, Iterator
from itertools import accumulate

from litestar import Response, get
from msgspec.structs import asdict
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from audit_stream import __version__
from audit_stream.capacity import Capacity
from audit_stream.errors import AuditStreamError
from audit_stream.server.grants import grant_of
from audit_stream.server.problems import AnyRequest
from audit_stream.spine import Spine, spine_of
from audit_stream.tally import FAILURES, OUTCOMES, Board, Buckets

OPENMETRICS = "application/openmetrics-text"


@get("/metrics", include_in_schema=False)
async def metrics(request: AnyRequest) -> Response[bytes]:
    spine = spine_of(request.app.state)
    height, reasons, capacity = await asyncio.gather(_height(spine), spine.readiness.now(), spine.capacity.now())
    registry = CollectorRegistry()
    grant = grant_of(request.scope)
    sources = None if grant is None else grant.sources
    registry.register(_Scrape(spine, height, capacity, sources, ready=not reasons))
    if len(spine.tally.board.blocks) == 1:
        ProcessCollector(registry=registry)  # of several processes, one would speak for all
    # Not the header itself: the library stumbles over a version that is none.
    encode, content_type = choose_encoder(OPENMETRICS if OPENMETRICS in request.headers.get("accept", "") else "")
    return Response(encode(registry), headers={"Content-Type": content_type, "Vary": "Accept"})


async def _height(spine: Spine) -> int | None:
    try:
        return (await spine.stream.head()).event_id
    except AuditStreamError:
        return None


class _Scrape(Collector):
    def __init__(
        self,
        spine: Spine,
        height: int | None,
        capacity: Capacity | None,
        sources: frozenset[str] | None,
        *,
        ready: bool,
    ) -> None:
        """Count the events of these sources alone; None: of all of them."""
        self._spine, self._height, self._capacity, self._sources = spine, height, capacity, sources
        self._ready = ready

    def collect(self) -> Iterator[Metric]:
        yield from _appends(self._spine.tally.board, self._sources)
        yield from _inside(self._spine.tally.board)
        yield _gauge("ready", "1 when an append would succeed now", self._ready)
        yield _gauge("chain_height", "event_id of the newest event; absent when Redis does not tell", self._height)
        yield from _memory(self._capacity)
        yield from _verifying(self._spine)
        build = GaugeMetricFamily(
            "audit_stream_build_info", "Always 1; the labels say what runs", labels=["version", "python"]
        )
        build.add_metric([__version__, platform.python_version()], 1)
        yield build


def _appends(board: Board, sources: frozenset[str] | None) -> Iterator[Metric]:
    events = CounterMetricFamily(
        "audit_stream_events", "Events appended, by kind and source", labels=["kind", "source"]
    )
    for kind, source, count in board.events():
        name = source.decode()
        if sources is None or name in sources:
            events.add_metric([kind.decode(), name], count)
    yield events
    yield _counter("replays", "Events sent again under their idempotency key", board.total("replays"))
    failures = CounterMetricFamily(
        "audit_stream_append_failures", "Append requests that got no receipt, by reason", labels=["reason"]
    )
    for name in FAILURES:
        failures.add_metric([name], board.total(f"failed {name}"))
    yield failures
    append = "From an append request's body to its receipt, in seconds"
    yield _histogram("append_seconds", append, [([], board.histogram("append_seconds"))])
    batch = "Events that one call of the script appended"
    yield _histogram("append_batch_events", batch, [([], board.histogram("batch_events"))])
    yield _counter("lost_races", "Batches hashed again: another server was first", board.total("lost_races"))


def _inside(board: Board) -> Iterator[Metric]:
    yield _gauge("queue_events", "Events waiting for the next batch", board.total("queue_events"))
    yield _gauge("queue_bytes", "Their bytes", board.total("queue_bytes"))
    yield _gauge("sse_subscribers", "Open event streams", board.total("sse_subscribers"))
    yield _counter("sse_drops", "Event streams closed because the reader fell behind", board.total("sse_drops"))
    stalled = "Connections closed because the reader took nothing of what was sent for a minute"
    yield _counter("stalled_readers", stalled, board.total("stalled_readers"))
    calls = [
        (["append"], board.histogram("redis_append_seconds")),
        (["read"], board.histogram("redis_read_seconds")),
    ]
    yield _histogram("redis_seconds", "Round trips to Redis that were answered, in seconds", calls, ["call"])


def _memory(capacity: Capacity | None) -> Iterator[Metric]:
    used, limit, days = capacity or (None, None, None)
    yield _gauge("redis_memory_bytes", "Memory that Redis uses; absent when Redis does not tell", used)
    bound = "Memory that Redis may use: maxmemory, or where that is 0 the memory of the machine"
    yield _gauge("redis_memory_limit_bytes", bound, limit)
    until = "Days until that memory is full, at the rate of the last day; absent when too little was appended to tell"
    yield _gauge("days_until_full", until, days)


def _verifying(spine: Spine) -> Iterator[Metric]:
    shown, own = spine.verdicts.last, spine.verdicts.own
    valid = "1 when the chain held at the last verdict, 0 when it was broken; absent when nobody can tell"
    yield _gauge("chain_valid", valid, shown.valid if shown else None)
    # The others are about this server's own walks: what Redis keeps must not make an old verdict look young.
    walked = {} if own is None else asdict(own)
    at = "When this server last reached a verdict itself, in seconds since 1970"
    yield _gauge("verify_timestamp_seconds", at, walked.get("at"))
    whole_at = "When this server last checked the whole chain and it held, in seconds since 1970"
    yield _gauge("verify_whole_timestamp_seconds", whole_at, walked.get("whole_at"))
    yield _gauge("verify_checked_events", "Events that held in its last walk", walked.get("checked"))
    yield _gauge("verify_duration_seconds", "How long that walk took", walked.get("took_s"))
    yield _gauge("verify_event_id", "The event up to which the chain held in it", own.head[0] if own else None)
    verdicts = CounterMetricFamily("audit_stream_verifies", "Verdicts, by what they were", labels=["verdict"])
    for outcome in OUTCOMES:
        verdicts.add_metric([outcome], spine.tally.board.total(f"verified {outcome}"))
    yield verdicts


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"audit_stream_{name}", text, value=value)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """Without a value its name and text are shown all the same, and no sample."""
    return GaugeMetricFamily(f"audit_stream_{name}", text, value=None if value is None else float(value))


def _histogram(
    name: str, text: str, found: Iterable[tuple[list[str], Buckets]], labels: list[str] | None = None
) -> Metric:
    family = HistogramMetricFamily(f"audit_stream_{name}", text, labels=labels or [])
    for values, (bounds, counts, total) in found:
        upto = [*map(str, map(float, bounds)), "+Inf"]
        family.add_metric(values, list(zip(upto, accumulate(counts), strict=True)), total)
    return family
