"""Options that several commands of the bus share, and the filters they make."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import rich_click as click

from audit_stream.bus.line import Draft
from audit_stream.errors import Refused
from audit_stream.timestamps import instant

Function = TypeVar("Function", bound=Callable[..., Any])

key_option = click.option(
    "--key",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="keys, one ID:SECRET a line; the last one signs\n\n"
    "AUDIT_STREAM_BUS_KEY_FILE, or AUDIT_STREAM_BUS_KEY for a key itself",
)
bus_argument = click.argument("file", type=click.Path(path_type=Path))


class Wanted(NamedTuple):
    """Which messages are wanted: all that is given must hold."""

    actor: str | None
    to: str | None
    type: str | None
    since: datetime | None
    until: datetime | None

    def takes(self, draft: Draft) -> bool:
        asked = ((self.actor, draft.from_id), (self.to, draft.to_id), (self.type, draft.msg_type))
        if any(wanted is not None and wanted != found for wanted, found in asked):
            return False
        if self.since is None and self.until is None:
            return True
        try:
            at = instant(draft.timestamp, field="timestamp")
        except Refused:
            return True  # posted without validation: better shown once too often than never
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)


def _instant(_: click.Context, parameter: click.Parameter, text: str | None) -> datetime | None:
    try:
        return instant(text, field=parameter.opts[0]) if text else None
    except Refused as refused:
        raise click.UsageError(f"{refused}.") from refused


def filter_options(function: Function) -> Function:
    for option in (
        click.option("--until", metavar="TIME", callback=_instant, help="before this RFC 3339 instant"),
        click.option("--since", metavar="TIME", callback=_instant, help="at or after this RFC 3339 instant"),
        click.option("--type", "type_", metavar="TYPE", help="only messages of this type"),
        click.option("--to", metavar="ID", help="only messages to it"),
        click.option("--actor", metavar="ID", help="only messages from it"),
    ):
        function = option(function)
    return function
