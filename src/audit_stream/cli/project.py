"""audit-stream project: the chain as rows and as files that compliance teams load."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.core import ParameterSource
from rich.table import Table
from rich.text import Text

from audit_stream.cli.failures import Failed
from audit_stream.cli.options import given_token, json_option, url_option
from audit_stream.cli.output import console, printable, wants_json, write_lines
from audit_stream.sinks.variables import VARIABLES

if TYPE_CHECKING:
    from audit_stream.sinks.settings import SinkSettings
    from audit_stream.sinks.sink import Standing

# The flag of each setting, and what it is called where a value is shown.
FLAGS = {
    "DATABASE_URL": ("--database-url", "URL"),
    "LOG_DIR": ("--log-dir", "FOLDER"),
    "TENANT_ID": ("--tenant-id", "ID"),
    "PURVIEW_FORMAT": ("--format", "FORMAT"),
    "JSONL_ROTATE": ("--rotate", "WHEN"),
    "LOG_GZIP": ("--gzip", "ON|OFF"),
    "LOG_LEVEL": ("--log-level", "LEVEL"),
    "METRICS_LISTEN": ("--metrics-listen", "ADDRESS"),
}
_WHERE = ("DATABASE_URL", "LOG_DIR", "PURVIEW_FORMAT")

log = logging.getLogger("audit_stream.project")


def _setting_options(*names: str) -> Callable[[Any], Any]:
    """One flag for each setting, said in the words of the settings; `--to` first."""

    def decorate(command: Any) -> Any:
        command = url_option()(command)
        for name in reversed(names):
            flag, metavar = FLAGS[name]
            default = f", default: {VARIABLES[name].default}" if VARIABLES[name].default else ""
            text = f"{VARIABLES[name].help}\n\n{name}{default}"
            command = click.option(flag, name.lower(), metavar=metavar, help=text)(command)
        text = f"a sink, may be given again: {VARIABLES['PROJECT_TO'].help}\n\nPROJECT_TO"
        return click.option("--to", "project_to", multiple=True, metavar="SINK", help=text)(command)

    return decorate


@click.group(invoke_without_command=True)
@_setting_options(*FLAGS)
@click.option("--once", is_flag=True, help="end when the end of the chain is reached")
@json_option
@click.pass_context
def project(ctx: click.RichContext, /, once: bool, as_json: bool, **_: Any) -> int | None:
    """Project the chain into sinks, each from its own cursor, until told to stop (SIGTERM).

    postgres is a table, purview, trust and jsonl are files. Whatever is killed or away meanwhile, each event is in
    each sink once, in order. docs/projections.md has the formats.
    """
    ctx.obj = _environ(ctx, os.environ)
    if ctx.invoked_subcommand is not None:
        return None
    from audit_stream.daemon import log_to_stderr

    settings = _settings(ctx.obj)
    # What `--once` did is its output.
    log_to_stderr("WARNING" if once and settings.log_level == "INFO" else settings.log_level)
    if once:
        return asyncio.run(_once(settings, wants_json(as_json)))
    asyncio.run(_for_ever(settings))
    return 0


async def _for_ever(settings: "SinkSettings") -> None:
    from prometheus_client import CollectorRegistry

    from audit_stream.daemon import served
    from audit_stream.sinks import running

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    registry = CollectorRegistry()
    with served(registry, settings.metrics, log, asked_for=settings.metrics_asked_for):
        async with running(settings, registry=registry):
            log.info("projecting %s to %s", settings.audit_stream_url, ", ".join(settings.sinks))
            await stopping.wait()
    log.info("stopped")


async def _once(settings: "SinkSettings", as_json: bool) -> int:
    from audit_stream.sinks.projections import Projections

    projections = Projections(settings)
    failed = await projections.run_to_the_end()
    for progress in projections.progress:
        if as_json:
            import msgspec

            said = {"sink": progress.sink, "event_id": progress.head.event_id, "hash": progress.head.hash.decode()}
            counted = {"events": progress.events, "error": failed.get(progress.sink)}
            write_lines([msgspec.json.encode({**said, **counted})])
        elif progress.sink in failed:
            line = Text.assemble((f"{progress.sink:<8}", "bold red"), "  ", printable(failed[progress.sink]))
            console(stderr=True).print(line)
        else:
            done = f"  {progress.events:,} events, up to #{progress.head.event_id}"
            console().print(Text.assemble((f"{progress.sink:<8}", "bold green"), done))
    return 1 if failed else 0


@project.command()
@click.option("--database-url", metavar="URL", help="the database\n\nDATABASE_URL")
@click.option("--print", "only_print", is_flag=True, help="print the SQL instead of running it")
@click.pass_context
def init(ctx: click.RichContext, /, only_print: bool, **_: Any) -> None:
    """Make the schema audit_events in the database, or bring it up to date. Rows stay."""
    from audit_stream.sinks.settings import check_database_url, check_psycopg

    check_psycopg()
    environ = _environ(ctx, ctx.obj)
    if not only_print:
        check_database_url(environ.get("DATABASE_URL", ""))
    from audit_stream.sinks.postgres import schema

    if only_print:
        write_lines(schema.script().encode().split(b"\n"))
        return
    before, now = schema.init(environ["DATABASE_URL"])
    if before == now:
        console().print(Text.assemble(("up to date", "bold green"), f"  audit_events, version {now}"))
    else:
        what = f"audit_events, version {now}" if not before else f"audit_events, version {before} to {now}"
        console().print(Text.assemble(("applied", "bold green"), f"  {what}"))


@project.command()
@click.option("--database-url", metavar="URL", help="the database\n\nDATABASE_URL")
@click.option("--tenant-id", metavar="ID", help="as the projection was given it\n\nTENANT_ID")
@json_option
@click.pass_context
def check(ctx: click.RichContext, /, as_json: bool, **_: Any) -> int:
    """Check the table by itself: that its rows are a chain, and say what was hashed.

    Exit code 0 when all hold; 1 when not, with each row that does not and why.
    """
    from audit_stream.sinks.settings import check_database_url

    environ = _environ(ctx, ctx.obj)
    check_database_url(environ.get("DATABASE_URL", ""))
    from audit_stream.sinks.postgres import checking

    found = checking.check(environ["DATABASE_URL"], environ.get("TENANT_ID") or None)
    event_id, hash_ = found.head or (0, "")
    if wants_json(as_json):
        import msgspec

        troubles = [trouble._asdict() for trouble in found.troubles]
        said = {"valid": not troubles, "rows": found.rows, "head": {"event_id": event_id, "hash": hash_}}
        write_lines([msgspec.json.encode({**said, "troubles": troubles})])
    else:
        for trouble in found.troubles:
            console().print(Text.assemble((f"#{trouble.event_id}", "bold red"), f"  {printable(trouble.reason)}"))
        word = ("broken", "bold red") if found.troubles else ("intact", "bold green")
        console().print(Text.assemble(word, f"  {found.rows:,} rows, head {event_id}:{hash_}"))
    return 1 if found.troubles else 0


@project.command()
@_setting_options(*_WHERE)
@json_option
@click.pass_context
def status(ctx: click.RichContext, /, as_json: bool, **_: Any) -> int:
    """How far each sink has come, and whether a projection is at work on it.

    Exit code 0 when all is well; 1 when a sink or the spine does not answer, or a sink is behind and nobody is at
    work on it.
    """
    settings = _settings(_environ(ctx, ctx.obj))
    newest, standings = asyncio.run(_ask(settings))
    rows = list[dict[str, Any]]()
    for name, standing in standings.items():
        if isinstance(standing, Exception):
            rows.append({"sink": name, "error": str(standing)})
        else:
            lag = None if isinstance(newest, Exception) else max(0, newest - standing.event_id)
            rows.append({"sink": name, **standing._asdict(), "lag": lag})
    if wants_json(as_json):
        import msgspec

        spine = {"error": str(newest)} if isinstance(newest, Exception) else {"event_id": newest}
        write_lines([msgspec.json.encode({"spine": spine, "sinks": rows})])
    else:
        _show(newest, rows)
    well = all("error" not in row and (row["at_work"] or not row["lag"]) for row in rows)
    return 0 if well and isinstance(newest, int) else 1


async def _ask(settings: "SinkSettings") -> "tuple[int | Exception, dict[str, Standing | Exception]]":
    from audit_stream.chain import Head
    from audit_stream.errors import AuditStreamError
    from audit_stream.sinks.choosing import sinks_of
    from audit_stream.sinks.reading import Chain

    chain = Chain(settings.audit_stream_url, settings.headers)
    newest: int | Exception
    standings: dict[str, Standing | Exception] = {}
    try:
        try:
            newest = (await chain.head()).event_id
        except AuditStreamError as error:
            newest = error
        for sink in sinks_of(settings):
            try:
                standings[sink.name] = standing = await sink.standing()
                if isinstance(newest, int):
                    await chain.check(Head(standing.event_id, standing.hash.encode()))
            except (AuditStreamError, OSError) as error:
                standings[sink.name] = error
    finally:
        await chain.close()
    return newest, standings


def _show(newest: int | Exception, rows: list[dict[str, Any]]) -> None:
    out = console()
    if isinstance(newest, Exception):
        out.print(Text.assemble(("spine     ", "dim"), (printable(str(newest)), "red")))
    else:
        out.print(Text.assemble(("spine     ", "dim"), f"#{newest}"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("sink", "event", "behind", "at work"):
        table.add_column(name, justify="right" if name in ("event", "behind") else "left")
    for row in rows:
        if "error" in row:
            table.add_row(row["sink"], "", "", Text(printable(row["error"]), style="red"))
            continue
        lag = "?" if row["lag"] is None else f"{row['lag']:,}"
        nobody = Text("nobody: run `audit-stream project`", style="red" if row["lag"] else "dim")
        table.add_row(row["sink"], f"#{row['event_id']}", lag, Text("yes", style="green") if row["at_work"] else nobody)
    out.print(table)


# --- settings


def _environ(ctx: click.Context, base: Mapping[str, str]) -> dict[str, str]:
    """The environment, with what was given as flags of this command in its place."""
    environ = dict(base)
    for name, value in ctx.params.items():
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            variable = "AUDIT_STREAM_URL" if name == "url" else name.upper()
            environ[variable] = ",".join(value) if isinstance(value, tuple) else str(value)
    if token := given_token():
        environ["AUDIT_STREAM_TOKEN"] = token
    return environ


def _settings(environ: dict[str, str]) -> "SinkSettings":
    from audit_stream.sinks.settings import SinkSettings

    settings = SinkSettings.from_env(environ)
    if not settings.sinks:
        raise Failed(
            "no sink is named: choose with --to postgres, purview, trust or jsonl, or set DATABASE_URL or LOG_DIR",
            exit_code=2,
        )
    return settings
