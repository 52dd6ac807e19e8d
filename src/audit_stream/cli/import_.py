"""audit-stream import."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.examples import examples
from audit_stream.cli.failures import Failed
from audit_stream.cli.importing import (
    Plan,
    Unusual,
    into_server,
    lines_of,
    make_plan,
    server_head,
    unusual_in,
    write_to_redis,
)
from audit_stream.cli.options import choose_one, json_option, redis_url_option, setting_option, url_option
from audit_stream.cli.output import console, tell, wants_json, write_lines
from audit_stream.cli.progress import progress
from audit_stream.settings import VARIABLES

without_times_option = click.option(
    "--without-times", is_flag=True, help="commit every event now, whatever the file says of its commit time"
)


@click.command(
    "import",
    epilog=examples(
        "import history.json",
        "import events.jsonl.gz --redis-url redis://127.0.0.1/0",
        "import history.json --redis-url redis://127.0.0.1/0 --as-recorded",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@url_option()
@redis_url_option()
@setting_option("AUDIT_STREAM_CHAIN")
@click.option(
    "--kinds",
    envvar="AUDIT_STREAM_KINDS",
    default="",
    metavar="KINDS",
    help="extra kinds, separated by commas; a server knows its own\n\nAUDIT_STREAM_KINDS, default: none",
)
@without_times_option
@click.option(
    "--as-recorded",
    is_flag=True,
    help="store timestamps that are not RFC 3339, such as `yesterday`, as they were recorded; needs --redis-url",
)
@json_option
@click.pass_context
def import_(
    ctx: click.Context,
    file: Path,
    url: str,
    redis_url: str | None,
    chain: str,
    kinds: str,
    without_times: bool,
    as_recorded: bool,
    as_json: bool,
) -> None:
    """Replay an export, or what GET /events answers, into an empty chain, timestamps kept, to the same head.

    The whole file is verified before the first event is written. What broke half way goes on when it is run again.
    With --redis-url commit times are kept too, so that --since and --until find the same; by URL they are not.
    """
    choose_one(ctx, "url", "redis_url")
    if as_recorded and not redis_url:
        raise click.UsageError(
            "--as-recorded needs --redis-url: a server takes such timestamps from nobody, so that producers cannot."
        )
    unusual: Unusual | None = None

    def check(plan: Plan, known: frozenset[str]) -> None:
        nonlocal unusual
        _check_kinds(plan, known)
        unusual = unusual_in(plan)
        if unusual and not as_recorded:
            raise Failed(
                f"{unusual}; nothing was written. To store them as they were recorded, hashes kept, import straight"
                " into Redis: --redis-url … --as-recorded"
            )

    with lines_of(file) as lines:
        if redis_url:
            known = frozenset(VARIABLES["AUDIT_STREAM_KINDS"].parse("--kinds", kinds))
            plan = write_to_redis(
                lines, redis_url, chain, timed=not without_times, check=lambda plan: check(plan, known), shown=file
            )
        else:
            plan = _into_server(url, lines, check, shown=file)
    tell_times(plan, by_url=not redis_url)
    if unusual:
        tell(f"stored as recorded: {unusual}")
    head = plan.end
    if wants_json(as_json):
        body = {
            "imported": plan.events,
            "head": {"event_id": head.event_id, "hash": head.hash.decode()},
            "commit_times": "kept" if plan.timed else "now",
            "as_recorded": unusual.events if unusual else 0,
        }
        write_lines([msgspec.json.encode(body)])
    else:
        after = f" after #{plan.start.event_id}, where the chain ended" if plan.start.event_id else ""
        console().print(Text.assemble(("imported", "bold green"), f"  {plan.events:,} events{after}, to the same head"))


def _into_server(url: str, file: Path, check: Callable[[Plan, frozenset[str]], None], *, shown: Path) -> Plan:
    from audit_stream.cli.remote import Remote

    with Remote(url) as remote:
        plan = make_plan(file, server_head(remote), timed=False, shown=shown)
        check(plan, frozenset(remote.get("").json()["kinds"]))
        with progress("importing") as show:
            into_server(remote, plan, show)
    return plan


def _check_kinds(plan: Plan, known: frozenset[str]) -> None:
    unknown = sorted(kind.decode() for kind in plan.report.kinds if kind.decode() not in known)
    if unknown:
        raise Failed(
            f"the file has kinds that are unknown here: {', '.join(unknown)}; nothing was written."
            f" Add them with AUDIT_STREAM_KINDS={','.join(unknown)}"
        )


def tell_times(plan: Plan, *, by_url: bool) -> None:
    """Say it where --since and --until find other events than on the chain that the file is from."""
    if not plan.events:
        return
    if by_url:
        tell(
            "commit times are not carried over: by URL every event is committed now, and --since and --until go by"
            " that. To keep them, import into an empty chain with --redis-url"
        )
    elif not plan.timed and plan.report.times.first_ms is None:
        tell(
            "the file has no commit times: every event was committed now, and --since and --until go by that."
            " An export that is written anew by this version has them"
        )
    elif plan.timed and plan.report.times.missing:
        tell(f"{plan.report.times.missing:,} lines have no commit time, and got that of the line before")
