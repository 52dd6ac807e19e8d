"""audit-stream evidence."""

import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.failures import Failed
from audit_stream.cli.options import json_option, url_option
from audit_stream.cli.output import console, wants_json, write_lines
from audit_stream.cli.progress import progress
from audit_stream.cli.verify import BROKEN, INTACT, pin_given
from audit_stream.cli.when import FORMS, time_given
from audit_stream.errors import Misconfigured, Refused
from audit_stream.pin import Pin
from audit_stream.timestamps import instant

if TYPE_CHECKING:
    from audit_stream.cli.remote import Remote
    from audit_stream.pack import Events, Pack

PAGE = 1_000


@click.command()
@click.option("--out", metavar="FILE", required=True, type=click.Path(path_type=Path), help="the zip to write")
@click.option("--since", metavar="TIME", callback=time_given, help=f"what was committed at or after this: {FORMS}")
@click.option("--until", metavar="TIME", callback=time_given, help="what was committed before this, written the same")
@click.option("--bus", "buses", metavar="FILE", multiple=True, type=click.Path(path_type=Path), help="a local log, too")
@click.option("--offline", is_flag=True, help="only the local logs: no server is asked")
@click.option("--expect", metavar="ID:HASH", callback=pin_given, help="an event and its hash as noted earlier")
@click.option(
    "--pin", "pin_path", metavar="FILE", type=click.Path(path_type=Path), help="a pin that verify has written"
)
@url_option()
@json_option
def evidence(
    out: Path,
    since: str | None,
    until: str | None,
    buses: tuple[Path, ...],
    offline: bool,
    expect: Pin | None,
    pin_path: Path | None,
    url: str,
    as_json: bool,
) -> int:
    """Write a pack that anyone can check: events, bus lines, heads, pins, and the verdict.

    It holds a script that needs nothing but Python, and VERIFY.md says how to use it. Exit code: 0 all of it holds, 1
    some does not, and the pack shows what. FILE is for its owner alone, and nothing takes its place unless all of it is
    there.
    """
    from audit_stream.atomic import replacing
    from audit_stream.pack import Pack, Window

    window = Window(_instant("--since", since), _instant("--until", until))
    if offline and not buses:
        raise click.UsageError("--offline needs a log: --bus FILE.")
    pins = [pin for pin in (expect, _read_pin(pin_path)) if pin]
    asked = {"since": since, "until": until, "bus": [path.name for path in buses], "url": None if offline else url}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audit-stream-evidence.")))
        pack = Pack(folder, datetime.now(UTC).isoformat(timespec="seconds"))
        events = None if offline else _add_events(pack, url, {"since": since, "until": until}, pins)
        lines = 0
        for path in buses:
            try:
                lines += pack.add_bus(path, window)
            except OSError as error:
                raise Failed(f"--bus: {path} cannot be read: {error.strerror or error}", exit_code=2) from error
        try:
            with replacing(out, private=True) as replacement:
                digest = pack.finish(replacement.file, asked)
                replacement.commit()
        except OSError as error:
            raise Failed(f"--out: {out} cannot be written: {error.strerror or error}", exit_code=2) from error
    if wants_json(as_json):
        body = {
            "events": events.total if events else 0,
            "held": events.held if events else 0,
            "scope": events.scope if events else None,
            "lines": lines,
            "intact": pack.is_intact,
            "head": f"{pack.head.event_id}:{pack.head.hash.decode()}" if pack.head else None,
            "manifest_sha256": digest,
            "file": str(out),
        }
        write_lines([msgspec.json.encode(body)])
    else:
        verdict = ("intact", "bold green") if pack.is_intact else ("broken: verdict.json says where", "bold red")
        _print(pack, out, verdict, events, lines, digest)
    return INTACT if pack.is_intact else BROKEN


def _print(pack: "Pack", out: Path, verdict: tuple[str, str], events: "Events | None", lines: int, digest: str) -> None:
    count = f"{events.total:,} events" if events else "no events"
    if events and events.held < events.total:
        count += f", the first {events.held:,} hold"
    shown = console()
    shown.print(Text.assemble(verdict, f"  {count}, {lines:,} bus lines, in {out}"))
    if events:
        shown.print(Text.assemble(("  scope     ", "dim"), events.scope))
    if pack.head:
        shown.print(Text.assemble(("  head      ", "dim"), f"{pack.head.event_id}:{pack.head.hash.decode()}"))
    shown.print(Text.assemble(("  manifest  ", "dim"), digest))
    shown.print(Text("Note both elsewhere: check.py --expect HEAD --manifest SHA256 compares them.", style="dim"))


def _instant(flag: str, text: str | None) -> datetime | None:
    try:
        return instant(text, field=flag) if text else None
    except Refused as refused:
        raise click.UsageError(f"{refused}.") from refused


def _read_pin(path: Path | None) -> Pin | None:
    if path is None:
        return None
    try:
        return Pin.parse(path.read_text())
    except ValueError as error:
        raise Misconfigured(f"--pin: {path} holds no pin: {error}") from error
    except OSError as error:
        raise Misconfigured(f"--pin: {path} cannot be read: {error.strerror or error}") from error


def _add_events(pack: "Pack", url: str, filters: dict[str, Any], pins: list[Pin]) -> "Events":
    from audit_stream.cli.remote import Remote
    from audit_stream.cli.verdicts import Range, of_server

    with Remote(url) as remote:
        # Before the events, so that what is said of the whole chain covers all of them or fewer, never others.
        last = _one(remote, filters)
        first = _one(remote, {**filters, "after": 0})
        if first is None or last is None:
            raise Failed("no event was committed in that time; nothing was written")
        _fetch(remote, pack.events_path, first, last)
        stats = remote.get("stats").json()
    verdict = of_server(url, Range(1, None, False), []).verdict
    return pack.add_events(pins, stats, msgspec.to_builtins(verdict))


def _one(remote: "Remote", filters: dict[str, Any]) -> int | None:
    found = remote.get("events", {**filters, "limit": 1}).json()
    return int(found[0]["event_id"]) if found else None


def _fetch(remote: "Remote", path: Path, first: int, last: int) -> None:
    """The events between as they are answered: whether they hold is said in the verdict."""
    cursor = first - 1
    with path.open("wb") as file, progress("fetching") as show:
        while cursor < last:
            params = {"after": cursor, "limit": min(PAGE, last - cursor)}
            with remote.stream("events", params, accept="application/x-ndjson") as answer:
                lines = [line for line in answer.read().split(b"\n") if line]
            if not lines:
                raise Failed(f"event #{cursor + 1} is not there")
            file.writelines(line + b"\n" for line in lines)
            cursor = int(msgspec.json.decode(lines[-1])["event_id"])
            show(cursor - first + 1, last - first + 1)
