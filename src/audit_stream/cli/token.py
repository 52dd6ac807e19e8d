"""audit-stream token: make tokens, and look at the file of them."""

from pathlib import Path
from typing import Any

import msgspec
import rich_click as click
from rich.table import Table
from rich.text import Text

from audit_stream.access.entry import (
    SCOPES,
    Entry,
    digest_of,
    new_token,
    parse_entries,
    read_entries,
    to_toml,
)
from audit_stream.atomic import replacing
from audit_stream.cli.examples import examples
from audit_stream.cli.failures import Failed
from audit_stream.cli.options import json_option
from audit_stream.cli.output import console, printable, tell, wants_json, write_lines
from audit_stream.errors import Misconfigured


@click.group()
def token() -> None:
    """Make tokens, and check the file that names them (AUDIT_STREAM_TOKENS)."""


@token.command(
    epilog=examples(
        "token new shop --scope append --source shop --file tokens.toml",
        "token new dashboard --scope read --file tokens.toml",
        "token new prometheus --scope metrics --quiet > token",
    )
)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(SCOPES),
    metavar="SCOPE",
    help=f"what it is for: {', '.join(SCOPES[:-1])} or {SCOPES[-1]}; may be given more than once",
)
@click.option(
    "--source", "sources", multiple=True, metavar="SOURCE", help="the only source it may write and read as; likewise"
)
@click.option("--requests-per-second", metavar="N", type=float, help="its limit, default: the server's")
@click.option("--bytes-per-second", metavar="N", type=float, help="the same for the bytes that it sends")
@click.option(
    "--file", "path", metavar="FILE", type=click.Path(path_type=Path), help="add the entry to this file, new or not"
)
@click.option(
    "--quiet",
    "-q",
    is_flag=True,
    help="print the token alone, for TOKEN=$(…); without --file its entry goes to standard error",
)
@json_option
def new(name: str, path: Path | None, quiet: bool, as_json: bool, **given: Any) -> None:
    """Make a token and print it, once: the file keeps its SHA-256 alone.

    Several entries, one after the other, make a file.
    """
    if quiet and as_json:
        raise click.UsageError("Choose one of --quiet and --json.")
    secret = new_token()
    fields = {"name": name, "sha256": digest_of(secret.encode()).hex(), **given}
    text = to_toml(_entry(fields))
    if path:
        _add(path, text)
    if quiet:
        write_lines([secret.encode()])
        if not path:
            tell(f"To keep, in the file that AUDIT_STREAM_TOKENS names:\n{text}")
        return
    if wants_json(as_json):
        write_lines([msgspec.json.encode({"token": secret, "entry": text})])
        return
    out = console()
    out.print(Text(secret, style="bold"))
    if path:
        tell(f"This is the only time that it is shown. {path} has its entry.")
    else:
        tell("This is the only time that it is shown. To keep, in the file that AUDIT_STREAM_TOKENS names:")
        out.print()
        out.print(Text(text), end="")


def _entry(fields: dict[str, Any]) -> Entry:
    try:
        return msgspec.convert({key: value for key, value in fields.items() if value not in (None, ())}, Entry)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        key = next((key for key in _WANTED if f"`$.{key}" in str(error)), "sources")
        raise click.UsageError(f"{_WANTED[key]}.") from error


_WANTED = {
    "name": "NAME: 1 to 64 letters, digits and _ . : @ / -, the first of them a letter or a digit",
    "sources": "--source: 1 to 256 characters",
    "requests_per_second": "--requests-per-second: a number above 0, up to 1e12",
    "bytes_per_second": "--bytes-per-second: a number above 0, up to 1e12",
}


def _add(path: Path, text: str) -> None:
    try:
        there = path.read_bytes() if path.exists() else b""
        if there.strip():
            parse_entries(there, str(path))
        whole = (
            there + (b"" if not there or there.endswith(b"\n") else b"\n") + (b"\n" if there else b"") + text.encode()
        )
        parse_entries(whole, str(path))
        with replacing(path) as replacement:
            replacement.file.write(whole)
            replacement.commit()
    except Misconfigured as error:
        raise Failed(f"{error}. Nothing was written.", exit_code=2) from error
    except OSError as error:
        raise Failed(f"--file: {path} cannot be written: {error.strerror or error}", exit_code=2) from error


@token.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Say what is wrong with a token file; or what is in it, and exit with 0."""
    entries = read_entries(file)
    if wants_json(as_json):
        write_lines([msgspec.json.encode(entry) for entry in entries])
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("name", "scopes", "sources", "limits a second"):
        table.add_column(column, no_wrap=True)
    for entry in entries:
        limits = ((entry.requests_per_second, "requests"), (entry.bytes_per_second, "bytes"))
        table.add_row(
            entry.name,
            ", ".join(entry.scopes),
            Text(printable(", ".join(entry.sources)) if entry.sources else "all"),
            ", ".join(f"{rate:,g} {what}" for rate, what in limits if rate) or "the server's",
        )
    console().print(table)
