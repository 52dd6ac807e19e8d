"""The consumer's own numbers."""

from prometheus_client import CollectorRegistry, Counter, Gauge

SIDES = ("kafka", "spine", "dead letters")


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "audit_stream_kafka"
        self.delivered = Counter(f"{name}_events", "records that the chain has", registry=self.registry)
        self.dead_letters = Counter(f"{name}_dead_letters", "records put into a DLQ", registry=self.registry)
        self.partitions = self._gauge(f"{name}_partitions", "partitions that this consumer was given")
        self.waiting = self._gauge(f"{name}_waiting_records", "records read, and not yet on the chain or in a DLQ")
        self.paused = self._gauge(f"{name}_paused", "1 while its partitions are paused")
        self.spine_away = self._gauge(f"{name}_spine_away", "1 when the spine did not take the last request")
        self.lag = Gauge(
            f"{name}_lag_records",
            "records of the partition behind the one last read",
            ["topic", "partition"],
            registry=self.registry,
        )
        self.failures = Counter(
            f"{name}_failures", "attempts that ended with a side that was away", ["side"], registry=self.registry
        )
        for side in SIDES:
            self.failures.labels(side)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)
