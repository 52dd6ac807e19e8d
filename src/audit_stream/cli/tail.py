"""audit-stream tail."""

import json
import os
import select
import stat
import sys
from threading import Thread

import rich_click as click

from audit_stream.cli.examples import examples
from audit_stream.cli.options import json_option, kind_option, source_option, url_option
from audit_stream.cli.output import console, wants_json, write_lines
from audit_stream.cli.rows import Rows, columns_option, wide_option


@click.command(
    epilog=examples(
        "tail --kind request_denied",
        "tail --source orders --columns id,time,payload.id",
        "tail --from-start --json > events.jsonl",
    )
)
@kind_option
@source_option
@click.option("--after", metavar="ID", type=click.IntRange(min=0), help="begin after this event, default: now")
@click.option("--from-start", is_flag=True, help="begin with event 1")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="end after this many events")
@columns_option
@wide_option
@url_option()
@json_option
def tail(
    kind: str | None,
    source: str | None,
    after: int | None,
    from_start: bool,
    limit: int | None,
    columns: tuple[str, ...] | None,
    wide: bool,
    url: str,
    as_json: bool,
) -> int:
    """Follow the chain live, until Ctrl-C.

    Lost connections and restarts of the server are waited out; no event is missed or shown twice.
    """
    from audit_stream.cli.follow import follow
    from audit_stream.cli.remote import Remote

    if from_start and after is not None:
        raise click.UsageError("Choose one of --after and --from-start.")
    as_json = as_json or (wants_json(False) and not columns and not wide)
    end_with_reader()
    rows = Rows(console(), columns=columns, wide=wide)
    left = limit
    try:
        with Remote(url) as remote:
            cursor = 0 if from_start else after
            if cursor is None:
                # A place to resume from, known before the first event comes.
                cursor = int(remote.get("stats").json()["last_event_id"])
            for events in follow(remote, {"kind": kind, "source": source}, cursor):
                shown = events if left is None else events[:left]
                if as_json:
                    write_lines(shown)
                else:
                    for event in shown:
                        rows.print(json.loads(event))
                if left is not None:
                    left -= len(shown)
                    if left == 0:
                        break
    except KeyboardInterrupt:
        pass
    return 0


def end_with_reader() -> None:
    """End when the reader of our output does, as in `| head -1`: the next event may be a long time coming."""
    try:
        pipe = sys.stdout.fileno()
        if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            return
    except (OSError, ValueError):
        return

    def watch() -> None:
        # With nothing asked for, poll answers only when the other end is closed.
        poll = select.poll()
        poll.register(pipe, 0)
        poll.poll()
        os._exit(0)

    Thread(target=watch, daemon=True).start()
