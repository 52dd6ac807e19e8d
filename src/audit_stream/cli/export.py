"""audit-stream export."""

import csv
import gzip
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, cast

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.chain import START, Event, Head, verify
from audit_stream.cli.failures import Failed
from audit_stream.cli.local import with_stream
from audit_stream.cli.options import choose_one, json_option, redis_url_option, setting_option, url_option
from audit_stream.cli.output import console, tell, wants_json, write_lines
from audit_stream.cli.progress import progress

if TYPE_CHECKING:
    from audit_stream.stream import Stream

PAGE = 1_000
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # OWASP, CSV injection


@click.command()
@click.option(
    "--out", metavar="FILE", required=True, help="where to; packed when it ends with .gz, - is standard output"
)
@click.option("--from", "first", metavar="ID", type=click.IntRange(min=1), default=1, help="begin with this event")
@click.option("--to", "last", metavar="ID", type=click.IntRange(min=1), help="end with this event, not the newest")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonl", "csv", "bus"]),
    default="jsonl",
    metavar="FORMAT",
    help="jsonl can be verified and imported, csv is for spreadsheets, bus for `audit-stream bus`, default: jsonl",
)
@url_option()
@redis_url_option()
@setting_option("AUDIT_STREAM_CHAIN")
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    out: str,
    first: int,
    last: int | None,
    format_: Literal["jsonl", "csv", "bus"],
    url: str,
    redis_url: str | None,
    chain: str,
    as_json: bool,
) -> None:
    """Write the chain, or a range of it, to a file, one event a line.

    Each line is enough to recompute its hash: `audit-stream verify FILE` needs no server. The links are
    checked on the way, and nothing takes the file's place unless all of it is there.
    """
    choose_one(ctx, "url", "redis_url")
    if last is not None and last < first:
        raise click.UsageError(f"--to: {last} is before --from: {first}.")
    with _destination(out) as file, progress("exporting") as show:
        exporting = _Exporting(first, last, _WRITERS[format_](file).write, show)
        if redis_url:
            with_stream(redis_url, chain, lambda stream: _from_redis(stream, exporting))
        else:
            _from_server(url, exporting)
    head, count = exporting.head, exporting.count
    if out == "-":
        tell(f"{count:,} events exported, head {head.event_id}:{head.hash.decode()}")
    elif wants_json(as_json):
        body = {"exported": count, "head": {"event_id": head.event_id, "hash": head.hash.decode()}, "file": out}
        write_lines([msgspec.json.encode(body)])
    else:
        console().print(Text.assemble(("exported", "bold green"), f"  {count:,} events to {out}"))
        if format_ == "jsonl":
            hint = f"audit-stream verify {out} --expect {head.event_id}:{head.hash.decode()}"
            console().print(Text(hint, style="dim"))


# --- where from


class _Exporting:
    """Writes what holds."""

    def __init__(self, first: int, last: int | None, write: "Write", show: "Show") -> None:
        self._first, self._last, self._write, self._show = first, last, write, show
        self._head: Head | None = START if first == 1 else None
        self.cursor = first - 1
        self.upto = 0

    def end_at(self, newest: int) -> None:
        """Go as far as the chain does now. Raises Failed for a range that it does not have."""
        self.upto = newest if self._last is None else self._last
        if self.upto > newest or self._first > newest + 1:
            raise Failed(f"the chain ends at event #{newest}")

    @property
    def left(self) -> int:
        return self.upto - self.cursor

    def take(self, events: list[Event]) -> None:
        """Raises Failed for a link that does not hold."""
        if not events:
            raise Failed(f"event #{self.cursor + 1} is not there")
        head = self._head or Head(self._first - 1, events[0].prev_hash)
        verdict = verify(events, start=head)
        if not verdict.valid:
            raise Failed(f"the chain is broken: {verdict.reason}")
        self._head, self.cursor = verdict.head, verdict.head.event_id
        self._write(events)
        self._show(self.count, self.upto - self._first + 1)

    @property
    def count(self) -> int:
        return self.cursor - self._first + 1

    @property
    def head(self) -> Head:
        return self._head or START


Show = Callable[[int, int], None]
Write = Callable[[list[Event]], None]


def _from_server(url: str, exporting: _Exporting) -> None:
    from audit_stream.cli.remote import Remote
    from audit_stream.evidence import read_line

    with Remote(url) as remote:
        exporting.end_at(int(remote.get("stats").json()["last_event_id"]))
        while exporting.left:
            params = {"after": exporting.cursor, "limit": min(PAGE, exporting.left)}
            with remote.stream("events", params, accept="application/x-ndjson") as answer:
                lines = [line for line in answer.read().split(b"\n") if line]
            try:
                exporting.take([read_line(line) for line in lines])
            except ValueError as error:
                raise Failed(f"{url} answered with what is not an event: {error}") from error


async def _from_redis(stream: "Stream", exporting: _Exporting) -> None:
    from audit_stream.query import Pace

    exporting.end_at((await stream.head()).event_id)
    pace = Pace()
    while exporting.left:
        events = (await stream.page(exporting.cursor, upto=exporting.upto, count=pace.count)).unbroken()
        pace.saw(events)
        exporting.take(events)


# --- where to


@contextmanager
def _destination(out: str) -> Iterator[IO[bytes]]:
    from audit_stream.atomic import replacing

    if out == "-":
        yield sys.stdout.buffer
        return
    try:
        with replacing(Path(out)) as replacement:
            if out.endswith(".gz"):
                with cast("AbstractContextManager[IO[bytes]]", _packed(replacement.file)) as file:
                    yield file
            else:
                yield replacement.file
            replacement.commit()
    except OSError as error:
        raise Failed(f"--out: {out} cannot be written: {error.strerror or error}", exit_code=2) from error


def _packed(file: IO[bytes]) -> gzip.GzipFile:
    # Without name and time, so that the same events make the same file.
    return gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0)


class _Jsonl:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, events: list[Event]) -> None:
        from audit_stream.event import to_json

        self._file.write(b"".join(b"%b\n" % to_json(event) for event in events))


class _Csv:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._rows([Event._fields])

    def write(self, events: list[Event]) -> None:
        self._rows([event.event_id, *(_cell(field) for field in event[1:])] for event in events)

    def _rows(self, rows: Iterable[Sequence[object]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._file.write(text.getvalue().encode())


def _cell(field: bytes) -> str:
    """The field as text that no spreadsheet takes for a formula."""
    text = field.decode()
    return f"'{text}" if text.startswith(FORMULA) or text.lstrip().startswith(FORMULA) else text


class _Bus:
    """A line for each event. A relayed line that links onto those before it stands there again byte for byte."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._head = file, START

    def write(self, events: list[Event]) -> None:
        from audit_stream.bus.line import CONTINUED, Draft, link
        from audit_stream.event import to_json
        from audit_stream.pack import relayed_line

        for event in events:
            line = relayed_line(event)
            draft = line.content if line else None
            begins = draft and self._head == START and draft.msg_type == CONTINUED
            if not line or not draft:
                told = event.timestamp.decode(), event.source.decode(), "all", event.kind.decode()
                draft = Draft(*told, to_json(event).decode())
            if not line or not (begins or Head(line.seq - 1, line.prev_hash) == self._head):
                (line,) = link([draft], self._head, None)
            self._file.write(line.text() + b"\n")
            self._head = Head(line.seq, line.hash)


_WRITERS: dict[str, Callable[[IO[bytes]], _Jsonl | _Csv | _Bus]] = {"jsonl": _Jsonl, "csv": _Csv, "bus": _Bus}
