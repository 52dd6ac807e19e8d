"""audit-stream restore: an import into the Redis itself, as an operator wants it."""

import shlex
from contextlib import ExitStack
from pathlib import Path

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.backup import data_dir_option
from audit_stream.cli.failures import Failed
from audit_stream.cli.import_ import tell_times, without_times_option
from audit_stream.cli.importing import NOT_CARRIED, Plan, write_to_redis
from audit_stream.cli.local import stopped_server
from audit_stream.cli.options import choose_one, json_option, redis_url_option, setting_option
from audit_stream.cli.output import console, printable, tell, wants_json, write_lines
from audit_stream.kinds import BUILT_IN


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@redis_url_option()
@data_dir_option
@setting_option("AUDIT_STREAM_CHAIN")
@without_times_option
@json_option
@click.pass_context
def restore(
    ctx: click.Context,
    file: Path,
    redis_url: str | None,
    data_dir: Path | None,
    chain: str,
    without_times: bool,
    as_json: bool,
) -> None:
    """Make a chain of a backup again: the same events, hashes, head and commit times.

    Needs --redis-url or --data-dir, and an empty chain there; a later backup made with --from goes after the one that
    it follows. The file is verified before the first event is written, the chain when all are. A restore that broke
    half way goes on when it is run again.
    """
    choose_one(ctx, "redis_url", "data_dir")
    if not redis_url and not data_dir:
        raise click.UsageError(
            "--redis-url or --data-dir is missing: the Redis to restore into, or the data folder of a stopped server."
        )
    with ExitStack() as stack:
        if data_dir:
            redis_url = stack.enter_context(stopped_server(data_dir, why="stop it first, or restore into a new folder"))
        assert redis_url
        # Kinds were checked when the events were written: the chain is taken as it was.
        restored = write_to_redis(file, redis_url, chain, timed=not without_times, check=lambda _: None)
        _verify(redis_url, chain, restored)
    tell_times(restored, by_url=False)
    if wants_json(as_json):
        head = restored.end
        body = {
            "restored": restored.events,
            "head": {"event_id": head.event_id, "hash": head.hash.decode()},
            "commit_times": "kept" if restored.timed else "now",
            "not_carried": NOT_CARRIED,
        }
        write_lines([msgspec.json.encode(body)])
    else:
        _print(restored, data_dir)


def _verify(redis_url: str, chain: str, restored: Plan) -> None:
    from audit_stream.cli.verdicts import Range, of_redis

    verdict = of_redis(redis_url, chain, Range(1, None, deep=False), [], None).verdict
    if not verdict.valid:
        raise Failed(f"all was written, but the chain does not verify: {verdict.reason}")
    if verdict.head.event_id != restored.end.event_id:
        tell(f"the chain has grown to event #{verdict.head.event_id} meanwhile: a server appends to it")


def _print(restored: Plan, data_dir: Path | None) -> None:
    out, head = console(), restored.end
    after = f" after #{restored.start.event_id}, where the chain ended" if restored.start.event_id else ""
    out.print(
        Text.assemble(
            ("restored", "bold green"), f"  {restored.events:,} events{after}; the chain is verified, all of it"
        )
    )
    out.print(Text.assemble(("  head     ", "dim"), f"{head.event_id}:{head.hash.decode()}"))
    out.print(Text.assemble(("  missing  ", "dim"), f"what no file holds: {'; '.join(NOT_CARRIED)}"))
    if added := sorted(kind.decode() for kind in restored.report.kinds if kind.decode() not in BUILT_IN):
        out.print(Text.assemble(("  kinds    ", "dim"), printable(f"AUDIT_STREAM_KINDS={','.join(added)}")))
    out.print(
        Text(
            "A server whose pin knows events after this head refuses to start: that is right until somebody decides."
            " `audit-stream accept-loss` records what is lost, and moves the pin. docs/operators/backup.md says more.",
            style="dim",
        )
    )
    if data_dir:
        out.print(Text("Serve it:", "dim"))
        out.print(Text(f"AUDIT_STREAM_DATA_DIR={shlex.quote(str(data_dir))} audit-stream serve"))
