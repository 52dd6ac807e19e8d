"""audit-stream postgres: the tables of a database as a producer."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.table import Table
from rich.text import Text

from audit_stream.cli.daemons import need, run_until_told
from audit_stream.cli.failures import Failed
from audit_stream.cli.options import json_option
from audit_stream.cli.output import console, facts_table, printable, wants_json, write_lines

if TYPE_CHECKING:
    from audit_stream.sources.postgres.installation import Status

_database_option = click.option(
    "--database-url",
    envvar="DATABASE_URL",
    metavar="URL",
    default="",
    help="the database: postgresql://user@host/name, or what else libpq takes\n\nDATABASE_URL",
)


@click.group()
def postgres() -> None:
    """Record every change to chosen tables of a PostgreSQL database.

    `install` puts the triggers' functions and an outbox into the database, `SELECT audit_stream.watch('table',
    'event_kind')` chooses a table, and `relay` carries the changes to the spine.
    """
    need("postgres", "psycopg")


@postgres.command()
@_database_option
@click.option("--print", "only_print", is_flag=True, help="print the SQL instead of running it")
def install(database_url: str, only_print: bool) -> None:
    """Install audit_stream in a database, or upgrade it. Watches and waiting changes stay."""
    from audit_stream.sources.postgres import installation
    from audit_stream.sources.postgres.settings import database_url as checked

    if only_print:
        write_lines(installation.script().rstrip("\n").encode().split(b"\n"))
        return
    before, now = installation.install(checked(database_url))
    out = console()
    if before is None:
        out.print(Text.assemble(("installed", "bold green"), f"  audit_stream {now}"))
        out.print(Text("  next: SELECT audit_stream.watch('TABLE', 'EVENT_KIND', 'SOURCE');", style="dim"))
    elif before == now:
        out.print(Text.assemble(("up to date", "bold green"), f"  audit_stream {now}, its triggers as its watches say"))
    else:
        out.print(Text.assemble(("upgraded", "bold green"), f"  audit_stream {before} to {now}"))
    found = installation.status(database_url)
    for watch in found.watches if found else ():
        if watch.state != "watching":
            out.print(Text.assemble((printable(watch.table_name), "bold red"), f"  {printable(watch.state)}"))


@postgres.command()
@_database_option
@click.option("--discard", is_flag=True, help="also when changes wait that the chain does not have: they are lost")
def uninstall(database_url: str, discard: bool) -> None:
    """Stop watching every table and remove audit_stream from the database."""
    from audit_stream.sources.postgres import installation
    from audit_stream.sources.postgres.settings import database_url as checked

    try:
        removed = installation.uninstall(checked(database_url), discard=discard)
    except installation.Waiting as error:
        raise Failed(f"nothing was removed: {error}") from error
    console().print("removed" if removed else "audit_stream is not installed in this database")


@postgres.command()
@_database_option
@json_option
def status(database_url: str, as_json: bool) -> int:
    """What is watched, what waits, and who carries it.

    Exit code 0 when all is well; 1 when audit_stream is not installed, a watch does not work, no relay leads or
    there are dead letters.
    """
    from audit_stream.sources.postgres import installation
    from audit_stream.sources.postgres.settings import database_url as checked

    found = installation.status(checked(database_url))
    if found is None:
        raise Failed("audit_stream is not installed in this database: run `audit-stream postgres install`")
    if wants_json(as_json):
        import msgspec

        watches = [watch._asdict() for watch in found.watches]
        behind_s = found.behind.total_seconds()
        write_lines([msgspec.json.encode({**found._asdict(), "watches": watches, "behind": behind_s})])
    else:
        _show(found)
    broken = [watch for watch in found.watches if watch.state != "watching"]
    return 1 if broken or found.dead_letters or not found.relay else 0


def _show(found: "Status") -> None:
    dead = Text(f"{found.dead_letters:,}", style="red" if found.dead_letters else "")
    if found.dead_letters:
        dead.append("  (SELECT * FROM audit_stream.dead_letters; SELECT audit_stream.requeue())", style="dim")
    out = console()
    out.print(
        facts_table(
            [
                ("audit_stream", f"{found.version}, as {'an extension' if found.how == 'extension' else 'a script'}"),
                ("relay", found.relay or Text("none: run `audit-stream postgres relay`", style="red")),
                ("waiting", f"{found.waiting:,}" + (f", the oldest for {_span(found)}" if found.waiting else "")),
                ("dead letters", dead),
            ]
        )
    )
    if not found.watches:
        out.print(Text("nothing is watched: SELECT audit_stream.watch('TABLE', 'EVENT_KIND', 'SOURCE')", style="dim"))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("table", "kind", "source", "state"):
        table.add_column(name)
    for watch in found.watches:
        table.add_row(
            Text(printable(watch.table_name)),
            watch.event_kind or "",
            Text(printable(watch.source or "")),
            Text(watch.state, style="green" if watch.state == "watching" else "red"),
        )
    out.print()
    out.print(table)


def _span(found: "Status") -> str:
    return str(found.behind).partition(".")[0]


@postgres.command()
def relay() -> int:
    """Carry changes from the database to the spine until told to stop (SIGTERM). Also `audit-stream-bridge`.

    Several may run: one leads, the others wait for its place. Settings are environment variables: DATABASE_URL,
    AUDIT_STREAM_URL, AUDIT_STREAM_TOKEN, POLL_TIMEOUT, LOG_LEVEL and METRICS_LISTEN. docs/postgres.md has them all.
    """
    from audit_stream.daemon import log_to_stderr
    from audit_stream.sources.postgres.relay import Relay
    from audit_stream.sources.postgres.settings import RelaySettings

    settings = RelaySettings.from_env(os.environ)
    log_to_stderr(settings.log_level)

    run_until_told(lambda: Relay(settings))
    return 0


def bridge() -> Any:
    """The console script audit-stream-bridge: `audit-stream postgres relay` under its published name."""
    from audit_stream.cli import main

    sys.argv[:1] = [str(Path(sys.argv[0]).with_name("audit-stream")), "postgres", "relay"]
    main()
