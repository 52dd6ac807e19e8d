"""The relay's own numbers, at GET /metrics in Prometheus' format."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from audit_stream.sources.postgres.outbox import Lag


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "audit_stream_relay"
        self.delivered = self._counter(f"{name}_events", "changes that the chain has, and the outbox no longer")
        self.refused = self._counter(f"{name}_refused_events", "changes moved to the dead letters")
        self.leading = self._gauge(f"{name}_leading", "1 when this relay drains the outbox, 0 when another one does")
        self.connected = self._gauge(f"{name}_database_connected", "1 when the database was last seen to answer")
        self.spine_away = self._gauge(f"{name}_spine_away", "1 when the spine did not take the last request")
        self._waiting = self._gauge(f"{name}_outbox_events", "changes in the outbox")
        self._behind = self._gauge(f"{name}_lag_seconds", "age of the oldest change in the outbox")
        self._dead = self._gauge(f"{name}_dead_letters", "changes that the spine has refused for good")
        self.lost = Counter(
            f"{name}_failures", "attempts that ended with a side that was away", ["side"], registry=self.registry
        )
        for side in ("database", "spine"):
            self.lost.labels(side)

    def lag(self, lag: Lag) -> None:
        self._waiting.set(lag.waiting)
        self._behind.set(lag.behind_s)
        self._dead.set(lag.dead_letters)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)
