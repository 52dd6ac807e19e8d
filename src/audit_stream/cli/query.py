"""audit-stream query."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import rich_click as click

from audit_stream.cli.cells import csv_lines
from audit_stream.cli.examples import examples
from audit_stream.cli.options import json_option, kind_option, source_option, url_option
from audit_stream.cli.output import console, tell, wants_json, write, write_lines
from audit_stream.cli.rows import Rows, columns_option, csv_rows, wide_option
from audit_stream.cli.when import FORMS, time_given

if TYPE_CHECKING:
    from audit_stream.cli.remote import Remote

PAGE = 1_000

Form = Literal["table", "json", "csv"]


@click.command(
    epilog=examples(
        "query --source orders --since -1h",
        "query --kind request_denied --since 2026-11-01 --until yesterday",
        "query --columns id,timestamp,payload.id --format csv > events.csv",
    )
)
@kind_option
@source_option
@click.option("--since", metavar="TIME", callback=time_given, help=f"committed at or after this: {FORMS}")
@click.option("--until", metavar="TIME", callback=time_given, help="committed before this, written the same")
@click.option("--after", metavar="ID", type=click.IntRange(min=0), help="events after this one, the oldest first")
@click.option("--before", metavar="ID", type=click.IntRange(min=0), help="events before this one")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), default=1000, help="at most this many, default: 1000")
@columns_option
@wide_option
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "csv"]),
    metavar="FORMAT",
    help="table, json or csv, default: table on a terminal, json in a pipe",
)
@url_option()
@json_option
def query(
    limit: int,
    columns: tuple[str, ...] | None,
    wide: bool,
    format_: Form | None,
    url: str,
    as_json: bool,
    **filters: Any,
) -> None:
    """Find events.

    All filters must hold. Without --after the newest are shown, in ascending order.
    """
    from audit_stream.cli.remote import Remote

    form = _form(format_, as_json, as_table=bool(columns) or wide)
    with Remote(url) as remote:
        pages = _pages(remote, filters, limit)
        if filters["after"] is None:
            # The newest page comes first, and is shown last.
            pages = iter(list(pages)[::-1])
        if form == "json":
            for page in pages:
                write_lines(page)
            return
        events = [json.loads(event) for page in pages for event in page]
    if form == "csv":
        write(csv_lines(csv_rows(events, columns)))
    elif events:
        out = console()
        time_format = "%Y-%m-%d %H:%M:%S" if wide or out.width >= 100 or not out.is_terminal else "%m-%d %H:%M:%S"
        Rows(out, columns=columns, wide=wide, time_format=time_format, sample=events).print_all(events)
    else:
        tell("no such events")


def _form(format_: Form | None, as_json: bool, *, as_table: bool) -> Form:
    if as_json and format_ not in (None, "json"):
        raise click.UsageError("Choose one of --json and --format.")
    if format_:
        return format_
    return "json" if as_json or (wants_json(False) and not as_table) else "table"


def _pages(remote: "Remote", filters: dict[str, Any], limit: int) -> Iterator[list[bytes]]:
    import httpx

    params: dict[str, Any] = filters
    while True:
        params = {**params, "limit": min(limit, PAGE)}
        with remote.stream("events", params, accept="application/x-ndjson") as answer:
            page = [line for line in answer.read().split(b"\n") if line]
        yield page
        limit -= len(page)
        following = answer.links.get("next")
        if not following or limit <= 0 or not page:
            return
        params = dict(httpx.URL(following["url"]).params)
