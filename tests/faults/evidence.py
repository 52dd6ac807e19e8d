"""What is stored, read past the code under test, and held against what producers were answered."""

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import redis

from audit_stream.chain import Event, parse, verify
from audit_stream.stream import Stream
from audit_stream.verifier import Report, Verifier
from tests.faults.load import Answer

FIELDS = (b"timestamp", b"kind", b"source", b"payload", b"prev_hash", b"hash")


def stored(redis_url: str, chain: str, *, after: int = 0) -> list[Event]:
    """Every entry of the chain's stream behind event `after`, in its order."""
    events: list[Event] = []
    with redis.Redis.from_url(redis_url) as client:
        start = f"({after}-0"
        while entries := client.xrange(f"{{{chain}}}:events", start, "+", count=2000):
            for entry_id, fields in entries:
                number, _, sequence = entry_id.partition(b"-")
                assert sequence == b"0"
                assert tuple(fields) == FIELDS
                events.append(Event(int(number), *fields.values()))
            start = f"({entries[-1][0].decode()}"
    return events


def report(redis_url: str, chain: str) -> Report:
    """The verifier's own report: the chain, its end, and whether the indexes agree."""

    async def ask() -> Report:
        stream = Stream.at(redis_url, chain)
        try:
            return await Verifier(stream).verify()
        finally:
            await stream.close()

    return asyncio.run(ask())


def check_sound(redis_url: str, chain: str) -> list[Event]:
    """Ids 1, 2, 3 … without a gap, every link holds, indexes agree. Returns the events."""
    events = stored(redis_url, chain)
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    assert verify(events).valid, verify(events).reason
    found = report(redis_url, chain)
    assert (found.verdict.valid, found.verdict.checked, found.indexes) == (True, len(events), "agree"), found.verdict
    return events


def check_receipts(events: Sequence[Event], receipts: Iterable[dict[str, Any]]) -> None:
    """Each receipt is, byte for byte, the event stored under its id."""
    for receipt in receipts:
        assert parse(json.dumps(receipt)) == events[receipt["event_id"] - 1]


def check_load(redis_url: str, chain: str, answers: Sequence[Answer]) -> list[Event]:
    """All that was answered is stored as its receipt says, once; nothing half; and nothing else is there."""
    events = check_sound(redis_url, chain)
    places: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for event in events:
        payload = json.loads(event.payload)
        places[payload["request"]].append((event.event_id, payload["place"], payload["size"]))
    for request, found in places.items():
        first, _, size = found[0]
        assert found == [(first + place, place, size) for place in range(size)], f"{request} is not whole, or not once"
    # Producers ask until they are answered, so what was stored and what was answered are the same requests.
    assert sorted(places) == sorted(answer.request for answer in answers)
    for answer in answers:
        assert [event["event_id"] for event in answer.events] == [place[0] for place in places[answer.request]]
        check_receipts(events, answer.events)
    return events


def turns(events: Sequence[Event]) -> int:
    """How often the chain passes from one source to another: many turns mean that they did race."""
    return sum(one.source != other.source for one, other in itertools.pairwise(events))
