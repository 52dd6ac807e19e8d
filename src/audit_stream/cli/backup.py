"""audit-stream backup: an export of the whole chain, as an operator wants it."""

import shlex
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.exporting import Exporting, Jsonl, destination, from_redis, from_server
from audit_stream.cli.failures import Failed
from audit_stream.cli.local import stopped_server, with_stream
from audit_stream.cli.options import choose_one, json_option, redis_url_option, setting_option, url_option
from audit_stream.cli.output import console, wants_json, write_lines
from audit_stream.cli.progress import progress
from audit_stream.errors import Misconfigured

data_dir_option = click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="data folder of a server that is stopped and keeps its chain in the embedded Valkey",
)


@click.command()
@click.argument("file")
@click.option("--from", "first", metavar="ID", type=click.IntRange(min=1), default=1, help="begin with this event")
@url_option()
@redis_url_option()
@data_dir_option
@setting_option("AUDIT_STREAM_CHAIN")
@json_option
@click.pass_context
def backup(
    ctx: click.Context,
    file: str,
    first: int,
    url: str,
    redis_url: str | None,
    data_dir: Path | None,
    chain: str,
    as_json: bool,
) -> None:
    """Write the whole chain to FILE, commit times included; packed when it ends with .gz.

    Servers go on meanwhile. The chain is verified on the way. FILE is for its owner alone, and on disk when this
    ends; nothing takes its place unless all of it is there. `audit-stream restore FILE` makes a chain of it again.
    """
    choose_one(ctx, "url", "redis_url", "data_dir")
    if file == "-":
        raise click.UsageError("A backup is a file; `audit-stream export --out -` writes to standard output.")
    with ExitStack() as stack:
        if data_dir:
            redis_url = stack.enter_context(_stopped(data_dir))
        exporting = _write(file, first, url, redis_url, chain)
    if exporting is None:
        if wants_json(as_json):
            write_lines([msgspec.json.encode({"events": 0, "first": first, "head": None, "file": None})])
        else:
            console().print(f"nothing is new since event #{first - 1}; nothing was written")
        return
    exporting.tell_untimed()
    head = exporting.head
    if wants_json(as_json):
        body = {
            "events": exporting.count,
            "first": first,
            "head": {"event_id": head.event_id, "hash": head.hash.decode()},
            "without_commit_time": exporting.untimed,
            "file": file,
        }
        write_lines([msgspec.json.encode(body)])
        return
    out = console()
    out.print(
        Text.assemble(
            ("backed up", "bold green"), f"  {exporting.count:,} events, #{first} to #{head.event_id}, to {file}"
        )
    )
    out.print(Text("Check it at any time, without a server, and keep the head that is in this line elsewhere:", "dim"))
    out.print(Text(f"audit-stream verify {shlex.quote(file)} --expect {head.event_id}:{head.hash.decode()}"))
    where = "after what it follows" if first > 1 else "into an empty Redis, or with --data-dir into an empty folder"
    out.print(Text(f"Restore it {where}:", "dim"))
    out.print(Text(f"audit-stream restore {shlex.quote(file)} --redis-url redis://…"))


def _stopped(data_dir: Path) -> AbstractContextManager[str]:
    # Starting Valkey on any other folder would make an empty chain there.
    if not any((data_dir / name).exists() for name in ("appendonlydir", "appendonly.aof")):
        raise Misconfigured(f"--data-dir: {data_dir} holds no chain: name the AUDIT_STREAM_DATA_DIR of the server")
    return stopped_server(data_dir, why="back the chain up through that server: leave --data-dir out, or give --url")


class _NothingNew(Exception):
    """No event is to be written, so no file either."""


def _write(file: str, first: int, url: str, redis_url: str | None, chain: str) -> Exporting | None:
    """None when the chain ends before event `first`. Raises Failed, also for an empty chain."""
    with suppress(_NothingNew), destination(file, flag="FILE", private=True) as out, progress("backing up") as show:
        exporting = Exporting(first, None, Jsonl(out).write, show)
        try:
            if redis_url:
                with_stream(redis_url, chain, lambda stream: from_redis(stream, exporting))
            else:
                from_server(url, exporting)
        except Failed as failed:
            if failed.status is None and not failed.in_doubt and not redis_url and not exporting.upto:
                raise Failed(f"{failed} The chain of a stopped server is backed up with --data-dir DIR.") from failed
            raise
        if not exporting.count and first == 1:
            raise Failed("the chain is empty: there is nothing to back up. Is it the right server, and chain?")
        if not exporting.count:
            raise _NothingNew
        return exporting
    return None
