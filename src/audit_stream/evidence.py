"""Evidence files: an exported chain, or a range of it, one event a line, to be checked with no network."""

import asyncio
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import monotonic, time
from typing import IO, NamedTuple, cast

import msgspec

from audit_stream.chain import START, Event, Head, Verdict, verify
from audit_stream.exported import Exported, Times, read_line
from audit_stream.parallel import Tell, in_processes, split, usable_cores

_array = msgspec.json.Decoder(list[msgspec.Raw])
MAX_LINE_BYTES = 64 * 1024 * 1024
WORTHWHILE_BYTES = 16 * 1024 * 1024
"""So much pays for a process."""
CHUNK_BYTES = 1024 * 1024
SKEW_MS = 60_000
"""A commit time so little ahead of this machine's clock comes from a clock that is ahead, not from the future."""


class Part(NamedTuple):
    path: str
    first: int
    """The place, in the file as it is when unpacked, behind which the part's first line begins."""
    last: int | None
    event_ids: tuple[int, ...]
    latest_ms: int
    """A later commit time lies in the future."""


class Checked(NamedTuple):
    """What the lines of a part showed, linked to the event that its first names."""

    start: Event | None
    verdict: Verdict
    trouble: str
    """Why the line behind them is no event."""
    lines: int
    """Up to the one that does not hold."""
    kinds: frozenset[bytes]
    hashes: dict[int, bytes]
    times: Times


class Report(NamedTuple):
    verdict: Verdict
    first: int
    """The event that the file begins with."""
    line: int | None
    """The one that does not hold."""
    kinds: frozenset[bytes]
    hashes: dict[int, bytes]
    """Of the events that were asked about and are there, the one before the first included."""
    times: Times
    """The commit times. No hash covers them, so they have no part in the verdict."""
    took_s: float


