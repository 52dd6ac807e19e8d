"""The consumer's side of Kafka, on a thread of its own: it polls, is given partitions, loses them and commits.

Only that thread touches the consumer: one call of it from elsewhere waits for a poll to end, and may hang.

Offsets are committed by whoever settles records, never by themselves: a committed offset says that everything
before it is on the chain or in a DLQ.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from audit_stream.errors import Misconfigured
from audit_stream.sources.kafka.clients import consumer_of
from audit_stream.sources.kafka.complaints import Complaints
from audit_stream.sources.kafka.metrics import Metrics
from audit_stream.sources.kafka.records import Record
from audit_stream.sources.kafka.settings import DLQ, KafkaSettings

# As many as the spine takes at once.
TAKE = 2_000
TIMEOUT_S = 10.0

log = logging.getLogger("audit_stream.kafka")

OURS = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    # A topic that is made later, or grows, is noticed in 5 s instead of 5 minutes.
    "topic.metadata.refresh.interval.ms": 5_000,
    # Read ahead, for each partition. What waits here is in memory.
    "queued.min.messages": 10_000,
    "queued.max.messages.kbytes": 16_384,
    "client.id": "audit-consumer",
}

_OTHER_STRATEGY = (
    "; members of the group assign partitions by another strategy: stop them first,"
    " or set KAFKA_ASSIGNMENT to a strategy that they offer"
)


class Assignment:
    """A partition, for as long as it is this consumer's."""

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.position: int | None = None
        """Everything before it is settled."""
        self.committed: int | None = None
        self.note = ""
        """Committed with every offset: where the DLQ may hold records that are not settled yet."""
        self.buried: frozenset[int] | None = None
        """Offsets that are in the DLQ already, though not committed; None: nobody has looked."""
        self.revoked = False

    def settle(self, position: int) -> None:
        """Everything before this is on the chain or in a DLQ."""
        self.position = position
        if position > max(self.buried or (), default=-1):
            self.note = ""

    def at(self, offset: int) -> TopicPartition:
        return TopicPartition(self.topic, self.partition, offset, metadata=self.note)


Item = tuple[Assignment, Record]
Release = Callable[[Sequence[Assignment]], Coroutine[Any, Any, None]]
T = TypeVar("T")


