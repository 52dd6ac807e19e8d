"""audit-stream bus tail, query and stats."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.bus.line import Draft
from audit_stream.cli.bus.options import Wanted, bus_argument, filter_options
from audit_stream.cli.failures import Failed
from audit_stream.cli.options import json_option
from audit_stream.cli.output import console, facts_table, kind_style, printable, tell, wants_json, write_lines
from audit_stream.cli.tail import end_with_reader

if TYPE_CHECKING:
    from audit_stream.bus.following import Follower

POLL_S = 0.2
BATCH = 1_000


class Found(NamedTuple):
    seq: int | None
    text: bytes
    """The line as it stands there; of a .tsv file, made into JSON."""
    content: Draft
    is_own: bool = False
    key: str = ""


@click.command()
@bus_argument
@filter_options
@click.option("--from-start", is_flag=True, help="begin with the first line, of the oldest rotated file that is there")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="end after this many messages")
@json_option
def tail(
    file: Path,
    actor: str | None,
    to: str | None,
    type_: str | None,
    since: datetime | None,
    until: datetime | None,
    from_start: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Follow the bus live, through rotation, until Ctrl-C. The file need not be there yet."""
    from audit_stream.bus.following import Follower

    wanted, follower = Wanted(actor, to, type_, since, until), Follower(file)
    end_with_reader()
    try:
        with _readable(file):
            if not from_start:
                follower.begin_here()
            for found in islice(_followed(follower, wanted), limit):
                _show(found, as_json)
    except KeyboardInterrupt:
        pass


def _followed(follower: "Follower", wanted: Wanted) -> Iterator[Found]:
    while True:
        steps = follower.read(count=BATCH, size_bytes=1 << 20)
        for step in steps:
            if not step.line:
                tell(f"line {step.raw.number} is left out: {step.trouble}")
            elif wanted.takes(step.line.content):
                yield Found(step.line.seq, step.raw.text, step.line.content)
        if not steps:
            time.sleep(POLL_S)


@click.command()
@bus_argument
@filter_options
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="only the last N of them")
@json_option
def query(
    file: Path,
    actor: str | None,
    to: str | None,
    type_: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Find messages in a bus, or in a five-column .tsv file of the published one."""
    from collections import deque

    wanted = Wanted(actor, to, type_, since, until)
    found = (found for found in _contents(file) if wanted.takes(found.content))
    with _readable(file):
        any_found = False
        for message in found if limit is None else deque(found, maxlen=limit):
            any_found = True
            _show(message, as_json)
    if not any_found and not wants_json(as_json):
        tell("no such messages")


@click.command()
@bus_argument
@filter_options
@json_option
def stats(
    file: Path,
    actor: str | None,
    to: str | None,
    type_: str | None,
    since: datetime | None,
    until: datetime | None,
    as_json: bool,
) -> None:
    """Count the messages of a bus, by type and by actor, and tell its head."""
    wanted = Wanted(actor, to, type_, since, until)
    types, actors, keys = Counter[str](), Counter[str](), Counter[str]()
    first = last = None
    own, head = 0, None
    with _readable(file):
        for found in _contents(file):
            head = found
            if found.is_own:
                own += 1
            elif wanted.takes(found.content):
                types[found.content.msg_type] += 1
                actors[found.content.from_id] += 1
                keys[found.key] += 1
                first, last = first or found.content.timestamp, found.content.timestamp
        size = file.stat().st_size
    unsigned = keys.pop("", 0)
    body: dict[str, Any] = {
        "messages": types.total(), "first": first, "last": last, "types": dict(types), "actors": dict(actors),
        "keys": dict(keys), "unsigned": unsigned, "own_lines": own, "bytes": size, "head": None,
    }  # fmt: skip
    if head and head.seq is not None:
        body["head"] = {"seq": head.seq, "hash": msgspec.json.decode(head.text)["hash"]}
    if wants_json(as_json):
        write_lines([msgspec.json.encode(body)])
        return
    facts: list[tuple[str, str | Text]] = [("messages", f"{body['messages']:,}"), ("bytes", f"{size:,}")]
    facts += [("first", first), ("last", last)] if first and last else []
    facts += [(f"type {name}", f"{count:,}") for name, count in types.most_common(20)]
    facts += [(f"from {printable(name)}", f"{count:,}") for name, count in actors.most_common(20)]
    facts += [(f"signed {name}", f"{count:,}") for name, count in keys.most_common()]
    facts += [("head", f"#{body['head']['seq']}"), ("hash", body["head"]["hash"])] if body["head"] else []
    console().print(facts_table(facts))
    tell("counted, not verified: `audit-stream bus verify` gives the verdict")


# --- what is there


def _contents(path: Path) -> Iterator[Found]:
    from audit_stream.bus.reading import raw_lines
    from audit_stream.bus.tsv import is_tsv, rows

    if is_tsv(path):
        for row in rows(path):
            if row.content:
                body = dict(zip(("timestamp", "from", "to", "type", "message"), row.content, strict=True))
                yield Found(None, msgspec.json.encode(body), row.content)
            else:
                tell(f"{path}, line {row.number} is left out: it does not have five columns")
        return
    for raw in raw_lines(path):
        try:
            line = raw.read()
        except ValueError as error:
            tell(f"{path}, line {raw.number} is left out: {error}")
        else:
            yield Found(line.seq, raw.text, line.content, line.is_own, line.key.decode())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror or error}", exit_code=2) from error


def _show(found: Found, as_json: bool) -> None:
    if wants_json(as_json):
        write_lines([found.text])
        return
    out = console()
    timestamp, from_id, to_id, type_, message = found.content
    text = message if isinstance(message, str) else msgspec.json.encode(message).decode()
    line = Text.assemble(
        ("" if found.seq is None else f"#{found.seq}".ljust(7), "bold"),
        (f" {printable(timestamp)[:19]} ", "dim"),
        (f" {printable(type_).ljust(12)} ", kind_style(type_)),
        f" {printable(from_id)} → {printable(to_id)}  ",
        (printable(text, keep="\n").replace("\n", "⏎"), "dim"),
    )
    line.truncate(out.width, overflow="ellipsis")
    out.print(line)
