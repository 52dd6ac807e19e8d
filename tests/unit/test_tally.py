"""Counting: what several processes of one server add up to."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from audit_stream.tally import MAX_SOURCES, OTHERS, Board, Tally
from tests.harness import clean_environ

KINDS = ["other", "request_denied"]


@pytest.fixture
def boards() -> Iterator[list[Board]]:
    """The same board, as a parent and its two workers map it."""
    with Board.shared(KINDS, 2) as parent:
        yield [parent, *(Board(KINDS, workers=2, fd=parent.fd) for _ in range(2))]


def test_each_worker_reads_what_all_of_them_counted(boards: list[Board]) -> None:
    parent, first, second = boards
    for place, board in enumerate((first, second)):
        tally = Tally(board, place)
        tally.event(b"other", b"s")
        tally.event(b"request_denied", "café".encode())
        tally.count("lost_races")
        tally.failed("too_busy")
        tally.batch_events.observe(3)
        tally.hold("queue_events", 7)
    for board in boards:
        assert list(board.events()) == [(b"other", b"s", 2), (b"request_denied", "café".encode(), 2)]
        assert (board.total("lost_races"), board.total("failed too_busy"), board.total("queue_events")) == (2, 2, 14)
        assert board.histogram("batch_events").sum == 6
    assert parent.token == first.token == second.token


def test_a_worker_s_successor_counts_on_and_holds_nothing_of_what_it_held(boards: list[Board]) -> None:
    parent, first, second = boards
    Tally(first, 0).hold("sse_subscribers", 3)
    died = Tally(second, 1)
    died.hold("sse_subscribers", 4)
    died.event(b"other", b"s")
    parent.clear_gauges(1)
    assert (parent.total("sse_subscribers"), next(parent.events())[2]) == (3, 1)
    Tally(Board(KINDS, workers=2, fd=parent.fd), 1).event(b"other", b"s")
    assert (parent.total("sse_subscribers"), next(parent.events())[2]) == (3, 2)


def test_sources_beyond_the_hundredth_are_counted_together_in_all_workers(boards: list[Board]) -> None:
    _, first, second = boards
    one, other = Tally(first, 0), Tally(second, 1)
    for number in range(MAX_SOURCES + 5):
        (one if number % 2 else other).event(b"other", b"s%d" % number)
    one.event(b"other", b"s%d" % (MAX_SOURCES + 1))
    other.event(b"other", OTHERS)
    found = {source: count for _, source, count in first.events()}
    assert found.pop(OTHERS) == 7
    assert found == {b"s%d" % number: 1 for number in range(MAX_SOURCES)}
    assert list(second.events()) == list(first.events())


def test_the_longest_source_is_counted_by_its_name() -> None:
    tally, source = Tally(), ("\N{OLD ITALIC LETTER A}" * 256).encode()
    tally.event(b"other", source)
    assert list(tally.board.events()) == [(b"other", source, 1)]


def test_a_kind_that_is_not_known_is_counted_all_the_same() -> None:
    tally = Tally(Board(KINDS))
    tally.event(b"imported", b"s")
    assert list(tally.board.events()) == [(OTHERS, b"s", 1)]


def test_a_bucket_takes_what_is_at_most_its_bound() -> None:
    tally = Tally()
    for size in (1, 2, 3, 4, 2048, 2049, 5000):
        tally.batch_events.observe(size)
    bounds, counts, total = tally.board.histogram("batch_events")
    taken = {str(bound): count for bound, count in zip((*bounds, "beyond"), counts, strict=True) if count}
    assert taken == {"1": 1, "2": 1, "4": 2, "2048": 1, "beyond": 2}
    assert total == 9107


def test_a_note_is_whole_whoever_reads_it_and_one_that_does_not_fit_is_refused(boards: list[Board]) -> None:
    parent, first, second = boards
    assert parent.note == b""
    first.change_note(lambda _: b"a longer one")
    second.change_note(lambda note: note[2:].replace(b"longer one", b"short"))
    assert parent.note == first.note == b"short"
    with pytest.raises(ValueError, match="too long"):
        first.change_note(lambda _: b"x" * 20_000)
    assert second.note == b"short"


_OTHER_PROCESS = """
import sys
from audit_stream.tally import Board, Tally
tally = Tally(Board(["other", "request_denied"], workers=2, fd=int(sys.argv[1])), 1)
for number in range(80):
    tally.event(b"other", b"s%d" % number)
"""


def test_a_source_is_named_once_when_two_processes_meet_it_at_the_same_time() -> None:
    with Board.shared(KINDS, 2) as board:
        child = subprocess.Popen(
            [sys.executable, "-c", _OTHER_PROCESS, str(board.fd)], pass_fds=[board.fd], env=clean_environ()
        )
        own = Tally(board, 0)
        for number in reversed(range(80)):
            own.event(b"other", b"s%d" % number)
        assert child.wait(30) == 0
        assert {source: count for _, source, count in board.events()} == {b"s%d" % n: 2 for n in range(80)}
