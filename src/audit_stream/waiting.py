"""Submissions that wait for the next batch: bounded, first come, first served."""

from collections import deque

from audit_stream.errors import Pushback
from audit_stream.submission import Batch, Submission
from audit_stream.tally import Tally

BATCH_EVENTS = 512
BATCH_BYTES = 1024 * 1024
QUEUE_EVENTS = 8 * 1024
QUEUE_BYTES = 64 * 1024 * 1024


class Waiting:
    """The queue of one appender."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._submissions: deque[Submission] = deque()
        self.events = 0
        self._size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._submissions)

    def put(self, submission: Submission) -> None:
        """Raises Pushback when too much waits already. What is larger than the queue passes when nothing else waits."""
        events, size_bytes = self.events + len(submission.drafts), self._size_bytes + submission.size_bytes
        if self._submissions and (events > QUEUE_EVENTS or size_bytes > QUEUE_BYTES):
            raise Pushback(f"{self.events} events are waiting already; nothing of this request was written")
        self._submissions.append(submission)
        self.events, self._size_bytes = events, size_bytes
        self._tally.queued(events, size_bytes)

    def next_batch(self) -> Batch:
        """Take as many as fit into one call, at least one if there is one."""
        taken: list[Submission] = []
        events = size_bytes = 0
        keys: set[tuple[bytes, bytes]] = set()
        while self._submissions:
            submission = self._submissions[0]
            events += len(submission.drafts)
            size_bytes += submission.size_bytes
            full = events > BATCH_EVENTS or size_bytes > BATCH_BYTES
            # A source's key twice: the later one waits for the next batch, and there finds the earlier one's event.
            alone = submission.committed or (taken and taken[0].committed)
            if taken and (full or alone or not keys.isdisjoint(submission.keys)):
                break
            keys.update(submission.keys)
            taken.append(self._submissions.popleft())
            self.events -= len(submission.drafts)
            self._size_bytes -= submission.size_bytes
        self._tally.queued(self.events, self._size_bytes)
        return Batch(taken)

    def fail(self, error: Exception) -> None:
        """Tell everyone who waits."""
        for submission in self._submissions:
            submission.fail(error)
        self._submissions.clear()
        self.events = self._size_bytes = 0
        self._tally.queued(0, 0)
