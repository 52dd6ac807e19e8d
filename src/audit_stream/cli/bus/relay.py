"""audit-stream bus relay."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.bus.options import bus_argument
from audit_stream.cli.failures import Failed
from audit_stream.cli.options import given_token, json_option, url_option
from audit_stream.cli.output import console, printable, wants_json, write_lines

if TYPE_CHECKING:
    from audit_stream.client import Drained


@click.command()
@bus_argument
@url_option()
@click.option(
    "--map", "mapping", metavar="TYPE=KIND", multiple=True, help="messages of this type become events of that kind"
)
@click.option("--kind", metavar="KIND", default="other", help="kind of all other events, default: other")
@click.option("--source", metavar="SOURCE", help="source of the events, default: who sent the message")
@click.option("--once", is_flag=True, help="relay what is there, then end: 0 all of it, 1 some was refused or waits")
@json_option
def relay(
    file: Path, url: str, mapping: tuple[str, ...], kind: str, source: str | None, once: bool, as_json: bool
) -> int:
    """Append every line of a bus to the chain, in order, each once; follow it until SIGTERM or Ctrl-C.

    A server that is away is waited for, for days if need be. FILE.cursor remembers how far the relay has come,
    FILE.refused what the server refused for good. Rotated files are found as FILE*, in the same folder.
    """
    from audit_stream.sources.bus import Mapped, Relay

    relaying = Relay(file, url, mapped=Mapped(_kinds(mapping), kind, source).request_of, token=given_token())

    def say(drained: "Drained") -> None:
        _say(drained, file, as_json)

    try:
        if once:
            try:
                drained = relaying.once()
            except OSError as error:
                raise Failed(f"{error.filename or file} cannot be kept: {error.strerror or error}") from error
            say(drained)
            return int(bool(drained.refused or drained.left))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: relaying.stop())
        relaying.run(say)
    finally:
        relaying.close()
    return 0


def _kinds(mapping: tuple[str, ...]) -> dict[str, str]:
    kinds = {}
    for text in mapping:
        type_, equals, kind = text.rpartition("=")
        if not equals or not type_ or not kind:
            raise click.UsageError(f"--map: {text!r} is not written like STATUS=other.")
        kinds[type_] = kind
    return kinds


def _say(drained: "Drained", file: Path, as_json: bool) -> None:
    if wants_json(as_json):
        write_lines([msgspec.json.encode(drained)])
        return
    out = console()
    if drained.stored or not (drained.refused or drained.reason):
        out.print(Text.assemble(("relayed", "bold green"), f"  {drained.stored:,} lines"))
    if drained.refused:
        out.print(
            Text.assemble(
                ("refused", "bold red"), f"  {drained.refused:,} lines, kept in {file}.refused with the reason"
            )
        )
    if drained.reason:
        out.print(Text.assemble(("waiting", "bold yellow"), f"  {drained.left:,} lines: {printable(drained.reason)}"))
