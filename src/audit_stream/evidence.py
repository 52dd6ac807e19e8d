"""Evidence files: an exported chain, or a range of it, one event a line, to be checked with no network.

A line is an event as the API answers it, byte for byte. A line that another tool has written anew is
taken as well, as long as it says the same; one that names a field twice is not, for readers differ on
which of the two counts.
"""

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import IO, Any, NamedTuple, cast

import msgspec

from audit_stream.chain import START, Event, Head, Verdict, link_hash, parse, verify
from audit_stream.errors import Refused
from audit_stream.event import to_json
from audit_stream.parallel import Tell, in_processes, split, usable_cores

MAX_LINE_BYTES = 64 * 1024 * 1024
WORTHWHILE_BYTES = 16 * 1024 * 1024
"""So much pays for a process."""
CHUNK_BYTES = 1024 * 1024


class Part(NamedTuple):
    path: str
    first: int
    """The place, in the file as it is when unpacked, behind which the part's first line begins."""
    last: int | None
    event_ids: tuple[int, ...]


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


class Report(NamedTuple):
    verdict: Verdict
    first: int
    """The event that the file begins with."""
    line: int | None
    """The one that does not hold."""
    kinds: frozenset[bytes]
    hashes: dict[int, bytes]
    """Of the events that were asked about and are there, the one before the first included."""
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
    asked = tuple(event_ids)
    if len(ranges) < 2:
        parts = [check_part(Part(str(path), 0, None, asked), tell)]
    else:
        # What was added meanwhile, and whatever keeps the file from being unpacked, is the last one's.
        ends = [last for _, last in ranges[:-1]] + [None]
        shares = [Part(str(path), first, last, asked) for (first, _), last in zip(ranges, ends, strict=True)]
        parts = asyncio.run(in_processes(check_part, shares, tell))
    return _joined(parts, asked, began)


def _joined(parts: list[Checked], asked: tuple[int, ...], began: float) -> Report:
    opening = next((part.start for part in parts if part.start), None)
    head = _before(opening)
    first = head.event_id + 1
    hashes = {head.event_id: head.hash} if head.event_id in asked else {}
    checked = lines = 0
    broken: Verdict | None = None
    for part in parts:
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
    return Report(verdict, first, lines if broken else None, kinds, hashes, monotonic() - began)


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
                event = read_line(line)
            except (ValueError, RecursionError) as error:
                what = "cannot be read" if line.endswith(b"\n") else "is cut off"
                self.trouble = f"{what}: {error}"
                return
            yield event
            # Only here is it known to have held.
            self.kinds.add(event.kind)
            if event.event_id in self._part.event_ids:
                self.hashes[event.event_id] = event.hash


def check_part(part: Part, tell: Tell) -> Checked:
    with opened(Path(part.path)) as file:
        lines = _Lines(file, part, tell)
        events = iter(lines)
        start = next(events, None)
        before = _before(start)
        verdict = verify(_with(start, events), start=before)
    return Checked(start, verdict, lines.trouble, lines.read, frozenset(lines.kinds), lines.hashes)


def _with(start: Event | None, events: Iterator[Event]) -> Iterator[Event]:
    if start:
        yield start
        yield from events


# --- lines


class _Line(msgspec.Struct):
    event_id: int
    timestamp: str
    kind: str
    source: str
    payload: msgspec.Raw
    prev_hash: str
    hash: str


_exported = msgspec.json.Decoder(_Line)
_FIELDS = set(Event._fields)


def decoded(line: bytes) -> Event:
    """The event as the API answers it, its payload the text as it stands. Raises msgspec.DecodeError, ValueError.

    Whether that is the text that was hashed is for `verify` to tell.
    """
    read = _exported.decode(line)
    return Event(
        read.event_id,
        read.timestamp.encode(),
        read.kind.encode(),
        read.source.encode(),
        bytes(read.payload),
        read.prev_hash.encode(),
        read.hash.encode(),
    )


def read_line(line: bytes) -> Event:
    """Read a line of evidence. Raises ValueError, RecursionError."""
    line = line.strip()
    try:
        event = decoded(line)
        # As exported: nothing added, nothing said twice, and the payload is the text that was hashed.
        if to_json(event) == line and event.payload[:1] == b"{" and link_hash(*event[:6]) == event.hash:
            return event
    except (msgspec.DecodeError, ValueError):
        pass  # what is wrong with it is said below
    body = json.loads(line, object_pairs_hook=_each_once)
    if not isinstance(body, dict) or not isinstance(body.get("payload"), dict):
        raise ValueError("it is no JSON object with a payload")
    if set(body) != _FIELDS:
        raise ValueError(f"its fields are not an event's: {', '.join(sorted(map(repr, set(body) ^ _FIELDS)))}")
    return parse(line)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        raise ValueError("it names a field twice")
    return body


def events_of(path: Path) -> Iterator[Event]:
    """The events of a file that was checked."""
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


def whole_chain(report: Report) -> None:
    """Raises Refused for a file that does not hold, or does not begin with event 1."""
    if not report.verdict.valid:
        raise Refused(str(report.verdict.reason))
    if report.first != 1:
        raise Refused(f"it begins with event #{report.first}, not with the first")
