import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest

from audit_stream.chain import Event
from audit_stream.errors import AuditStreamError, Refused, Unreachable
from audit_stream.submission import SLICE_BYTES, SLICE_EVENTS, Batch, Receipt, Submission
from tests.unit.drafts import drafted, linked


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A submission holds a future, and that belongs to a running loop."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


def submission(events: int, payload_bytes: int = 0) -> Submission:
    return Submission([drafted('{"p":"' + "x" * payload_bytes + '"}') for _ in range(events)])


def receipts_of(made: Submission) -> list[Event]:
    events = linked(made.drafts)
    made.receipts = {place: Receipt(event, replayed=False) for place, event in enumerate(events)}
    return events


SHAPES: dict[str, list[tuple[int, int]]] = {
    "singles": [(1, 0)] * 100,
    "as many as fit": [(SLICE_EVENTS, 0)] * 3,
    "one more than fits": [(SLICE_EVENTS + 1, 0)] * 3,
    "a large one between small ones": [(3, 0), (500, 0), (3, 0), (3, 0)],
    "heavy ones": [(1, SLICE_BYTES // 2), (1, SLICE_BYTES // 2), (1, SLICE_BYTES * 3), (2, 10)],
    "odd ones": [(n % 7 + 1, n * 300) for n in range(40)],
    "one": [(1, 0)],
    "none": [],
}


@pytest.mark.parametrize("name", SHAPES)
@on_a_loop
async def test_slices_hold_every_submission_whole_once_and_in_order(name: str) -> None:
    submissions = [submission(events, payload) for events, payload in SHAPES[name]]
    slices = list(Batch(submissions).slices())
    assert [made for part in slices for made in part.submissions] == submissions
    assert all(part.submissions for part in slices)


@pytest.mark.parametrize("name", SHAPES)
@on_a_loop
async def test_a_slice_is_over_its_limits_only_when_it_is_a_single_submission(name: str) -> None:
    slices = list(Batch([submission(events, payload) for events, payload in SHAPES[name]]).slices())
    for part in slices:
        events = sum(len(made.drafts) for made in part.submissions)
        size_bytes = sum(made.size_bytes for made in part.submissions)
        assert len(part.submissions) == 1 or (events <= SLICE_EVENTS and size_bytes <= SLICE_BYTES)


@on_a_loop
async def test_slices_are_filled_as_far_as_they_go() -> None:
    sizes = [len(part.submissions) for part in Batch([submission(1) for _ in range(40)]).slices()]
    assert sizes == [16, 16, 8]


# --- one key twice in a request


@on_a_loop
async def test_two_equal_drafts_under_one_key_become_one_event_with_two_receipts() -> None:
    first, between = drafted('{"a":1}', idempotency_key="k"), drafted('{"b":2}')
    made = Submission([first, between, first._replace(timestamp=b"2026-05-15T03:14:15.000+00:00")])
    assert made.drafts == [first, between]
    events = receipts_of(made)
    made.answer()
    assert [receipt.event for receipt in made.settled.result()] == [events[0], events[1], events[0]]


@on_a_loop
async def test_two_different_drafts_under_one_key_are_refused_by_the_place_of_the_second() -> None:
    with pytest.raises(Refused) as caught:
        Submission([drafted(), drafted('{"a":1}', idempotency_key="k"), drafted('{"a":2}', idempotency_key="k")])
    assert (caught.value.index, caught.value.field) == (2, "idempotency_key")
    assert "'k'" in caught.value.detail


@on_a_loop
async def test_equal_drafts_without_a_key_stay_two_events() -> None:
    assert len(Submission([drafted(), drafted()]).drafts) == 2


# --- answers


@on_a_loop
async def test_what_is_pending_is_what_has_no_receipt_in_the_order_it_came() -> None:
    first, second = submission(2), submission(2)
    batch = Batch([first, second])
    assert batch.pending() == [(first, 0), (first, 1), (second, 0), (second, 1)]
    receipts_of(first)
    second.receipts[0] = first.receipts[0]
    assert batch.pending() == [(second, 1)]


@on_a_loop
async def test_a_dropped_submission_is_told_and_leaves_its_neighbours_pending() -> None:
    first, second = submission(1), submission(1)
    batch = Batch([first, second])
    batch.drop(first, Refused("no"))
    assert batch.pending() == [(second, 0)]
    assert isinstance(first.settled.exception(), Refused)
    assert not second.settled.done()


@on_a_loop
async def test_a_failed_batch_tells_only_those_that_have_no_answer_yet() -> None:
    answered, waiting = submission(1), submission(1)
    events = receipts_of(answered)
    answered.answer()
    Batch([answered, waiting]).fail(Unreachable("away"))
    assert answered.settled.result()[0].event == events[0]
    assert isinstance(waiting.settled.exception(), AuditStreamError)


@on_a_loop
async def test_a_producer_that_has_gone_away_disturbs_neither_answer_nor_failure() -> None:
    made = submission(1)
    receipts_of(made)
    made.settled.cancel()
    made.answer()
    made.fail(Unreachable("away"))
    assert made.settled.cancelled()
