"""audit-stream query."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import rich_click as click

from audit_stream.cli.options import json_option, kind_option, source_option, url_option
from audit_stream.cli.output import console, events_table, tell, wants_json, write_lines

if TYPE_CHECKING:
    from audit_stream.cli.remote import Remote

PAGE = 1_000


@click.command()
@kind_option
@source_option
@click.option("--since", metavar="TIME", help="committed at or after this RFC 3339 instant")
@click.option("--until", metavar="TIME", help="committed before this RFC 3339 instant")
@click.option("--after", metavar="ID", type=click.IntRange(min=0), help="events behind this one, the oldest first")
@click.option("--before", metavar="ID", type=click.IntRange(min=0), help="events before this one")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), default=1000, help="at most this many, default: 1000")
@url_option()
@json_option
def query(limit: int, url: str, as_json: bool, **filters: Any) -> None:
    """Find events.

    All filters must hold. Without --after the newest are shown, in ascending order.
    """
    from audit_stream.cli.remote import Remote

    with Remote(url) as remote:
        pages = _pages(remote, filters, limit)
        if filters["after"] is None:
            # The newest page comes first, and is shown last.
            pages = iter(list(pages)[::-1])
        if wants_json(as_json):
            for page in pages:
                write_lines(page)
            return
        out = console()
        events = [json.loads(event) for page in pages for event in page]
    if events:
        out.print(events_table(events, out.width))
    else:
        tell("no such events")


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
