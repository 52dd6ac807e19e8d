"""Events for a person: one line each, in aligned columns, the payload as `key=value`.

On a terminal a line is never longer than the terminal is wide. A payload that does not fit has a line of its own below.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import rich_click as click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from audit_stream.cli.output import Event, kind_style, printable

DEFAULT = ("id", "time", "kind", "source", "payload")
PAYLOAD = "payload"
_INDENT = 9
_BARE = re.compile(r"[^\s\"'=,\[\]{}]+")
_STYLES = {"id": "bold", "time": "dim", "timestamp": "dim", PAYLOAD: "dim", "hash": "dim", "prev_hash": "dim"}


def columns_given(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    wrong = [name for name in names if name not in CELLS and not name.startswith(f"{PAYLOAD}.")]
    if wrong or not names:
        raise click.BadParameter(
            f"{wrong[0]!r} is not a column; there are {', '.join(CELLS)}, and payload.KEY for one value of the payload."
        )
    return names


columns_option = click.option(
    "--columns",
    metavar="NAMES",
    callback=columns_given,
    help=f"which columns, separated by commas: id, time, timestamp, kind, source, payload, hash, prev_hash, or"
    f" payload.KEY for one value\n\ndefault: {','.join(DEFAULT)}",
)
wide_option = click.option("--wide", is_flag=True, help="cut nothing: lines as long as the events need")


def _longest(width: int | None) -> dict[str, int]:
    """Return how wide a column may get. A longer one is cut in its middle: names of kinds differ at their ends."""
    width = width or 160
    return {"kind": 20 if width < 100 else 33, "source": max(13, width // 6)}


class Rows:
    """Lays events out, one after the other. Widths come from `sample`; without one there is room for most."""

    def __init__(
        self,
        out: Console,
        *,
        columns: Sequence[str] | None = None,
        wide: bool = False,
        time_format: str = "%H:%M:%S",
        sample: Sequence[Event] = (),
    ) -> None:
        self._out, self._columns, self._time_format = out, tuple(columns or DEFAULT), time_format
        # Away from a terminal there is no width to keep to.
        self._width = None if wide or not out.is_terminal else out.width
        longest = _longest(self._width)
        self._widths = {name: self._width_of(name, longest.get(name), sample) for name in self._columns[:-1]}

    def _width_of(self, name: str, longest: int | None, sample: Sequence[Event]) -> int:
        usual = {"id": 6, "time": 8, "kind": longest or 0, "source": longest or 0}
        found = max((cell_len(self._cell(name, event)) for event in sample), default=usual.get(name, 12))
        longest = longest or (None if name in CELLS else _longest(self._width)["source"])
        return max(found if self._width is None or longest is None else min(found, longest), cell_len(name))

    def _cell(self, name: str, event: Event) -> str:
        if name == "time":
            return moment(event, self._time_format)
        return CELLS[name](event) if name in CELLS else _value(_at(event[PAYLOAD], name.removeprefix(f"{PAYLOAD}.")))

    def header(self) -> Text:
        *names, last = self._columns
        shown = [set_cell_size("time (UTC)" if name == "time" else name, self._widths[name]) for name in names]
        return self._fitted(Text("  ".join([*shown, last]), style="dim"))

    def lines(self, event: Event, *, note: str = "") -> Iterator[Text]:
        """Yield the line of an event, and a second one for a payload that does not fit. A `note` takes its place."""
        *names, last = self._columns
        text = Text()
        for name in names:
            width = self._widths[name]
            shown = self._cell(name, event)
            shown = shown if self._width is None else _shortened(shown, width)
            text.append(shown + " " * max(0, width - cell_len(shown)) + "  ", style=self._style(name, event))
        rest = note or self._cell(last, event)
        fits = self._width is None or text.cell_len + cell_len(rest) <= self._width
        if not fits and last == PAYLOAD and names:
            text.rstrip()
            yield self._fitted(text)
            yield self._fitted(Text(" " * _INDENT + rest, style=self._style(last, event)))
        else:
            text.append(rest, style=self._style(last, event))
            text.rstrip()
            yield self._fitted(text)

    def _style(self, name: str, event: Event) -> str:
        return kind_style(str(event["kind"])) if name == "kind" else _STYLES.get(name, "")

    def _fitted(self, text: Text) -> Text:
        if self._width is not None:
            text.truncate(self._width, overflow="ellipsis")
        return text

    def print(self, event: Event, *, note: str = "") -> None:
        for line in self.lines(event, note=note):
            self._out.print(line)

    def print_all(self, events: Iterable[Event]) -> None:
        self._out.print(self.header())
        for event in events:
            self.print(event)


def _shortened(text: str, width: int) -> str:
    if cell_len(text) <= width:
        return text
    end = (width - 1) // 2
    tail = text[-end:]
    while cell_len(tail) > end:
        tail = tail[1:]
    return f"{set_cell_size(text, width - 1 - cell_len(tail)).rstrip()}…{tail}"


# --- cells


def moment(event: Event, time_format: str) -> str:
    """The event's own timestamp in UTC; as it was recorded where it is not a time."""
    from audit_stream.errors import Refused
    from audit_stream.timestamps import instant

    text = str(event["timestamp"])
    try:
        at: datetime = instant(text, field="timestamp")
    except Refused:
        return printable(text)[:19]
    return at.strftime(time_format)


