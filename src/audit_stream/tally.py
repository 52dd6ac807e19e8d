"""What the processes of one server count, in memory that they share.

It is one file without a name, which every process maps. So what a worker counted outlives it, its successor
counts on from there, and whichever worker is asked answers for all of them. Each number has one writer: counting
takes no lock, and about 0.1 µs.
"""

import fcntl
import mmap
import os
import struct
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

from audit_stream.kinds import BUILT_IN

MAX_SOURCES = 100
"""Each source is a series in everyone's Prometheus, so those that come later are counted together."""
OTHERS = b"(others)"

Failure = Literal["refused", "too_busy", "unreachable", "chain_broken", "hash_mismatch", "fault"]
Outcome = Literal["valid", "broken", "unknown"]
Counter = Literal["replays", "lost_races", "sse_drops", "stalled_readers"]
Gauge = Literal["queue_events", "queue_bytes", "sse_subscribers"]
Timing = Literal["append_seconds", "batch_events", "redis_append_seconds", "redis_read_seconds"]

FAILURES: tuple[Failure, ...] = get_args(Failure)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
GAUGES: tuple[Gauge, ...] = get_args(Gauge)
_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
HISTOGRAMS: dict[Timing, tuple[float, ...]] = {
    "append_seconds": _SECONDS,
    "batch_events": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    "redis_append_seconds": _SECONDS,
    "redis_read_seconds": _SECONDS,
}

_NUMBERS = [*get_args(Counter), *(f"failed {name}" for name in FAILURES), *(f"verified {name}" for name in OUTCOMES)]
_PLACES = {name: place for place, name in enumerate([*_NUMBERS, *GAUGES])}
_QUEUE_EVENTS, _QUEUE_BYTES = _PLACES["queue_events"], _PLACES["queue_bytes"]
_FIRST_BUCKETS: dict[Timing, int] = {}
_at = len(_PLACES)
for _name, _bounds in HISTOGRAMS.items():
    _FIRST_BUCKETS[_name] = _at
    _at += len(_bounds) + 2  # a bucket for what is beyond the last bound, and the sum
_FIRST_EVENTS = _at