class Broker:
    def __init__(self, settings: KafkaSettings, metrics: Metrics, complaints: Complaints, release: Release) -> None:
        """`release` is awaited before partitions go to another consumer: what is under way of them may be finished."""
        self._settings, self._metrics, self._complaints, self._release = settings, metrics, complaints, release
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka")
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._assigned: dict[tuple[str, int], Assignment] = {}
        self._held: set[tuple[str, int]] = set()
        self._notes: dict[Assignment, tuple[TopicPartition, Future[None]]] = {}
        """Those that are not answered yet."""
        self._giving_back = False
        own = {"topic.blacklist": rf".*\{DLQ}$", "partition.assignment.strategy": settings.assignment}
        callbacks = {"error_cb": self._failed, "on_commit": self._committed}
        self._consumer = consumer_of(settings, OURS | own | callbacks, complaints)
        # No member of the group: it reads what is committed while the other one waits for its place.
        self._reader = consumer_of(settings, {"enable.auto.commit": False}, complaints)
        self._asking = asyncio.Lock()

    async def subscribe(self) -> None:
        await self._on_thread(
            lambda: self._consumer.subscribe(
                list(self._settings.topics),
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
        )

    async def take(self, *, hold: bool, timeout_s: float) -> list[Item]:
        """The next records, at most TAKE, as soon as there are any; none while they are to `hold`.

        Has to be called again and again in any case: who does not poll is taken for dead.
        """
        return await self._on_thread(lambda: self._take(hold, timeout_s))

    def commit(self, assignments: Sequence[Assignment]) -> None:
        """Begin to commit their positions."""
        offsets = [a.at(a.position) for a in assignments if a.position is not None and not a.revoked]
        if offsets:
            self._put(lambda: self._commit(offsets))

    async def note(self, assignment: Assignment, offset: int) -> None:
        """Commit the offset with the partition's note, and wait until it is. Raises KafkaException."""
        # Not a commit that blocks: in a rebalance its answer may have to wait for the next poll.
        done: Future[None] = Future()
        self._notes[assignment] = (assignment.at(offset), done)
        self._put(lambda: self._note(assignment))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.wrap_future(done)
        except TimeoutError as error:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from error
        finally:
            self._notes.pop(assignment, None)

    async def noted(self, assignment: Assignment) -> str:
        """The note beside the committed offset. Raises KafkaException."""
        async with self._asking:
            (found,) = await asyncio.to_thread(lambda: self._reader.committed([assignment.at(0)], timeout=TIMEOUT_S))
        if found.error:
            raise KafkaException(found.error)
        return found.metadata or ""

    async def cluster(self) -> str:
        """The cluster's id. Raises KafkaException."""
        async with self._asking:
            found = await asyncio.to_thread(lambda: self._reader.list_topics(timeout=TIMEOUT_S))
        return str(found.cluster_id or "")

    async def close(self) -> None:
        """Give the partitions back, and leave the group."""
        await self._on_thread(self._consumer.close)
        self._thread.shutdown()
        async with self._asking:
            await asyncio.to_thread(self._reader.close)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def job() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(work())
                except BaseException as error:
                    done.set_exception(error)

        self._put(job)
        return await asyncio.wrap_future(done)

    def _put(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)
        self._thread.submit(self._work)

    # --- on the thread

    def _work(self) -> None:
        try:
            job = self._jobs.get_nowait()
        except Empty:
            return  # it was done while partitions were given back
        job()

    def _commit(self, offsets: list[TopicPartition]) -> None:
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._failed(error.args[0])  # the next commit says the same and more

    def _note(self, assignment: Assignment) -> None:
        if assignment not in self._notes:
            return  # who waited for it has gone
        place, _ = self._notes[assignment]
        if not self._giving_back:
            self._commit([place])
            return
        try:
            # Answers come by polling, and this is in the middle of a poll.
            self._consumer.commit(offsets=[place], asynchronous=False)
        except KafkaException as error:
            self._acknowledge(assignment, place.metadata, error.args[0])
        else:
            self._acknowledge(assignment, place.metadata, None)

    def _take(self, hold: bool, timeout_s: float) -> list[Item]:
        self._hold(hold)
        # Not `consume` alone: it waits until it has all that it was asked for.
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        messages = [first, *self._consumer.consume(TAKE - 1, timeout=0)]
        items = [item for message in messages if (item := self._item(message))]
        self._look_at_lag(items)
        return items

    def _hold(self, hold: bool) -> None:
        places = self._assigned.keys() - self._held if hold else self._held & self._assigned.keys()
        if places:
            change = self._consumer.pause if hold else self._consumer.resume
            change([TopicPartition(*place) for place in places])
        self._held = set(self._assigned) if hold else set()
        self._metrics.paused.set(hold)

    def _item(self, message: Message) -> Item | None:
        if error := message.error():
            if error.fatal():
                raise Misconfigured(f"Kafka will not have this consumer any more: {error.str()}")
            self._failed(error)
            return None
        record = Record.of(message)
        # A record of a partition that was lost meanwhile is somebody else's.
        assignment = self._assigned.get((record.topic, record.partition))
        return (assignment, record) if assignment else None

    def _look_at_lag(self, items: list[Item]) -> None:
        for assignment, record in dict(items).items():
            _, end = self._consumer.get_watermark_offsets(assignment.at(0), cached=True)
            lag = max(0, end - record.offset - 1)
            self._metrics.lag.labels(assignment.topic, str(assignment.partition)).set(lag)

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        for p in partitions:
            self._assigned[p.topic, p.partition] = Assignment(p.topic, p.partition)
        log.info("given %s", _named(partitions))
        self._metrics.partitions.set(len(self._assigned))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        leaving = [self._assigned[p.topic, p.partition] for p in partitions if (p.topic, p.partition) in self._assigned]
        released = asyncio.run_coroutine_threadsafe(self._release(leaving), self._loop)
        # What is to be finished may need this very thread.
        released.add_done_callback(lambda _: self._put(lambda: None))
        self._giving_back = True
        for assignment in list(self._notes):
            self._note(assignment)
        while not released.done():
            self._jobs.get()()
        self._giving_back = False
        released.result()
        offsets = [a.at(a.position) for a in leaving if a.position is not None and a.position != a.committed]
        if offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                # The next owner reads these records again, and the spine knows them by their keys.
                log.warning("offsets were not committed, their records are read again: %s", error.args[0])
        self._forget(leaving)
        log.info("gave back %s", _named(partitions))

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        log.warning("lost %s: somebody else may have them already", _named(partitions))
        self._forget([a for p in partitions if (a := self._assigned.get((p.topic, p.partition)))])

    def _forget(self, assignments: list[Assignment]) -> None:
        for assignment in assignments:
            assignment.revoked = True
            place = assignment.topic, assignment.partition
            self._assigned.pop(place)
            self._held.discard(place)
            with suppress(KeyError):  # nothing was read of it
                self._metrics.lag.remove(assignment.topic, str(assignment.partition))
        self._metrics.partitions.set(len(self._assigned))

    def _acknowledge(self, assignment: Assignment, note: str | None, error: KafkaError | None) -> None:
        place, done = self._notes.get(assignment, (None, None))
        if place is None or done is None or place.metadata != note or not done.set_running_or_notify_cancel():
            return
        self._notes.pop(assignment, None)
        if error:
            done.set_exception(KafkaException(error))
        else:
            done.set_result(None)

    def _committed(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        for p in partitions:
            assignment = self._assigned.get((p.topic, p.partition))
            if assignment:
                self._acknowledge(assignment, p.metadata, p.error or error)
                if not p.error and not error:
                    assignment.committed = p.offset
        if error and error.code() != KafkaError._NO_OFFSET:
            # The next commit says the same and more.
            self._complaints.warn(f"offsets were not committed yet: {error}")
            self._metrics.failures.labels("kafka").inc()

    def _failed(self, error: KafkaError) -> None:
        hint = _OTHER_STRATEGY if error.code() == KafkaError.INCONSISTENT_GROUP_PROTOCOL else ""
        self._complaints.warn(f"kafka: {error.str()}{hint}")
        self._metrics.failures.labels("kafka").inc()


def _named(partitions: Sequence[TopicPartition]) -> str:
    return ", ".join(f"{p.topic} [{p.partition}]" for p in partitions) or "nothing"