def in_words(payload: Any) -> str:
    """Return the payload as `key=value` pairs, those of objects in it as `key.key=value`."""
    return printable(" ".join(_pairs(payload, ""))) if isinstance(payload, dict) else _value(payload)


def _pairs(value: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, child in value.items():
        name = prefix + (key if _BARE.fullmatch(key) else json.dumps(key, ensure_ascii=False))
        if isinstance(child, dict) and child:
            yield from _pairs(child, f"{name}.")
        else:
            yield f"{name}={_value(child)}"


def _value(value: Any) -> str:
    """A text stands as it is where nobody could take it for anything else, else as JSON."""
    if isinstance(value, str) and (not value or (_BARE.fullmatch(value) and not _is_json(value))):
        return printable(value)
    return printable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _at(payload: Any, path: str) -> Any:
    """The value at a dotted path; an empty text where there is none."""
    if not isinstance(payload, dict):
        return ""
    if path in payload:
        return payload[path]
    key, _, rest = path.partition(".")
    return _at(payload.get(key), rest) if rest else ""


CELLS: dict[str, Callable[[Event], str]] = {
    "id": lambda event: f"#{event['event_id']}",
    "time": lambda event: moment(event, "%Y-%m-%d %H:%M:%S"),
    "timestamp": lambda event: printable(str(event["timestamp"])),
    "kind": lambda event: printable(str(event["kind"])),
    "source": lambda event: printable(str(event["source"])),
    PAYLOAD: lambda event: in_words(event[PAYLOAD]),
    "hash": lambda event: printable(str(event["hash"])),
    "prev_hash": lambda event: printable(str(event["prev_hash"])),
}
"""The text of each column. Nothing in it acts on a terminal or ends the line."""


# --- CSV

CSV_COLUMNS = ("event_id", "timestamp", "kind", "source", PAYLOAD, "prev_hash", "hash")


def csv_rows(events: Iterable[Event], columns: Sequence[str] | None) -> Iterator[Sequence[object]]:
    """Yield the names of the columns, then the values of each event, whole and as they were recorded."""
    names = columns or CSV_COLUMNS
    yield names
    for event in events:
        yield [_raw(name, event) for name in names]


def _raw(name: str, event: Event) -> object:
    field = {"id": "event_id", "time": "timestamp"}.get(name, name)
    value = event[field] if field in event else _at(event[PAYLOAD], name.removeprefix(f"{PAYLOAD}."))
    return value if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
