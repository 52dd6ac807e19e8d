"""The chain against a model of it: a list of events and a dict of the sources' idempotency keys."""

import asyncio
from collections.abc import Coroutine
from itertools import count
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from audit_stream.appender import Appender
from audit_stream.chain import Event
from audit_stream.errors import Refused
from audit_stream.event import Draft
from audit_stream.query import Filter, fetch, select
from audit_stream.settings import Hashing
from audit_stream.stream import Stream
from audit_stream.submission import Receipt
from tests.conformance.stores import Chain, Store, drafted

T = TypeVar("T")
_numbers = count(1)


class Asked(NamedTuple):
    """What a producer asks for, small enough to repeat itself by chance."""

    text: str
    kind: str
    source: str
    key: str | None

    @property
    def used(self) -> tuple[str, str] | None:
        return None if self.key is None else (self.source, self.key)

    def drafted(self) -> Draft:
        return drafted(self.text, kind=self.kind, source=self.source, key=self.key)

    def content(self) -> tuple[object, ...]:
        return self[:3]


asked = st.builds(
    Asked,
    text=st.sampled_from(["a", "b"]),
    kind=st.sampled_from(["other", "flag_swapped"]),
    source=st.sampled_from(["s", "é"]),
    key=st.none() | st.sampled_from(["k1", "k2", "k3", "k4"]),
)
replicas = st.sampled_from([0, 1])


class Replicas(RuleBasedStateMachine):
    """Two replicas of one chain, restarted at any time. Set `store` and `hashing` on a subclass."""

    store: Store
    hashing: Hashing

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.events: list[Event] = []
        self.keys: dict[tuple[str, str], tuple[Asked, Event]] = {}

    @initialize()
    def open(self) -> None:
        self.chain = Chain(self.store, f"model.{id(self)}.{next(_numbers)}", self.hashing)
        self.replicas = [self.run(self._opened()) for _ in range(2)]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def _opened(self) -> tuple[Stream, Appender]:
        stream = Stream(self.store.clients(), self.chain.name)
        return stream, await Appender(stream, hashing=self.hashing).__aenter__()

    async def _closed(self, replica: tuple[Stream, Appender]) -> None:
        stream, appender = replica
        await appender.__aexit__()
        await stream.close()

    # --- the model

    def conflicts(self, batch: list[Asked]) -> bool:
        first: dict[tuple[str, str], Asked] = {key: request for key, (request, _) in self.keys.items()}
        return any(
            request.used is not None and first.setdefault(request.used, request).content() != request.content()
            for request in batch
        )

    def record(self, batch: list[Asked], receipts: list[Receipt]) -> None:
        """Check the receipts against the model, and grow it."""
        known = set(self.keys)
        for request, receipt in zip(batch, receipts, strict=True):
            if request.used in self.keys:
                assert receipt.event == self.keys[request.used][1]
                assert receipt.replayed == (request.used in known)
                continue
            assert not receipt.replayed
            event = receipt.event
            assert event.event_id == len(self.events) + 1
            assert tuple(event[1:5])[1:] == tuple(request.drafted()[1:4])
            self.events.append(event)
            if request.used is not None:
                self.keys[request.used] = (request, event)

    # --- what happens

    @rule(replica=replicas, batch=st.lists(asked, min_size=1, max_size=5))
    def append(self, replica: int, batch: list[Asked]) -> None:
        work = self.replicas[replica][1].append([request.drafted() for request in batch])
        if self.conflicts(batch):
            with pytest.raises(Refused):
                self.run(work)
        else:
            self.record(batch, self.run(work))

    @precondition(lambda self: self.keys)
    @rule(replica=replicas, data=st.data())
    def retry(self, replica: int, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.keys)).map(lambda key: self.keys[key][0]))
        self.append(replica, [request])

    @precondition(lambda self: self.keys)
    @rule(replica=replicas, data=st.data())
    def retry_with_other_content(self, replica: int, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.keys)).map(lambda key: self.keys[key][0]))
        self.append(replica, [request._replace(key=None), request._replace(text="other content")])

    @rule(batches=st.lists(st.lists(asked.map(lambda a: a._replace(key=None)), min_size=1, max_size=3), max_size=6))
    def append_at_once(self, batches: list[list[Asked]]) -> None:
        async def all_at_once() -> list[list[Receipt]]:
            return await asyncio.gather(
                *(
                    self.replicas[number % 2][1].append([request.drafted() for request in batch])
                    for number, batch in enumerate(batches)
                )
            )

        answers = list(zip(batches, self.run(all_at_once()), strict=True))
        for batch, receipts in sorted(answers, key=lambda answer: answer[1][0].event.event_id):
            self.record(batch, receipts)

    @rule(replica=replicas)
    def restart(self, replica: int) -> None:
        self.run(self._closed(self.replicas[replica]))
        self.replicas[replica] = self.run(self._opened())

    @rule()
    def redis_forgets_its_scripts(self) -> None:
        self.store.raw.script_flush()

    @rule(
        replica=replicas,
        kind=st.none() | st.just("other"),
        source=st.none() | st.just("é"),
        after=st.none() | st.integers(0, 20),
        limit=st.integers(1, 20),
    )
    def query(self, replica: int, kind: str | None, source: str | None, after: int | None, limit: int) -> None:
        stream = self.replicas[replica][0]

        async def found() -> list[Event]:
            selection = await select(stream, Filter(kind, source, after=after, limit=limit))
            return [event async for page in fetch(stream, selection.event_ids) for event in page]

        matching = [
            event
            for event in self.events
            if (kind is None or kind.encode() == event.kind)
            and (source is None or source.encode() == event.source)
            and event.event_id > (after or 0)
        ]
        assert self.run(found()) == (matching[-limit:] if after is None else matching[:limit])

    def teardown(self) -> None:
        try:
            if hasattr(self, "replicas"):
                assert self.run(self.chain.stored()) == self.events
                for replica in self.replicas:
                    self.run(self._closed(replica))
                self.chain.forget_everything()
        finally:
            self.runner.close()


@pytest.mark.parametrize("hashing", ["checked", "script"])
def test_whatever_two_replicas_do_the_chain_is_the_models(real: Store, hashing: Hashing) -> None:
    machine = type("Machine", (Replicas,), {"store": real, "hashing": hashing})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
