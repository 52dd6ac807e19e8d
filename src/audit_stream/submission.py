"""What producers handed in: submissions, and the batches they are appended in."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from audit_stream.chain import Event, Head, link_hash
from audit_stream.errors import Refused
from audit_stream.event import Draft
from audit_stream.scripts import Appended

SLICE_EVENTS = 16
"""The script hashes 16 typical events in 3 ms, and Redis does nothing else meanwhile."""
SLICE_BYTES = 64 * 1024


class Receipt(NamedTuple):
    event: Event
    replayed: bool
    """It was appended before, under the same idempotency key."""


class Submission:
    """The drafts of one producer's request: appended whole or not at all."""

    committed: Sequence[int] = ()
    """Commit times to restore, in Unix milliseconds, one per draft; without them it is now."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        """Raises Refused when a source uses an idempotency key for two different drafts; two equal ones become one."""
        self.drafts: list[Draft] = []
        self.places: list[int] = []
        self.keys: dict[tuple[bytes, bytes], int] = {}
        for index, draft in enumerate(drafts):
            place = len(self.drafts)
            if draft.once:
                place = self.keys.setdefault((draft.source, draft.once), place)
            if place == len(self.drafts):
                self.drafts.append(draft)
            elif not draft.says_the_same_as(self.drafts[place]):
                raise key_conflict(draft).within_batch(index)
            self.places.append(place)
        self.receipts: dict[int, Receipt] = {}
        self.size_bytes = sum(draft.size_bytes for draft in self.drafts)
        self.settled: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()

    def answer(self) -> None:
        if not self.settled.done():  # the producer may have gone away
            self.settled.set_result([self.receipts[place] for place in self.places])

    def fail(self, error: Exception) -> None:
        if not self.settled.done():
            self.settled.set_exception(error)


def key_conflict(draft: Draft) -> Refused:
    return Refused(
        f"idempotency_key: {draft.once.decode()!r} was used for an event with other content; nothing was written",
        field="idempotency_key",
    )


class Batch:
    """Submissions that go to Redis in one call."""

    def __init__(self, submissions: Sequence[Submission]) -> None:
        self.submissions = list(submissions)

    @property
    def committed(self) -> Sequence[int]:
        """Commit times to restore: of the one submission, since those that restore any share no batch."""
        return self.submissions[0].committed if self.submissions else ()

    def pending(self) -> list[tuple[Submission, int]]:
        """The drafts still to be appended, as (submission, place in it), in order."""
        return [
            (submission, place)
            for submission in self.submissions
            for place in range(len(submission.drafts))
            if place not in submission.receipts
        ]

    def drop(self, submission: Submission, error: Exception) -> None:
        self.submissions.remove(submission)
        submission.fail(error)

    def answer(self) -> None:
        for submission in self.submissions:
            submission.answer()

    def fail(self, error: Exception) -> None:
        for submission in self.submissions:
            submission.fail(error)

    def slices(self) -> Iterator["Batch"]:
        """Parts small enough for the script to hash, none of which splits a submission."""
        part: list[Submission] = []
        events = size_bytes = 0
        for submission in self.submissions:
            events += len(submission.drafts)
            size_bytes += submission.size_bytes
            if part and (events > SLICE_EVENTS or size_bytes > SLICE_BYTES):
                yield Batch(part)
                part, events, size_bytes = [], len(submission.drafts), submission.size_bytes
            part.append(submission)
        if part:
            yield Batch(part)


def link(head: Head, drafts: Sequence[Draft]) -> list[Event]:
    """Make the events that follow `head`."""
    event_id, prev = head
    events = []
    for timestamp, kind, source, payload, _, _ in drafts:
        event_id += 1
        hash_ = link_hash(event_id, timestamp, kind, source, payload, prev)
        events.append(Event(event_id, timestamp, kind, source, payload, prev, hash_))
        prev = hash_
    return events


def as_hashed(drafts: Sequence[Draft], reply: Appended) -> list[Event]:
    """The events that the script made of the drafts."""
    prevs = [reply.prev_hash, *reply.hashes]
    return [
        Event(reply.first_id + i, *draft[:4], prevs[i], hash_)
        for i, (draft, hash_) in enumerate(zip(drafts, reply.hashes, strict=True))
    ]
