"""The invariants, checked again after each injection: only what is new since the last time is read."""

import json
from collections.abc import Iterable

from audit_stream.chain import START, Event, Head, verify
from tests.faults.evidence import check_receipts, stored
from tests.faults.load import Answer


class Ledger:
    """What is stored, as read past the code under test."""

    def __init__(self, chain: str) -> None:
        self._chain = chain
        self._counted: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """Another Redis holds the chain now: everything is to be read and checked again."""
        self.events: list[Event] = []
        self._places: dict[str, list[tuple[int, int, int]]] = {}
        self._checked: set[str] = set()

    def check(self, redis_url: str, answers: Iterable[Answer]) -> int:
        """Ids go on without a gap, links hold, every batch is whole and there once, every answer is stored as it says.

        Returns how many events the answers speak of that were not counted before.
        """
        head = Head(self.events[-1].event_id, self.events[-1].hash) if self.events else START
        new = stored(redis_url, self._chain, after=head.event_id)
        verdict = verify(new, start=head)
        assert verdict.valid, verdict.reason
        self.events += new
        touched: dict[str, list[tuple[int, int, int]]] = {}
        for event in new:
            payload = json.loads(event.payload)
            place = (event.event_id, payload["place"], payload["size"])
            touched[payload["request"]] = self._places.setdefault(payload["request"], [])
            touched[payload["request"]].append(place)
        for request, found in touched.items():
            first, _, size = found[0]
            assert found == [(first + place, place, size) for place in range(size)], (
                f"{request} is not whole, or not once: {found}"
            )
        acknowledged = 0
        for answer in answers:
            if answer.request in self._checked:
                continue
            self._checked.add(answer.request)
            acknowledged += len(answer.events) if answer.request not in self._counted else 0
            self._counted.add(answer.request)
            ids = [event["event_id"] for event in answer.events]
            held = [place[0] for place in self._places.get(answer.request, [])]
            assert ids == held, f"{answer.request} was answered as {ids}, and is stored as {held}"
            check_receipts(self.events, answer.events)
        return acknowledged
