"""audit-stream bus post, convert, rotate and keygen."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.bus.options import bus_argument, key_option
from audit_stream.cli.failures import Failed
from audit_stream.cli.options import json_option
from audit_stream.cli.output import console, wants_json, write_lines

BATCH = 1_000


@click.command()
@bus_argument
@click.argument("message")
@click.option("--from", "from_id", metavar="ID", required=True, help="who sends it")
@click.option("--to", "to_id", metavar="ID", default="all", help="whom it is for, default: all")
@click.option("--type", "msg_type", metavar="TYPE", default="LOG", help="its type, default: LOG")
@key_option
@json_option
def post(file: Path, message: str, from_id: str, to_id: str, msg_type: str, key: Path | None, as_json: bool) -> None:
    """Append one message; once the command has ended it is on disk. - reads it from standard input."""
    from audit_stream.bus import BusWriter, Keyring

    if message == "-":
        try:
            message = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise Failed(f"the message from standard input is not UTF-8: {error}", exit_code=2) from error
    with _writable(file):
        bus = BusWriter(file, key=Keyring.from_file(key) if key else None)
        bus.post(from_id, to_id, msg_type, message)
        head = bus.head()
    if wants_json(as_json):
        write_lines([msgspec.json.encode({"seq": head.event_id, "hash": head.hash.decode()})])
    else:
        console().print(Text.assemble(("posted", "bold green"), f"  the head is {head.event_id}:{head.hash.decode()}"))


@click.command()
@click.argument("tsv", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@key_option
@json_option
def convert(tsv: Path, out: Path, key: Path | None, as_json: bool) -> None:
    """Write a five-column .tsv file of the published bus as a bus.

    OUT must not be there yet, and is only once all of it is written. A row that is none is kept as text, in a line of
    type bus.torn.
    """
    from audit_stream.atomic import replacing
    from audit_stream.bus import Keyring
    from audit_stream.bus.line import TORN, Draft, link
    from audit_stream.bus.log import own
    from audit_stream.bus.tsv import is_tsv, rows
    from audit_stream.chain import START, Head

    keys = Keyring.from_file(key) if key else Keyring.from_environment()
    messages = torn = 0
    head = START
    with _writable(out):
        if out.exists():
            raise Failed(f"{out} is there already, and is not written over", exit_code=2)
        with _readable(tsv):
            if not is_tsv(tsv):
                raise Failed(
                    f"{tsv} is no five-column .tsv file of the published bus: its first line has no 4 tabs", exit_code=2
                )
        with replacing(out) as replacement:
            Path(replacement.file.name).chmod(0o600)
            for row in rows(tsv):
                draft: Draft = row.content or own(TORN, row.text.decode(errors="backslashreplace"))
                messages, torn = messages + bool(row.content), torn + (not row.content)
                (line,) = link([draft], head, keys.current if keys else None)
                replacement.file.write(line.text() + b"\n")
                head = Head(line.seq, line.hash)
            replacement.commit()
    if wants_json(as_json):
        body = {"messages": messages, "torn": torn, "head": {"seq": head.event_id, "hash": head.hash.decode()}}
        write_lines([msgspec.json.encode(body)])
        return
    console().print(Text.assemble(("converted", "bold green"), f"  {messages:,} messages to {out}"))
    if torn:
        console().print(
            Text(f"  {torn:,} rows that are none are kept as text, in lines of type bus.torn", style="yellow")
        )


@click.command()
@bus_argument
@key_option
@json_option
def rotate(file: Path, key: Path | None, as_json: bool) -> None:
    """Put the file aside as FILE.1, FILE.2, …, and go on in a new one, in the same chain."""
    from audit_stream.bus import BusWriter, Keyring

    with _writable(file):
        if not file.exists():
            raise Failed(f"{file} is not there", exit_code=2)
        aside = BusWriter(file, key=Keyring.from_file(key) if key else None).rotate()
    if wants_json(as_json):
        write_lines([msgspec.json.encode({"aside": str(aside), "file": str(file)})])
    else:
        console().print(Text.assemble(("rotated", "bold green"), f"  to {aside}"))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--id", "id_", metavar="ID", help="its name in the lines it signs, default: made from its hash")
def keygen(file: Path, id_: str | None) -> None:
    """Add a new key to a file of keys. From now on it signs; the ones before it still check what they have signed."""
    from audit_stream.bus import Key, Keyring, generate_secret
    from audit_stream.bus.keys import add_key

    try:
        key = Key.parse(f"{id_}:{generate_secret()}" if id_ else generate_secret())
    except ValueError as error:
        raise click.UsageError(f"--id: {error}.") from error
    with _writable(file):
        if file.exists() and file.stat().st_size and Keyring.from_file(file).get(key.id):
            raise Failed(f"{file} has a key {key.id!r} already", exit_code=2)
        add_key(file, key)
    console().print(Text.assemble(("added", "bold green"), f"  key {key.id} to {file}"))


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Failed(f"{error.filename or path} cannot be written: {error.strerror or error}", exit_code=2) from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror or error}", exit_code=2) from error
