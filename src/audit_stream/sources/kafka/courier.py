"""One batch of records, from Kafka to where each belongs: the chain, or a DLQ. Then its offsets are committed.

What is known at each step, and who repairs it:

    read                   nothing; it is read again
    sent, no answer        the chain may have it; it is sent again under the same key, and stored once
    appended               the same, until its offset is committed
    in the DLQ             see dead_letters.py
    committed              the chain or a DLQ has it
"""

from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import KafkaException

from audit_stream.client.http import Backoff
from audit_stream.errors import Misconfigured
from audit_stream.sources.delivery import LONGEST_PAUSE_S, Delivery
from audit_stream.sources.kafka.broker import Assignment, Broker, Item
from audit_stream.sources.kafka.complaints import Complaints
from audit_stream.sources.kafka.dead_letters import DeadLetters
from audit_stream.sources.kafka.letters import Letter
from audit_stream.sources.kafka.metrics import Metrics
from audit_stream.sources.kafka.records import Made, Unusable, as_event
from audit_stream.sources.kafka.settings import KafkaSettings
from audit_stream.sources.spine import Refusal
from audit_stream.sources.stopping import Stopping


class _Sorted(NamedTuple):
    made: list[tuple[Item, Made]]
    letters: dict[Assignment, list[Letter]]


class Courier:
    def __init__(
        self,
        settings: KafkaSettings,
        broker: Broker,
        dead_letters: DeadLetters,
        deliver: Delivery,
        stopping: Stopping,
        metrics: Metrics,
        complaints: Complaints,
    ) -> None:
        self._complaints = complaints
        self._settings, self._broker, self._dead_letters = settings, broker, dead_letters
        self._deliver, self._stopping, self._metrics = deliver, stopping, metrics
        self._cluster: str | None = None

    async def settle(self, items: Sequence[Item]) -> None:
        """Raises Stopped between two attempts, and Misconfigured for what waiting does not mend."""
        assignments = {item[0]: item[1].offset for item in items if not item[0].revoked}  # and its last offset
        cluster = await self._prepare(assignments)
        made, letters = self._sort(items, cluster)
        async for outcome in self._deliver([one.event for _, one in made], still_ours=_always):
            if outcome.refusal is None:
                self._metrics.delivered.inc(outcome.end - outcome.first)
            else:
                (assignment, record), one = made[outcome.first]
                self._check_kind(outcome.refusal, one)
                letters.setdefault(assignment, []).append(Letter(record, outcome.refusal.reason, "appending"))
        for assignment, found in letters.items():
            await self._dead_letters.bury(assignment, sorted(found, key=lambda letter: letter.record.offset), cluster)
        for assignment, last in assignments.items():
            assignment.settle(last + 1)
        self._broker.commit(list(assignments))

    async def _prepare(self, assignments: dict[Assignment, int]) -> str:
        backoff = Backoff(None, longest_s=LONGEST_PAUSE_S)
        while True:
            try:
                if self._cluster is None:
                    self._cluster = await self._broker.cluster()
                for assignment in assignments:
                    if assignment.buried is None and not assignment.revoked:
                        await self._dead_letters.look(assignment)
            except KafkaException as error:
                self._complaints.warn(f"kafka: {error.args[0].str()}")
                self._metrics.failures.labels("kafka").inc()
                await self._stopping.pause(backoff.pause_s() or LONGEST_PAUSE_S)
            else:
                return self._cluster

    def _sort(self, items: Sequence[Item], cluster: str) -> _Sorted:
        sorted_ = _Sorted([], {})
        for item in items:
            assignment, record = item
            # What is in the DLQ stays there, also when it could be an event by now: each is in one place.
            if assignment.revoked or record.offset in (assignment.buried or ()):
                continue
            try:
                sources = self._settings.sources_of(record.topic)
                sorted_.made.append((item, as_event(record, self._settings.event_kind, cluster, sources)))
            except Unusable as unusable:
                sorted_.letters.setdefault(assignment, []).append(Letter(record, str(unusable), "decoding"))
        return sorted_

    def _check_kind(self, refusal: Refusal, made: Made) -> None:
        if refusal.field == "kind" and made.ours:
            # Not about this record: it would be the same for all of them.
            raise Misconfigured(
                f"KAFKA_EVENT_KIND: the spine does not take events of kind {self._settings.event_kind!r};"
                " choose another, or add it to AUDIT_STREAM_KINDS there"
            )


async def _always() -> None:
    """Whoever else has the partition by now sends the same under the same keys."""
