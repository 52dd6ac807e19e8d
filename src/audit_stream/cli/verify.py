"""audit-stream verify."""

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.examples import examples
from audit_stream.cli.failures import words_of
from audit_stream.cli.options import choose_one, json_option, redis_url_option, setting_option, url_option
from audit_stream.cli.output import console, printable, tell, until_reader_leaves, wants_json, write_lines
from audit_stream.pin import Pin, pin_file

if TYPE_CHECKING:
    from audit_stream.cli.verdicts import Found

INTACT, BROKEN, CANNOT_TELL = 0, 1, 2


def pin_given(_: click.Context, __: click.Parameter, text: str | None) -> Pin | None:
    try:
        return Pin.parse(text) if text else None
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


@click.command(
    epilog=examples(
        "verify --pin head.pin",
        "verify --redis-url redis://127.0.0.1/0 --deep",
        "verify events.jsonl.gz --pin head.pin",
    )
)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--from", "first", metavar="ID", type=click.IntRange(min=1), default=1, help="begin with this event")
@click.option("--to", "last", metavar="ID", type=click.IntRange(min=1), help="end with this event, not the newest")
@click.option(
    "--expect",
    "--checkpoint",
    "expected",
    metavar="ID:HASH",
    callback=pin_given,
    help="an event and its hash as noted earlier, outside Redis: the chain must still hold it",
)
@click.option(
    "--pin",
    "pin_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="remember the verified head here: the next run expects it, and moves it on",
)
@click.option("--deep", is_flag=True, help="compare every index entry with the chain, not only their number")
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(1, 256),
    help="processes that check, default: one for each core once there is enough for it to pay",
)
@url_option()
@redis_url_option()
@setting_option("AUDIT_STREAM_CHAIN")
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    file: Path | None,
    first: int,
    last: int | None,
    expected: Pin | None,
    pin_path: Path | None,
    deep: bool,
    jobs: int | None,
    url: str,
    redis_url: str | None,
    chain: str,
    as_json: bool,
) -> int:
    """Recompute the hash chain, on the stored bytes.

    Exit code: 0 intact, 1 broken, 2 could not tell. Where Redis did not let the indexes be compared, the verdict is
    on the links alone and says so; with --deep, which asks for the indexes, the exit code is 2 then. By URL the
    server computes; with --redis-url this machine does, and need not trust it. FILE is an export, checked here with
    neither server nor network.
    """
    from audit_stream.cli.verdicts import Range, of_file, of_redis, of_server

    _check_usage(ctx, file, first, last, pin_path, deep, jobs, redis_url)
    with ExitStack() as stack:
        kept = stack.enter_context(pin_file(pin_path)) if pin_path else None
        pins = {name: pin for name, pin in (("checkpoint", expected), ("pin", kept and kept.pin)) if pin}
        try:
            if file:
                found = of_file(file, list(pins.values()), jobs)
            elif redis_url:
                found = of_redis(redis_url, chain, Range(first, last, deep), list(pins.values()), jobs)
            else:
                found = of_server(url, Range(first, last, deep), list(pins.values()))
        except Exception as error:
            # An error of any kind is not evidence against the chain, and the exit code must not say so.
            tell(f"cannot tell: {words_of(error)}")
            return CANNOT_TELL
        intact = found.verdict.valid and not any(found.contradictions)
        if kept and intact and found.verdict.head.event_id:
            kept.move_to(Pin(found.verdict.head.event_id, found.verdict.head.hash))
    with until_reader_leaves():
        if wants_json(as_json):
            write_lines([msgspec.json.encode(_body(found, pins))])
        else:
            _print(found, pins, pin_path, file)
    if not intact:
        return BROKEN
    whole = first == 1 and last is None
    return CANNOT_TELL if deep and whole and found.verdict.indexes == "not checked" else INTACT


def _check_usage(
    ctx: click.Context,
    file: Path | None,
    first: int,
    last: int | None,
    pin_path: Path | None,
    deep: bool,
    jobs: int | None,
    redis_url: str | None,
) -> None:
    choose_one(ctx, "url", "redis_url")
    if file:
        for flag, given in (("--redis-url", redis_url), ("--from", first > 1), ("--to", last), ("--deep", deep)):
            if given:
                raise click.UsageError(f"{flag} is for a chain; a file is checked as it is, and whole.")
    elif jobs and not redis_url:
        raise click.UsageError("--jobs needs --redis-url or a file: by URL it is the server that computes.")
    if last is not None and last < first:
        raise click.UsageError(f"--to: {last} is before --from: {first}.")
    if pin_path and (first > 1 or last is not None):
        raise click.UsageError("--pin remembers the head of the whole chain: leave out --from and --to.")


# --- the verdict


def _body(found: "Found", pins: dict[str, Pin]) -> dict[str, object]:
    body: dict[str, object] = msgspec.to_builtins(found.verdict)
    if found.line is not None:
        body["line"] = found.line
    for (name, pin), contradiction in zip(pins.items(), found.contradictions, strict=True):
        body[name] = {**pin._asdict(), "holds": not contradiction, "reason": contradiction}
    return body


def _print(found: "Found", pins: dict[str, Pin], pin_path: Path | None, file: Path | None) -> None:
    out, verdict = console(), found.verdict
    head = verdict.head
    events = f"{verdict.checked:,} event{'' if verdict.checked == 1 else 's'}"
    if verdict.checked and verdict.first == 1:
        events += f", from the first to #{head.event_id}"
    elif verdict.checked:
        events += f", #{verdict.first} to #{head.event_id}"
    if verdict.valid:
        out.print(Text.assemble(("intact", "bold green"), f"  {events}, in {verdict.took_ms / 1000:.2f} s"))
    else:
        out.print(
            Text.assemble(
                (f"broken at event #{verdict.first_break_at}", "bold red"), f": {printable(verdict.reason or '')}"
            )
        )
        out.print(Text(f"  {events} held before it", style="dim"))
    indexes = f"{verdict.indexes}: {printable(verdict.unchecked)}" if verdict.unchecked else verdict.indexes
    out.print(Text.assemble(("  indexes  ", "dim"), indexes))
    out.print(Text.assemble(("  head     ", "dim"), f"#{head.event_id}"))
    out.print(Text.assemble(("  hash     ", "dim"), head.hash))
    for (name, pin), contradiction in zip(pins.items(), found.contradictions, strict=True):
        if contradiction:
            out.print(Text.assemble((f"the {name} does not hold", "bold red"), f": {printable(contradiction)}"))
        else:
            out.print(Text.assemble((f"the {name} holds", "bold green"), f": event #{pin.event_id}"))
    if not pins and not pin_path and verdict.valid and head.event_id:
        out.print(Text("Keep the head outside Redis, and give it next time:", style="dim"))
        name = f" {shlex.quote(str(file))}" if file else ""
        out.print(Text(f"audit-stream verify{name} --expect {head.event_id}:{head.hash}", style="dim"))
