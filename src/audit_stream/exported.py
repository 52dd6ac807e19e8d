"""A line of an export: an event as the API answers it, and beside it the time of its commit.

    {"event_id":1,"timestamp":"…","kind":"other",…,"hash":"…","committed_at":"2026-11-21T10:06:00.123Z"}

`committed_at` comes after the fields of the event and is not hashed: it is what the index by commit time said
when the line was written, and nothing in the file proves it. A line without it is as good a line. A line that
another tool has written anew is taken as well, as long as it says the same; one that names a field twice is not,
for readers differ on which of the two counts.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from audit_stream.chain import Event, link_hash, parse
from audit_stream.event import to_json

COMMITTED_AT = "committed_at"
MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999; no later one can be written as a time."""
_FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Exported(NamedTuple):
    event: Event
    committed_at: str | None
    """As it stands in the line, unchecked; None where the line has none."""


# --- commit times


@lru_cache(maxsize=256)  # the events of a batch share theirs
def format_ms(ms: int) -> str:
    """Return Unix time in milliseconds as UTC, such as 2026-11-21T10:06:00.123Z."""
    return (_EPOCH + ms * _MILLISECOND).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def parse_ms(text: str) -> int:
    """Read what `format_ms` returns, and nothing else. Raises ValueError."""
    if _FORM.fullmatch(text):
        try:
            ms = (datetime.fromisoformat(text) - _EPOCH) // _MILLISECOND
        except ValueError:
            pass  # the 30th of February
        else:
            if ms >= 0:
                return ms
    raise ValueError(f"its {COMMITTED_AT}, {text[:40]!r}, is not a UTC time such as 2026-11-21T10:06:00.123Z")


class Times:
    """The commit times of consecutive lines, and what is wrong with the first that cannot be right."""

    def __init__(self, latest_ms: int) -> None:
        """A commit time later than `latest_ms` lies in the future."""
        self._latest_ms = latest_ms
        self._newest_text: str | None = None
        self.first_ms: int | None = None
        self.first_line = 0
        self.last_ms: int | None = None
        self.missing = 0
        self.problem = ""
        self.line = 0
        """The line with the problem."""

    def add(self, line: int, text: str | None) -> None:
        """Take the `committed_at` of the next line."""
        if text is None:
            self.missing += 1
        elif text != self._newest_text and not self.problem:
            self._newest_text = text
            try:
                self._take(parse_ms(text), line, text)
            except ValueError as error:
                self.line, self.problem = line, str(error)

    def _take(self, ms: int, line: int, text: str) -> None:
        if ms > self._latest_ms:
            raise ValueError(f"its {COMMITTED_AT}, {text}, lies in the future")
        if self.last_ms is not None and ms < self.last_ms:
            raise ValueError(_runs_back(text, self.last_ms))
        if self.first_ms is None:
            self.first_ms, self.first_line = ms, line
        self.last_ms = ms

    def join(self, later: "Times", lines: int) -> None:
        """Append the times of the lines after these, of which there are `lines`."""
        self.missing += later.missing
        if self.problem:
            return
        if self.last_ms is not None and later.first_ms is not None and later.first_ms < self.last_ms:
            self.line = lines + later.first_line
            self.problem = _runs_back(format_ms(later.first_ms), self.last_ms)
        elif later.problem:
            self.line, self.problem = lines + later.line, later.problem
        if self.first_ms is None:
            self.first_ms, self.first_line = later.first_ms, lines + later.first_line
        if later.last_ms is not None:
            self.last_ms = later.last_ms


def _runs_back(text: str, before_ms: int) -> str:
    return f"its {COMMITTED_AT}, {text}, is earlier than that of the line before, {format_ms(before_ms)}"


# --- lines


def to_line(event: Event, committed_ms: int | None) -> bytes:
    """Return the event as a JSON object, with the time of its commit where that is known and can be a time."""
    body = to_json(event)
    return body if committed_ms is None or committed_ms > MAX_MS else _with_time(body, format_ms(committed_ms))


def _with_time(body: bytes, committed_at: str) -> bytes:
    return b'%b,"committed_at":"%b"}' % (body[:-1], committed_at.encode())


class _Line(msgspec.Struct):
    event_id: int
    timestamp: str
    kind: str
    source: str
    payload: msgspec.Raw
    prev_hash: str
    hash: str
    committed_at: str | None = None


_exported = msgspec.json.Decoder(_Line)
_FIELDS = set(Event._fields)


def decoded(line: bytes) -> Event:
    """The event as the API answers it, its payload the text as it stands. Raises msgspec.DecodeError, ValueError.

    Whether that is the text that was hashed is for `verify` to tell.
    """
    return _decoded(line).event


def _decoded(line: bytes) -> Exported:
    read = _exported.decode(line)
    event = Event(
        read.event_id,
        read.timestamp.encode(),
        read.kind.encode(),
        read.source.encode(),
        bytes(read.payload),
        read.prev_hash.encode(),
        read.hash.encode(),
    )
    return Exported(event, read.committed_at)


def read_line(line: bytes) -> Exported:
    """Read a line of evidence. Raises ValueError, RecursionError."""
    line = line.strip()
    try:
        event, committed_at = read = _decoded(line)
        text = to_json(event)
        # As exported: nothing added, nothing said twice, and the payload is the text that was hashed.
        as_exported = line == (text if committed_at is None else _with_time(text, committed_at))
        if as_exported and event.payload[:1] == b"{" and link_hash(*event[:6]) == event.hash:
            return read
    except (msgspec.DecodeError, ValueError):
        pass  # what is wrong with it is said below
    body = json.loads(line, object_pairs_hook=_each_once)
    if not isinstance(body, dict) or not isinstance(body.get("payload"), dict):
        raise ValueError("it is no JSON object with a payload")
    if (others := set(body) - {COMMITTED_AT}) != _FIELDS:
        raise ValueError(f"its fields are not an event's: {', '.join(sorted(map(repr, others ^ _FIELDS)))}")
    return Exported(parse(line), _text_of(body[COMMITTED_AT]) if COMMITTED_AT in body else None)


def _text_of(value: Any) -> str:
    """What is not a text is no time either: `parse_ms` says so, and needs it as it stands."""
    return value if isinstance(value, str) else json.dumps(value)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        raise ValueError("it names a field twice")
    return body
