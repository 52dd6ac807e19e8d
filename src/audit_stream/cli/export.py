"""audit-stream export."""

from collections.abc import Callable
from typing import IO, Literal

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.chain import START, Event, Head
from audit_stream.cli.cells import csv_lines
from audit_stream.cli.exporting import Exporting, Jsonl, Times, destination, from_redis, from_server
from audit_stream.cli.local import with_stream
from audit_stream.cli.options import choose_one, json_option, redis_url_option, setting_option, url_option
from audit_stream.cli.output import console, tell, wants_json, write_lines
from audit_stream.cli.progress import progress
from audit_stream.exported import COMMITTED_AT, format_ms


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
    checked on the way, and nothing takes the file's place unless all of it is there. The file is for its owner
    alone. Beside each event stands the time of its commit, which is not hashed.
    """
    choose_one(ctx, "url", "redis_url")
    if last is not None and last < first:
        raise click.UsageError(f"--to: {last} is before --from: {first}.")
    with destination(out, private=True) as file, progress("exporting") as show:
        exporting = Exporting(first, last, _WRITERS[format_](file).write, show, timed=format_ != "bus")
        if redis_url:
            with_stream(redis_url, chain, lambda stream: from_redis(stream, exporting))
        else:
            from_server(url, exporting)
    exporting.tell_untimed()
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


class _Csv:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        file.write(csv_lines([[*Event._fields, COMMITTED_AT]]))

    def write(self, events: list[Event], times: Times) -> None:
        self._file.write(
            csv_lines(
                [event.event_id, *(field.decode() for field in event[1:]), "" if ms is None else format_ms(ms)]
                for event, ms in zip(events, times, strict=True)
            )
        )


class _Bus:
    """A line for each event. A relayed line that links onto those before it stands there again byte for byte."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._head = file, START

    def write(self, events: list[Event], times: Times) -> None:
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


_WRITERS: dict[str, Callable[[IO[bytes]], Jsonl | _Csv | _Bus]] = {"jsonl": Jsonl, "csv": _Csv, "bus": _Bus}
