"""Commit times while indexes are rebuilt: what the old index says where that can be true, else an estimate."""

from audit_stream.chain import Event
from audit_stream.reindex import CommitTimes

SECOND_MS = 1000


def event(event_id: int, second: int) -> Event:
    return Event(event_id, b"1970-01-01T00:00:%02dZ" % second, b"other", b"s", b"{}", b"", b"")


def test_a_known_time_before_an_estimate_is_passed_over_so_that_commit_times_never_run_back() -> None:
    times = CommitTimes(now_ms=60 * SECOND_MS)
    # Nothing is known of #1 or of what follows, so its own timestamp is the estimate.
    assert times.of(event(1, 5)) == 5 * SECOND_MS
    times.learn([(b"3000-2", 2), (b"9000-3", 3)])
    assert times.of(event(2, 4)) == 5 * SECOND_MS  # neither 3000, nor its own timestamp
    assert times.of(event(3, 1)) == 9 * SECOND_MS
    assert times.estimated == 2


def test_an_estimate_lies_between_its_neighbours() -> None:
    times = CommitTimes(now_ms=60 * SECOND_MS)
    times.learn([(b"2000-1", 1), (b"4000-3", 3)])
    assert [times.of(event(1, 9)), times.of(event(2, 9)), times.of(event(3, 9))] == [2000, 2000, 4000]