# In front of the numbers: a token, a note with its length in front, and the sources with theirs.
_TOKEN_BYTES = 16
_NOTE_AT, _NOTE_BYTES = _TOKEN_BYTES, 16_384
_COUNT_AT = _NOTE_AT + _NOTE_BYTES
_NAMES_AT, _NAME_BYTES = _COUNT_AT + 8, 2 + 4 * 256
_NUMBERS_AT = -(-(_NAMES_AT + MAX_SOURCES * _NAME_BYTES) // 8) * 8


class Buckets(NamedTuple):
    """A histogram as it is read: how many observations were at most each bound, and above the one before."""

    bounds: tuple[float, ...]
    counts: Sequence[float]
    """One more than there are bounds: the last counts what is beyond them."""
    sum: float


class Histogram:
    """One process' observations of one quantity."""

    __slots__ = ("_bounds", "_first", "_numbers", "_sum")

    def __init__(self, numbers: "memoryview[float]", name: Timing) -> None:
        self._numbers, self._bounds, self._first = numbers, HISTOGRAMS[name], _FIRST_BUCKETS[name]
        self._sum = self._first + len(self._bounds) + 1

    def observe(self, value: float) -> None:
        self._numbers[self._first + bisect_left(self._bounds, value)] += 1
        self._numbers[self._sum] += value


class Board:
    """The numbers of all processes of a server. Each writes its own through a `Tally`, and reads all."""

    def __init__(self, kinds: Sequence[str] = BUILT_IN, *, workers: int = 1, fd: int = -1) -> None:
        """Map what `shared` made for the same kinds and workers; without a file, memory of this process alone."""
        self.fd = fd
        self.kinds = [kind.encode() for kind in kinds] + [OTHERS]
        self._row = MAX_SOURCES + 1
        self._known: dict[bytes, int] = {}
        size = _FIRST_EVENTS + len(self.kinds) * self._row
        if fd >= 0 and os.fstat(fd).st_size == 0:
            os.ftruncate(fd, _NUMBERS_AT + 8 * size * workers)
        self._memory = mmap.mmap(fd, _NUMBERS_AT + 8 * size * workers)
        if not any(self._memory[:_TOKEN_BYTES]):
            self._memory[:_TOKEN_BYTES] = os.urandom(_TOKEN_BYTES)
        doubles = memoryview(self._memory)[_NUMBERS_AT:].cast("d")
        self.blocks = [doubles[start : start + size] for start in range(0, size * workers, size)]

    @classmethod
    @contextmanager
    def shared(cls, kinds: Sequence[str], workers: int) -> Iterator["Board"]:
        """A board on a file to hand to child processes by its descriptor, `fd`."""
        if sys.platform == "linux":  # where no directory need be writable
            file = os.fdopen(os.memfd_create("audit-stream"), "w+b")
        else:
            file = tempfile.TemporaryFile()  # noqa: SIM115
        with file:
            yield cls(kinds, workers=workers, fd=file.fileno())

    @property
    def token(self) -> bytes:
        """Names this server, all of its processes together, for as long as it runs."""
        return bytes(self._memory[:_TOKEN_BYTES]).hex().encode()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self.fd < 0:
            yield
            return
        fcntl.lockf(self.fd, fcntl.LOCK_EX)  # the kernel opens it when a process dies
        try:
            yield
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)

    # --- a note, which all processes share

    @property
    def note(self) -> bytes:
        with self._alone():
            return self._read_note()

    def change_note(self, change: Callable[[bytes], bytes]) -> None:
        """Put what `change` makes of the note in its place. No other process changes it in between."""
        with self._alone():
            text = change(self._read_note())
            if len(text) > _NOTE_BYTES - 4:
                raise ValueError(f"a note of {len(text)} bytes is too long")
            struct.pack_into(f"I{len(text)}s", self._memory, _NOTE_AT, len(text), text)

    def _read_note(self) -> bytes:
        (length,) = struct.unpack_from("I", self._memory, _NOTE_AT)
        return bytes(self._memory[_NOTE_AT + 4 : _NOTE_AT + 4 + length])

    # --- sources

    def sources(self) -> list[bytes]:
        """The sources that are counted by name, in the order in which they came."""
        (count,) = struct.unpack_from("I", self._memory, _COUNT_AT)
        found = []
        for at in range(_NAMES_AT, _NAMES_AT + count * _NAME_BYTES, _NAME_BYTES):
            (length,) = struct.unpack_from("H", self._memory, at)
            found.append(bytes(self._memory[at + 2 : at + 2 + length]))
        return found

    def place_of(self, source: bytes) -> int:
        """Where the source is counted; the place behind all others when it has none of its own."""
        if source not in self._known and len(self._known) < MAX_SOURCES:
            self._make_known(source)
        return self._known.get(source, MAX_SOURCES)

    def _make_known(self, source: bytes) -> None:
        with self._alone():
            self._known = {name: place for place, name in enumerate(self.sources())}
            place = len(self._known)
            if source not in self._known and place < MAX_SOURCES and source != OTHERS:
                at = _NAMES_AT + place * _NAME_BYTES
                struct.pack_into(f"H{len(source)}s", self._memory, at, len(source), source)
                # Counted in only now that its name stands: a process that dies in between leaves nothing behind.
                struct.pack_into("I", self._memory, _COUNT_AT, place + 1)
                self._known[source] = place

    # --- all processes together

    def total(self, name: str) -> float:
        return sum(block[_PLACES[name]] for block in self.blocks)

    def histogram(self, name: Timing) -> Buckets:
        bounds, first = HISTOGRAMS[name], _FIRST_BUCKETS[name]
        length = len(bounds) + 2
        *counts, total = map(sum, zip(*(block[first : first + length] for block in self.blocks), strict=True))
        return Buckets(bounds, counts, total)

    def events(self) -> Iterator[tuple[bytes, bytes, float]]:
        """(kind, source, how many were appended), where there were any."""
        sources = [*self.sources(), OTHERS]
        places = [*range(len(sources) - 1), MAX_SOURCES]
        for row, kind in enumerate(self.kinds):
            first = _FIRST_EVENTS + row * self._row
            totals = list(map(sum, zip(*(block[first : first + self._row] for block in self.blocks), strict=True)))
            yield from ((kind, source, totals[i]) for source, i in zip(sources, places, strict=True) if totals[i])

    def clear_gauges(self, worker: int) -> None:
        """What a worker held when it ended, it holds no longer."""
        for name in GAUGES:
            self.blocks[worker][_PLACES[name]] = 0

    def place_of_events(self, kind: bytes, source: bytes) -> int:
        row = self.kinds.index(kind) if kind in self.kinds else len(self.kinds) - 1
        return _FIRST_EVENTS + row * self._row + self.place_of(source)


class Tally:
    """What one process counts."""

    def __init__(self, board: Board | None = None, worker: int = 0) -> None:
        self.board = board or Board()
        self.worker = worker
        self.board.clear_gauges(worker)
        self._numbers = self.board.blocks[worker]
        self._event_places: dict[tuple[bytes, bytes], int] = {}
        self.append_seconds = Histogram(self._numbers, "append_seconds")
        self.batch_events = Histogram(self._numbers, "batch_events")
        self.redis_append_seconds = Histogram(self._numbers, "redis_append_seconds")
        self.redis_read_seconds = Histogram(self._numbers, "redis_read_seconds")

    def count(self, name: Counter) -> None:
        self._numbers[_PLACES[name]] += 1

    def failed(self, name: Failure) -> None:
        self._numbers[_PLACES[f"failed {name}"]] += 1

    def verified(self, outcome: Outcome) -> None:
        self._numbers[_PLACES[f"verified {outcome}"]] += 1

    def hold(self, name: Gauge, value: float) -> None:
        """How much of this there is now."""
        self._numbers[_PLACES[name]] = value

    def queued(self, events: int, size_bytes: int) -> None:
        """How many events wait now. Each append says so twice, hence no look-ups."""
        self._numbers[_QUEUE_EVENTS] = events
        self._numbers[_QUEUE_BYTES] = size_bytes

    def event(self, kind: bytes, source: bytes) -> None:
        """One more event of theirs is on the chain."""
        place = self._event_places.get((kind, source))
        if place is None:
            place = self.board.place_of_events(kind, source)
            if len(self._event_places) < _REMEMBERED:
                self._event_places[kind, source] = place
        self._numbers[place] += 1


_REMEMBERED = 10_000
"""Sources may be many; what is not remembered is looked up again each time."""