def check_file(
    path: Path, tell: Tell, *, size: int | None = None, jobs: int | None = None, event_ids: Sequence[int] = ()
) -> Report:
    """Check every line, in `jobs` processes or in as many as pay. Raises OSError.

    Proves of the events that are there that none was changed, not that none is missing at the end.
    """
    began = monotonic()
    size = unpacked_bytes(path) if size is None else size
    jobs = jobs or min(usable_cores(), size // WORTHWHILE_BYTES)
    ranges = split(0, size - 1, jobs)
    asked, latest_ms = tuple(event_ids), int(time() * 1000) + SKEW_MS
    if len(ranges) < 2:
        parts = [check_part(Part(str(path), 0, None, asked, latest_ms), tell)]
    else:
        # What was added meanwhile, and whatever keeps the file from being unpacked, is the last one's.
        ends = [last for _, last in ranges[:-1]] + [None]
        shares = [Part(str(path), first, last, asked, latest_ms) for (first, _), last in zip(ranges, ends, strict=True)]
        parts = asyncio.run(in_processes(check_part, shares, tell))
    return _joined(parts, asked, began)


def _joined(parts: list[Checked], asked: tuple[int, ...], began: float) -> Report:
    opening = next((part.start for part in parts if part.start), None)
    head = _before(opening)
    first = head.event_id + 1
    hashes = {head.event_id: head.hash} if head.event_id in asked else {}
    checked = lines = 0
    broken: Verdict | None = None
    times = Times(0)
    for part in parts:
        times.join(part.times, lines)
        if part.start and not (seam := verify([part.start], start=head)).valid:
            broken, lines = seam, lines + 1
            break
        checked += part.verdict.checked
        lines += part.lines
        hashes.update(part.hashes)
        if part.verdict.checked:
            head = part.verdict.head
        if not part.verdict.valid:
            broken = part.verdict
            break
        if part.trouble:
            at = head.event_id + 1
            broken = Verdict(False, 0, at, f"event #{at} {part.trouble}", head)
            break
    verdict = Verdict(True, checked, None, None, head)
    if broken:
        reason = f"line {lines}: {broken.reason}"
        verdict = Verdict(False, checked, broken.first_break_at, reason, head)
    kinds = frozenset[bytes]().union(*(part.kinds for part in parts))
    return Report(verdict, first, lines if broken else None, kinds, hashes, times, monotonic() - began)


def _before(event: Event | None) -> Head:
    """What an event says it is linked to. Before event 1 there is nothing to be said."""
    return Head(event.event_id - 1, event.prev_hash) if event and event.event_id > 1 else START


# --- one part, perhaps in a process of its own


class _Lines:
    """The events of a part, up to the first line that is none."""

    def __init__(self, file: IO[bytes], part: Part, tell: Tell) -> None:
        self._file, self._part, self._tell = file, part, tell
        self.read = 0
        self.trouble = ""
        self.kinds: set[bytes] = set()
        self.hashes: dict[int, bytes] = {}
        self.times = Times(part.latest_ms)

    def __iter__(self) -> Iterator[Event]:
        try:
            yield from self._events()
        except EOFError:
            self.read += 1
            self.trouble = "is cut off: the packed data ends before its end"
        except (zlib.error, gzip.BadGzipFile) as error:
            self.read += 1
            self.trouble = f"cannot be unpacked: {error}"

    def _events(self) -> Iterator[Event]:
        at = self._part.first
        if at:
            # A line belongs to the part that it begins in.
            self._file.seek(at - 1)
            at += len(self._file.readline(MAX_LINE_BYTES)) - 1
        while (self._part.last is None or at <= self._part.last) and (line := self._file.readline(MAX_LINE_BYTES)):
            at += len(line)
            self.read += 1
            if not self.read % 1000:
                self._tell(at - self._part.first)
            if line.isspace():
                continue
            try:
                event, committed_at = read_line(line)
            except (ValueError, RecursionError) as error:
                what = "cannot be read" if line.endswith(b"\n") else "is cut off"
                self.trouble = f"{what}: {error}"
                return
            yield event
            # Only here is it known to have held.
            self.kinds.add(event.kind)
            self.times.add(self.read, committed_at)
            if event.event_id in self._part.event_ids:
                self.hashes[event.event_id] = event.hash


def check_part(part: Part, tell: Tell) -> Checked:
    with opened(Path(part.path)) as file:
        lines = _Lines(file, part, tell)
        events = iter(lines)
        start = next(events, None)
        before = _before(start)
        verdict = verify(_with(start, events), start=before)
    return Checked(start, verdict, lines.trouble, lines.read, frozenset(lines.kinds), lines.hashes, lines.times)


def _with(start: Event | None, events: Iterator[Event]) -> Iterator[Event]:
    if start:
        yield start
        yield from events


# --- lines


def events_of(path: Path) -> Iterator[Event]:
    """The events of a file that was checked."""
    return (exported.event for exported in exported_in(path))


def exported_in(path: Path) -> Iterator[Exported]:
    """The same with their commit times."""
    with opened(path) as file:
        for line in file:
            if not line.isspace():
                yield read_line(line)


# --- the file


def opened(path: Path) -> IO[bytes]:
    """Open it, unpacking what is packed, by whatever name it goes."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(path)) if packed else path.open("rb")


@contextmanager
def one_event_a_line(path: Path) -> Iterator[Path]:
    """Yield a file with an event a line: `path`, or a copy of the JSON array in it. Raises OSError, ValueError.

    An array is what `GET /events` answers, the published 0.1.0's included.
    """
    with opened(path) as file:
        try:
            is_array = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
        except (EOFError, zlib.error, gzip.BadGzipFile):
            is_array = False  # checking the lines comes to it again, and says where
    if not is_array:
        yield path
        return
    with opened(path) as file:
        try:
            items = _array.decode(file.read().removeprefix(b"\xef\xbb\xbf"))
        except (msgspec.DecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"it begins as a JSON array of events, and is none: {error}") from error
    with NamedTemporaryFile(prefix="audit-stream.") as lines:
        # The ends of lines in it are white space: within a text they would be escaped.
        lines.writelines(bytes(item).replace(b"\r", b" ").replace(b"\n", b" ") + b"\n" for item in items)
        lines.flush()
        yield Path(lines.name)


def unpacked_bytes(path: Path) -> int:
    """How much there is to check; of a damaged file, what can be read of it. Raises OSError."""
    with opened(path) as file:
        if not isinstance(file, gzip.GzipFile):
            return path.stat().st_size
        size = 0
        try:
            while chunk := file.read(CHUNK_BYTES):
                size += len(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return size  # checking the lines comes to it again, and says where
        return size
