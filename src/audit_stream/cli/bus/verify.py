"""audit-stream bus verify."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.bus.options import key_option
from audit_stream.cli.failures import words_of
from audit_stream.cli.options import json_option
from audit_stream.cli.output import console, printable, tell, until_reader_leaves, wants_json, write_lines
from audit_stream.cli.progress import progress
from audit_stream.cli.verify import BROKEN, CANNOT_TELL, INTACT, pin_given
from audit_stream.errors import Refused
from audit_stream.pin import Pin, pin_file

if TYPE_CHECKING:
    from audit_stream.bus import Verdict

POLICIES = ("permissive", "warn", "strict")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=click.Path(path_type=Path))
@key_option
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    metavar="POLICY",
    help="permissive, warn or strict: whether unsigned lines hold\n\ndefault: strict with a key, else permissive",
)
@click.option(
    "--expect",
    "expected",
    metavar="SEQ:HASH",
    callback=pin_given,
    help="a line and its hash as noted earlier, elsewhere: the bus must still hold it",
)
@click.option(
    "--pin",
    "pin_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="remember the verified head here: the next run expects it, and moves it on",
)
@json_option
def verify(
    files: tuple[Path, ...],
    key: Path | None,
    policy: str | None,
    expected: Pin | None,
    pin_path: Path | None,
    as_json: bool,
) -> int:
    """Recompute every line of a bus, and with a key every signature.

    Exit code: 0 intact, 1 broken, 2 could not tell. Of a rotated log, give the files in their order. Lines that were
    cut off at the end leave no trace in the file: only --expect and --pin find them.
    """
    from audit_stream.bus import Keyring, PolicyLevel
    from audit_stream.bus import verify as recompute
    from audit_stream.bus.tsv import refuse_tsv

    with ExitStack() as stack:
        kept = stack.enter_context(pin_file(pin_path)) if pin_path else None
        pins = {name: pin for name, pin in (("expected", expected), ("pin", kept and kept.pin)) if pin}
        try:
            keys = Keyring.from_file(key) if key else Keyring.from_environment()
            level = PolicyLevel[(policy or ("strict" if keys else "permissive")).upper()]
            for file in files:
                refuse_tsv(file)
            size = sum(file.stat().st_size for file in files)
            with progress("verifying", unit="bytes") as show:
                asked = [pin.event_id for pin in pins.values()]
                verdict = recompute(files, keys=keys, policy=level, asked=asked, tell=lambda done: show(done, size))
            contradictions = [_held(pin, verdict) for pin in pins.values()]
        except OSError as error:
            tell(f"cannot tell: {error.filename or files[0]} cannot be read: {error.strerror or error}")
            return CANNOT_TELL
        except Exception as error:
            # Whatever went wrong, it is no evidence against the bus, and its exit code must not say so.
            tell(f"cannot tell: {words_of(error)}")
            return CANNOT_TELL
        intact = verdict.valid and not any(contradictions)
        if kept and intact and verdict.head.event_id:
            kept.move_to(Pin(verdict.head.event_id, verdict.head.hash.decode()))
    held = dict(zip(pins, contradictions, strict=True))
    with until_reader_leaves():
        if wants_json(as_json):
            write_lines([msgspec.json.encode(_body(verdict, pins, held, checked=bool(keys)))])
        else:
            _print(verdict, files, pins, held, checked=bool(keys), warn=level > PolicyLevel.PERMISSIVE)
            if not pins and not pin_path and intact and verdict.checked:
                out, head = console(), verdict.head
                out.print(Text("Keep the head elsewhere, and give it next time:", style="dim"))
                out.print(
                    Text(
                        f"audit-stream bus verify {files[-1]} --expect {head.event_id}:{head.hash.decode()}",
                        style="dim",
                    )
                )
    return INTACT if intact else BROKEN


def _held(pin: Pin, verdict: "Verdict") -> str | None:
    start = verdict.start
    found = start.hash.decode() if pin.event_id == start.event_id else verdict.hashes.get(pin.event_id)
    if found is None and not verdict.valid:
        return f"line #{pin.event_id} was not reached"
    if pin.event_id < start.event_id:
        raise Refused(
            f"the file begins behind line #{start.event_id}, and #{pin.event_id} is pinned:"
            " give the files before it as well"
        )
    return pin.contradiction(found, end=verdict.head.event_id, what="line")


def _body(verdict: "Verdict", pins: dict[str, Pin], held: dict[str, str | None], *, checked: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "valid": verdict.valid,
        "checked": verdict.checked,
        "first_break_at": verdict.first_break_at,
        "reason": verdict.reason,
        "file": verdict.file,
        "line": verdict.line,
        "start": {"seq": verdict.start.event_id, "hash": verdict.start.hash.decode()},
        "head": {"seq": verdict.head.event_id, "hash": verdict.head.hash.decode()},
        "signatures": "checked" if checked else "not checked",
        "keys": dict(verdict.keys),
        "unsigned": verdict.unsigned,
        "torn": verdict.torn,
    }
    for name, pin in pins.items():
        body[name] = {"seq": pin.event_id, "hash": pin.hash, "holds": not held[name], "reason": held[name]}
    return body


def _print(
    verdict: "Verdict",
    files: tuple[Path, ...],
    pins: dict[str, Pin],
    held: dict[str, str | None],
    *,
    checked: bool,
    warn: bool,
) -> None:
    out, head, start = console(), verdict.head, verdict.start
    lines = f"{verdict.checked:,} line{'' if verdict.checked == 1 else 's'}"
    if verdict.valid:
        span = f", #{start.event_id + 1} to #{head.event_id}" if start.event_id else ""
        out.print(Text.assemble(("intact", "bold green"), f"  {lines}{span}"))
    else:
        where = f"{verdict.file}, " if len(files) > 1 else ""
        out.print(
            Text.assemble(
                (f"broken at {where}line {verdict.line}", "bold red"),
                f": {printable(str(verdict.reason).partition(': ')[2])}",
            )
        )
        out.print(Text(f"  {lines} held before it", style="dim"))
    if verdict.keys:
        signed = ", ".join(f"{count:,} with {key}" for key, count in sorted(verdict.keys.items()))
        said = "checked" if checked else "not checked: give the key with --key"
        out.print(Text.assemble(("  signed   ", "dim"), f"{signed}; {said}"))
    if verdict.unsigned and (verdict.keys or warn):
        out.print(Text.assemble(("  unsigned ", "dim"), (f"{verdict.unsigned:,}", "yellow")))
    if verdict.torn:
        out.print(Text.assemble(("  torn     ", "dim"), f"{verdict.torn:,}, kept as text: a crash cut them short"))
    if start.event_id:
        out.print(Text.assemble(("  behind   ", "dim"), f"#{start.event_id} {start.hash.decode()}"))
    out.print(Text.assemble(("  head     ", "dim"), f"#{head.event_id}"))
    out.print(Text.assemble(("  hash     ", "dim"), head.hash.decode()))
    for name, pin in pins.items():
        what = "the pin" if name == "pin" else "the expected line"
        if held[name]:
            out.print(Text.assemble((f"{what} does not hold", "bold red"), f": {printable(str(held[name]))}"))
        else:
            out.print(Text.assemble((f"{what} holds", "bold green"), f": line #{pin.event_id}"))
