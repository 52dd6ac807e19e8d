"""audit-stream append."""

import json
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import rich_click as click

from audit_stream.cli.examples import examples
from audit_stream.cli.failures import Failed
from audit_stream.cli.options import json_option, url_option
from audit_stream.cli.output import console, tell, wants_json, write_lines
from audit_stream.cli.rows import Rows
from audit_stream.errors import without_place

if TYPE_CHECKING:
    from audit_stream.cli.remote import Remote

BATCH_EVENTS = 500
BATCH_BYTES = 3 * 1024 * 1024
READ_BYTES = 1024 * 1024
STDIN = 0


@click.command(
    epilog=examples(
        """append --kind other --source orders --payload '{"id": 7}'""",
        "append --kind other --source backup --idempotency-key 2026-11-21",
        "append --token-file token < events.jsonl",
    )
)
@click.option("--kind", metavar="KIND", help="kind of the event; without it, events are read from standard input")
@click.option("--source", metavar="SOURCE", help="producing repository or service")
@click.option("--payload", metavar="JSON", help="a JSON object; @file reads it from there, - from standard input")
@click.option("--timestamp", metavar="TIME", help="RFC 3339 with offset, default: the server's UTC now")
@click.option("--idempotency-key", metavar="KEY", help="the same key with the same content is appended once")
@url_option()
@json_option
def append(
    kind: str | None,
    source: str | None,
    payload: str | None,
    timestamp: str | None,
    idempotency_key: str | None,
    url: str,
    as_json: bool,
) -> int | None:
    """Append one event, or a PublishRequest a line from standard input.

    Prints the receipts. Lines are sent in batches of up to 500, each of them written whole or not at all.
    """
    from audit_stream.cli.remote import Remote

    as_json = wants_json(as_json)
    if kind is None:
        one_event = {"--source": source, "--payload": payload, "--timestamp": timestamp}
        for flag, value in {**one_event, "--idempotency-key": idempotency_key}.items():
            if value is not None:
                raise click.UsageError(f"{flag} needs --kind; events from standard input carry their own.")
        if sys.stdin.isatty():
            raise click.UsageError("Give --kind and --source, or events as lines of JSON on standard input.")
        with Remote(url) as remote:
            return _append_lines(remote, as_json)
    if source is None:
        raise click.UsageError("--source is missing: the repository or service that the event comes from.")
    body = _request(kind, source, _payload(payload), timestamp, idempotency_key)
    with Remote(url) as remote:
        answer = remote.post("events", body, "application/json")
        _print_receipts([answer.content], as_json, replayed="idempotent-replayed" in answer.headers)
    return None


# --- one event


def _payload(text: str | None) -> bytes:
    """The text as it was given, once it is known to be JSON: the server must see the numbers as they were written."""
    if text is None:
        return b"{}"
    where, raw = "it", b""
    try:
        if text == "-":
            where, raw = "standard input", sys.stdin.buffer.read()
        elif text.startswith("@"):
            where = text[1:]
            raw = Path(where).read_bytes()
        else:
            raw = text.encode()
        json.loads(raw.decode())
    except OSError as error:
        raise Failed(f"--payload: cannot read {where}: {error.strerror}", exit_code=2) from error
    except (ValueError, RecursionError) as error:
        raise Failed(f"--payload: {where} is not JSON: {error}", exit_code=2) from error
    return raw


def _request(kind: str, source: str, payload: bytes, timestamp: str | None, key: str | None) -> bytes:
    import msgspec

    fields: dict[str, Any] = {"kind": kind, "source": source, "payload": msgspec.Raw(payload)}
    if timestamp is not None:
        fields["timestamp"] = timestamp
    if key is not None:
        fields["idempotency_key"] = key
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError as error:
        raise Failed(f"the event cannot be sent: {error.object!r} is not UTF-8", exit_code=2) from error


# --- events from standard input


class Line(NamedTuple):
    number: int
    text: bytes


def _append_lines(remote: "Remote", as_json: bool) -> int:
    import msgspec

    receipts_of = msgspec.json.Decoder(list[msgspec.Raw])
    written = 0
    for batch in _batches():
        body = b"\n".join(line.text for line in batch)
        try:
            answer = remote.post("events/batch", body, "application/x-ndjson")
        except Failed as failed:
            raise _refusal(failed, batch, written) from failed
        receipts = [bytes(receipt) for receipt in receipts_of.decode(answer.content)]
        written += len(receipts)
        _print_receipts(receipts, as_json, replayed="idempotent-replayed" in answer.headers)
    if not as_json:
        tell(f"{written} events appended")
    return 0


def _batches() -> Iterator[list[Line]]:
    """Group the lines of standard input; those that are there when it pauses are sent without waiting for more."""
    number, batch, size_bytes, rest = 0, list[Line](), 0, b""
    while chunk := os.read(STDIN, READ_BYTES):
        *texts, rest = (rest + chunk).split(b"\n")
        for text in texts:
            number += 1
            if not text.strip():
                continue
            if batch and (len(batch) == BATCH_EVENTS or size_bytes + len(text) > BATCH_BYTES):
                yield batch
                batch, size_bytes = [], 0
            batch.append(Line(number, text))
            size_bytes += len(text) + 1
        if batch and not select.select([STDIN], [], [], 0)[0]:
            yield batch
            batch, size_bytes = [], 0
    last = [Line(number + 1, rest)] if rest.strip() else []
    if batch and (len(batch) == BATCH_EVENTS or size_bytes + len(rest) > BATCH_BYTES):
        yield batch
        batch = []
    if batch or last:
        yield batch + last


def _refusal(failed: Failed, batch: list[Line], written: int) -> Failed:
    first, last = batch[0].number, batch[-1].number
    index = failed.problem.get("index")
    before = f"{written} events were written before" if written else "nothing was written before"
    if isinstance(index, int) and 0 <= index < len(batch):
        why = without_place(failed.detail)
        message = f"line {batch[index].number}: {why}"
        hint = f"{before}, and nothing from line {first} on: correct the line and send again from line {first}."
    elif failed.in_doubt:
        message = f"lines {first} to {last}: {failed}"
        hint = f"{before}; whether these lines were is not known. Lines with an idempotency_key can be sent again."
    else:
        message = f"lines {first} to {last}: {failed}"
        hint = f"{before}, and nothing from line {first} on."
    return Failed(f"{message.rstrip('.')}.\n{hint[0].upper()}{hint[1:]}")


# --- receipts


def _print_receipts(receipts: list[bytes], as_json: bool, *, replayed: bool) -> None:
    if as_json:
        write_lines(receipts)
        return
    rows = Rows(console())
    for receipt in receipts:
        event = json.loads(receipt)
        note = " (it was appended before)" if replayed else ""
        rows.print(event, note=f"{str(event['hash'])[:16]}…{note}")
