"""The evidence pack: events, bus lines, heads, pins and a verdict, with all that it takes to check them.

Made in a folder, then zipped. The script in it, check.py, needs chain.py and Python's standard library.
"""

import json
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, NamedTuple

from audit_stream import chain
from audit_stream.bus import verify as verify_bus
from audit_stream.bus.line import Line, from_object, parse
from audit_stream.bus.reading import raw_lines
from audit_stream.chain import Event, Head
from audit_stream.errors import Refused
from audit_stream.evidence import check_file, events_of
from audit_stream.pack.check import scope
from audit_stream.pin import Pin
from audit_stream.timestamps import instant

FORMAT = "audit-stream evidence 1"
HERE = Path(__file__).parent


class Window(NamedTuple):
    since: datetime | None
    until: datetime | None

    def holds(self, timestamp: str) -> bool:
        try:
            at = instant(timestamp, field="timestamp")
        except Refused:
            return True  # posted without validation: better in the pack than not
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)


class Events(NamedTuple):
    """What of the chain a pack holds."""

    first: int
    total: int
    held: int
    """So many from the first on hold."""
    whole: int
    """The number of events of the whole chain."""

    @property
    def scope(self) -> str:
        return scope(self.first, self.first + self.total - 1, self.whole)


class Pack:
    """A folder that becomes a pack. `finish` writes what describes the rest."""

    def __init__(self, folder: Path, made_at: str) -> None:
        self.folder, self._made_at = folder, made_at
        self.events_path = folder / "events.jsonl"
        self.is_intact = True
        self.head: Head | None = None
        """The last event of the pack that holds."""
        self._heads: dict[str, Any] = {"events": None, "chain": None, "bus": [], "pins": []}
        self._verdicts: dict[str, Any] = {"events": None, "chain": None, "bus": []}

    def add_events(self, pins: Sequence[Pin], stats: dict[str, Any], server_verdict: dict[str, Any]) -> Events:
        """Check what was written to `events_path`, take out the bus lines relayed in it; return what there is.

        `stats` and `server_verdict` are what the server says of its whole chain.
        """
        report = check_file(self.events_path, lambda _: None, event_ids=[pin.event_id for pin in pins])
        verdict = report.verdict
        first = next(events_of(self.events_path))
        before = Head(first.event_id - 1, first.prev_hash)
        with self.events_path.open("rb") as lines:
            count = sum(1 for _ in lines)
        events = Events(first.event_id, count, verdict.checked, stats["last_event_id"])
        self.head = verdict.head
        self._heads["events"] = {"before": _head(before), "head": _head(verdict.head)}
        self._heads["chain"] = {"event_id": stats["last_event_id"], "hash": stats["latest_hash"]}
        self._verdicts["events"] = {
            "valid": verdict.valid,
            "count": count,
            "checked": verdict.checked,
            "first_break_at": verdict.first_break_at,
            "reason": verdict.reason,
            "scope": events.scope,
        }
        self._verdicts["chain"] = server_verdict
        self.is_intact &= verdict.valid and server_verdict["valid"]
        for pin in pins:
            self._add_pin(pin, report.hashes.get(pin.event_id), first.event_id, verdict.head.event_id)
        if verdict.valid:
            self._add_relayed(events_of(self.events_path))
        return events

    def _add_pin(self, pin: Pin, found: bytes | None, first: int, last: int) -> None:
        held: bool | None = None
        if first - 1 <= pin.event_id <= last:
            held = found is not None and found.decode() == pin.hash
            self.is_intact &= held
        # Outside of what is in the pack, nothing can be said from it.
        self._heads["pins"].append({"event_id": pin.event_id, "hash": pin.hash, "holds": held})

    def _add_relayed(self, events: Iterable[Event]) -> None:
        """Put the relayed lines of each log together again: a line belongs to the log whose end it names."""
        logs: dict[bytes, tuple[Path, int]] = {}
        count = 0
        for event in events:
            line = relayed_line(event)
            if not line:
                continue
            path, lines = logs.pop(line.prev_hash, (None, 0))
            if path is None:
                count += 1
                path = self._bus_path(f"relayed-{count}.jsonl")
            with path.open("ab") as file:
                file.write(line.text() + b"\n")
            logs[line.hash] = path, lines + 1
        for path, _ in sorted(logs.values()):
            self._add_bus(path)

    def add_bus(self, source: Path, window: Window) -> int:
        """Copy the lines of a log from the first to the last of the time asked for; return how many. Raises OSError.

        Whether the whole log holds goes into the verdict.
        """
        wanted = [
            raw.number
            for raw in raw_lines(source)
            if (line := _line_or_none(raw.text)) and window.holds(line.content.timestamp)
        ]
        whole = verify_bus([source])
        path = self._bus_path(source.name)
        with path.open("wb") as out:
            for raw in raw_lines(source) if wanted else ():
                if wanted[0] <= raw.number <= wanted[-1]:
                    out.write(raw.text + b"\n")
        self._add_bus(path, {"log": str(source.name), **_verdict(whole)})
        self.is_intact &= whole.valid
        return len(wanted)

    def _bus_path(self, name: str) -> Path:
        folder = self.folder / "bus"
        folder.mkdir(exist_ok=True)
        path, number = folder / name, 1
        while path.exists():
            path, number = folder / f"{number}-{name}", number + 1
        return path

    def _add_bus(self, path: Path, whole: dict[str, Any] | None = None) -> None:
        name = path.relative_to(self.folder).as_posix()
        before = head = None
        count = 0
        for raw in raw_lines(path):
            if line := _line_or_none(raw.text):
                before = before or Head(line.seq - 1, line.prev_hash)
                head, count = Head(line.seq, line.hash), count + 1
        ends = {"before": _bus_head(before or chain.START), "head": _bus_head(head or chain.START)}
        self._heads["bus"].append({"name": name, **ends})
        self._verdicts["bus"].append({"name": name, "lines": count, **({"whole_log": whole} if whole else {})})

    def finish(self, out: IO[bytes], asked: dict[str, Any]) -> str:
        """Write the zip; return the SHA-256 of the manifest, which vouches for all of it."""
        for name, body in (("heads.json", self._heads), ("verdict.json", self._verdicts)):
            (self.folder / name).write_text(_json(body))
        shutil.copyfile(str(chain.__file__), self.folder / "chain.py")
        for name in ("check.py", "VERIFY.md"):
            shutil.copyfile(HERE / name, self.folder / name)
        parts = sorted(path for path in self.folder.rglob("*") if path.is_file())
        manifest = {
            "format": FORMAT,
            "made_at": self._made_at,
            "asked": asked,
            "events": self._heads["events"] is not None,
            "intact": self.is_intact,
            "parts": [
                {
                    "name": path.relative_to(self.folder).as_posix(),
                    "bytes": path.stat().st_size,
                    "sha256": _digest(path),
                }
                for path in parts
            ],
        }
        text = _json(manifest)
        (self.folder / "manifest.json").write_text(text)
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in [self.folder / "manifest.json", *parts]:
                packed.write(path, path.relative_to(self.folder))
        return sha256(text.encode()).hexdigest()


def relayed_line(event: Event) -> Line | None:
    """The bus line that the event was relayed from, if it was; one that holds by itself."""
    if b'"prev_hash":"' not in event.payload:
        return None
    try:
        line = from_object(json.loads(event.payload))
    except ValueError:
        return None
    return line if line.computed_hash() == line.hash else None


def _line_or_none(text: bytes) -> Line | None:
    try:
        return parse(text)
    except ValueError:
        return None


def _verdict(verdict: Any) -> dict[str, Any]:
    return {
        "valid": verdict.valid,
        "checked": verdict.checked,
        "reason": verdict.reason,
        "head": _bus_head(verdict.head),
    }


def _head(head: Head) -> dict[str, Any]:
    return {"event_id": head.event_id, "hash": head.hash.decode()}


def _bus_head(head: Head) -> dict[str, Any]:
    return {"seq": head.event_id, "hash": head.hash.decode()}


def _json(body: object) -> str:
    return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def _digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
