"""audit-stream bus: the local log. None of it needs a server but `relay`."""

import rich_click as click

from audit_stream.cli.bus.files import convert, keygen, post, rotate
from audit_stream.cli.bus.reading import query, stats, tail
from audit_stream.cli.bus.relay import relay
from audit_stream.cli.bus.verify import verify


class InOrder(click.RichGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder)
def bus() -> None:
    """The governance bus: a local, hash-chained log of one JSON message a line."""


for command in (post, tail, query, stats, verify, relay, convert, rotate, keygen):
    bus.add_command(command)
