"""The projections' own numbers, at GET /metrics in Prometheus' format; made when they are asked for."""

from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as _Collector

from audit_stream.sinks.projection import Progress

if TYPE_CHECKING:
    from audit_stream.sinks.projections import Projections

_NAME = "audit_stream_projection"


class Collector(_Collector):
    def __init__(self, projections: "Projections") -> None:
        self._projections = projections

    def collect(self) -> Iterator[Metric]:
        newest = self._projections.newest

        def lag(progress: Progress) -> int:
            return max(0, newest - progress.head.event_id)

        def behind_s(progress: Progress) -> float:
            return monotonic() - progress.caught_up_at if lag(progress) else 0.0

        gauges: dict[str, tuple[str, Callable[[Progress], float]]] = {
            "event_id": ("the newest event that the sink has", lambda progress: progress.head.event_id),
            "lag_events": ("how many events of the chain the sink does not have", lag),
            "lag_seconds": ("for how long the sink has not had all of the chain", behind_s),
            "failing": ("1 while the sink, or the way to it, does not work", lambda progress: bool(progress.failing)),
        }
        counters: dict[str, tuple[str, Callable[[Progress], float]]] = {
            "events": ("events that the sink took", lambda progress: progress.events),
            "failures": ("attempts that ended with an error", lambda progress: progress.failures),
        }
        for families, make in ((gauges, GaugeMetricFamily), (counters, CounterMetricFamily)):
            for name, (text, value) in families.items():
                family: Metric = make(f"{_NAME}_{name}", text, labels=["sink"])
                for progress in self._projections.progress:
                    family.add_metric([progress.sink], value(progress))  # type: ignore[attr-defined]
                yield family
        text = "1 when the spine did not answer the last look at where the chain ends"
        yield GaugeMetricFamily(f"{_NAME}_spine_away", text, value=self._projections.spine_away)
