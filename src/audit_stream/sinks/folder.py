"""A sink of files: one folder, in it a file for each day or of each size, and the cursor."""

import asyncio
import gzip
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from audit_stream.atomic import replacing
from audit_stream.chain import START, Event, Head
from audit_stream.sinks import cursor
from audit_stream.sinks.files import Appending, last_packed, mended
from audit_stream.sinks.sink import Name, Position, Standing

OPEN_FILES = 8
DAY_DIGITS, ID_DIGITS = 8, 12

T = TypeVar("T")


class Line(NamedTuple):
    day: str
    """The event's day in UTC, `20260515`."""
    text: bytes
    """JSON, with the event_id and hash of the event at the top or in `properties`."""


class Layout(NamedTuple):
    """Where the lines go and what they say."""

    folder: Path
    prefix: str
    line: Callable[[Event], Line | None]
    """None leaves an event out."""
    rotate_bytes: int | None = None
    """Begin a new file when one has reached this size; None: a file for each day."""
    pack: bool = False
    """Whether files of past days, or full ones, become .gz."""

    @property
    def cursor_path(self) -> Path:
        return self.folder / f"{self.prefix}.cursor"


class FolderSink:
    """Files in a folder; see `sink.Sink`."""

    def __init__(self, name: Name, layout: Layout) -> None:
        self.name = name
        self._layout = layout
        self._cursor: cursor.Cursor | None = None
        self._open: dict[str, Appending] = {}
        self._held: dict[str, Head | None] = {}
        """The last event in each file, the packed ones' too once they were asked for."""
        self._current = ""
        """Of files that rotate by size, the one that is added to."""
        self._current_bytes = 0
        self._packed_on = ""

    async def open(self) -> Position:
        return await to_its_end(self._begin)

    async def write(self, events: Sequence[Event]) -> None:
        await to_its_end(lambda: self._write(events))

    async def rest(self) -> None:
        today = _today()
        if self._layout.pack and self._packed_on != today:
            await to_its_end(lambda: self._pack(today))
            self._packed_on = today

    async def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()
        if self._cursor:
            self._cursor.close()
            self._cursor = None

    async def standing(self) -> Standing:
        return cursor.standing(self._layout.cursor_path)

    # --- the beginning

    def _begin(self) -> Position:
        self._layout.folder.mkdir(parents=True, exist_ok=True)
        self._cursor = cursor.Cursor(self._layout.cursor_path)
        self._held.clear()
        go_on = self._cursor.head
        for path in self._plain():
            found = mended(path, go_on.event_id)
            if path.stat().st_size == 0 or self._is_packed_already(path, found.last):
                path.unlink()
                continue
            self._held[path.name] = found.last
            if found.torn:
                # Only what was not synced is ever torn, and that is behind the cursor. Should something else have
                # torn what was, it is written again.
                go_on = min(go_on, found.last or START, key=lambda head: head.event_id)
        if self._layout.rotate_bytes is not None:
            self._current = max(self._held, default="")
            self._current_bytes = (self._layout.folder / self._current).stat().st_size if self._current else 0
        newest = max([self._cursor.head, *filter(None, self._held.values())], key=lambda head: head.event_id)
        return Position(go_on, newest)

    def _plain(self) -> list[Path]:
        digits = DAY_DIGITS if self._layout.rotate_bytes is None else ID_DIGITS
        return sorted(self._layout.folder.glob(f"{self._layout.prefix}_{'[0-9]' * digits}.jsonl"))

    def _is_packed_already(self, path: Path, last: Head | None) -> bool:
        """A crash came between packing it and removing it."""
        packed = _packed(path)
        if last is None or not packed.exists():
            return False
        head = last_packed(packed)
        return head is not None and head.event_id >= last.event_id

    # --- writing

    def _write(self, events: Sequence[Event]) -> None:
        assert self._cursor
        files: dict[str, list[tuple[Head, bytes]]] = defaultdict(list)
        for event in events:
            line = self._layout.line(event)
            if line is not None:
                files[self._file_for(event, line)].append((Head(event.event_id, event.hash), line.text))
        for name, lines in files.items():
            self._add(name, lines)
        last = events[-1]
        self._cursor.advance(Head(last.event_id, last.hash))

    def _file_for(self, event: Event, line: Line) -> str:
        if self._layout.rotate_bytes is None:
            return f"{self._layout.prefix}_{line.day}.jsonl"
        held = self._held.get(self._current)
        if held is None or event.event_id > held.event_id:
            if not self._current or self._current_bytes >= self._layout.rotate_bytes:
                # Named by its first event: names sort as the events do.
                self._current, self._current_bytes = f"{self._layout.prefix}_{event.event_id:0{ID_DIGITS}d}.jsonl", 0
            self._current_bytes += len(line.text)
        return self._current

    def _add(self, name: str, lines: Sequence[tuple[Head, bytes]]) -> None:
        held = self._held_by(name)
        missing = [line for line in lines if held is None or line[0].event_id > held.event_id]
        if missing:
            self._appending(name).add(b"".join(text for _, text in missing))
            self._held[name] = missing[-1][0]

    def _held_by(self, name: str) -> Head | None:
        if name not in self._held:
            packed = _packed(self._layout.folder / name)
            self._held[name] = last_packed(packed) if packed.exists() else None
        return self._held[name]

    def _appending(self, name: str) -> Appending:
        file = self._open.pop(name, None)
        if file and not file.is_in_place():
            file.close()
            file = None
        while len(self._open) >= OPEN_FILES:
            self._open.pop(next(iter(self._open))).close()
        # Put last, as the one that was used last.
        self._open[name] = file or Appending(self._layout.folder / name)
        return self._open[name]

    # --- packing

    def _pack(self, today: str) -> None:
        plain = self._plain()
        if self._layout.rotate_bytes is None:
            closed = [path for path in plain if path.name < f"{self._layout.prefix}_{today}.jsonl"]
        else:
            closed = [path for path in plain if path.name < self._current]
        for path in closed:
            if file := self._open.pop(path.name, None):
                file.close()
            _pack_one(path)


def _pack_one(path: Path) -> None:
    """Make it a .gz; what came late for a day that is packed already is added to that."""
    packed = _packed(path)
    with replacing(packed) as replacement:
        # Without name and time, so that the same lines make the same file.
        with gzip.GzipFile(filename="", mode="wb", fileobj=replacement.file, compresslevel=6, mtime=0) as out:
            if packed.exists():
                with gzip.open(packed) as before:
                    shutil.copyfileobj(before, out)
            with path.open("rb") as lines:
                shutil.copyfileobj(lines, out)
        replacement.commit()
    # A crash here leaves both; the next start sees that the one holds the other.
    path.unlink()


def _packed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _today() -> str:
    return datetime.now(UTC).strftime("%Y%m%d")


async def to_its_end(work: Callable[[], T]) -> T:
    """Do what waits for a disk in a thread; who is cancelled meanwhile still waits for its end."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
