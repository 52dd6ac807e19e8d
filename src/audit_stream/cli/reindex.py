"""audit-stream reindex."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.local import with_stream
from audit_stream.cli.options import json_option, redis_url_option, setting_option
from audit_stream.cli.output import console, wants_json, write_lines
from audit_stream.cli.progress import progress

if TYPE_CHECKING:
    from audit_stream.reindex import Rebuilt
    from audit_stream.stream import Stream


@click.command()
@redis_url_option("AUDIT_STREAM_REDIS_URL", "REDIS_URL")
@setting_option("AUDIT_STREAM_CHAIN")
@click.option("--yes", is_flag=True, help="do not ask")
@json_option
def reindex(redis_url: str | None, chain: str, yes: bool, as_json: bool) -> None:
    """Rebuild the indexes from the chain.

    Servers may go on appending meanwhile. The events are read and never changed; the indexes are
    replaced all at once at the end.
    """
    if redis_url is None:
        raise click.UsageError(f"--redis-url is missing.{_embedded()}")
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("--yes is missing: nobody is here to be asked.")
        click.confirm(f"Replace the indexes of chain {chain!r}?", abort=True, err=True)
    rebuilt = with_stream(redis_url, chain, _rebuild)
    if wants_json(as_json):
        write_lines([msgspec.json.encode(rebuilt._asdict())])
        return
    out = console()
    out.print(Text.assemble(("rebuilt", "bold green"), f"  {rebuilt.indexes} indexes from {rebuilt.events:,} events"))
    if rebuilt.estimated:
        out.print(Text(f"  {rebuilt.estimated:,} commit times were lost and are estimated", style="dim"))
    out.print(Text("  audit-stream verify says whether they agree with the chain", style="dim"))


async def _rebuild(stream: "Stream") -> "Rebuilt":
    from audit_stream.reindex import reindex as rebuild

    with progress("reindexing") as show:
        return await rebuild(stream, show)


def _embedded() -> str:
    """Where the embedded Valkey listens, if there is one."""
    import os

    from audit_stream.settings import Settings

    socket = Settings.from_env(os.environ).data_dir / "valkey.sock"
    return f" The embedded Valkey is at unix://{socket}." if Path(socket).is_socket() else ""
