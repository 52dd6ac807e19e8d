"""audit-stream import."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.chain import START, Event, Head, quoted
from audit_stream.cli.failures import Failed
from audit_stream.cli.local import with_stream
from audit_stream.cli.options import choose_one, json_option, redis_url_option, setting_option, url_option
from audit_stream.cli.output import console, wants_json, write_lines
from audit_stream.cli.progress import progress
from audit_stream.errors import AuditStreamError, Refused
from audit_stream.settings import VARIABLES

if TYPE_CHECKING:
    from audit_stream.evidence import Report
    from audit_stream.stream import Stream

BATCH_EVENTS = 500
BATCH_BYTES = 3 * 1024 * 1024

Show = Callable[[int, int], None]


@click.command("import")
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
@json_option
@click.pass_context
def import_(
    ctx: click.Context,
    file: Path,
    url: str,
    redis_url: str | None,
    chain: str,
    kinds: str,
    as_json: bool,
) -> None:
    """Replay an export into an empty chain, timestamps kept, to the same head.

    The whole file is verified before the first event is written.
    """
    choose_one(ctx, "url", "redis_url")
    report = _verified(file)
    with progress("importing") as show:
        if redis_url:
            known = frozenset(VARIABLES["AUDIT_STREAM_KINDS"].parse("--kinds", kinds))
            with_stream(redis_url, chain, lambda stream: _into_redis(stream, file, report, known, show))
        else:
            _into_server(url, file, report, show)
    head = report.verdict.head
    if wants_json(as_json):
        body = {"imported": head.event_id, "head": {"event_id": head.event_id, "hash": head.hash.decode()}}
        write_lines([msgspec.json.encode(body)])
    else:
        console().print(Text.assemble(("imported", "bold green"), f"  {head.event_id:,} events, to the same head"))


def _verified(file: Path) -> "Report":
    from audit_stream.evidence import check_file, unpacked_bytes, whole_chain

    try:
        with progress("verifying", unit="bytes") as show:
            size = unpacked_bytes(file)
            report = check_file(file, lambda done: show(done, size), size=size)
    except OSError as error:
        raise Failed(f"{file} cannot be read: {error.strerror or error}", exit_code=2) from error
    try:
        whole_chain(report)
    except Refused as refused:
        raise Failed(f"{file} is not imported: {refused}; nothing was written") from refused
    return report


def _check_target(last_event_id: int, report: "Report", known: "frozenset[str]") -> None:
    if last_event_id:
        raise Failed(f"the chain is not empty: event #{last_event_id} was written; nothing was imported")
    unknown = sorted(kind.decode() for kind in report.kinds if kind.decode() not in known)
    if unknown:
        raise Failed(
            f"the file has kinds that are unknown here: {', '.join(unknown)}; nothing was written."
            f" Add them with AUDIT_STREAM_KINDS={','.join(unknown)}"
        )


# --- the ways in


def _into_server(url: str, file: Path, report: "Report", show: Show) -> None:
    from audit_stream.cli.remote import Remote
    from audit_stream.evidence import read_line

    items = msgspec.json.Decoder(list[msgspec.Raw])
    with Remote(url) as remote:
        stats, info = remote.get("stats").json(), remote.get("").json()
        _check_target(int(stats["last_event_id"]), report, frozenset(info["kinds"]))
        head = START
        for batch in _batches(file):
            try:
                answer = remote.post("events/batch", b"\n".join(map(request, batch)), "application/x-ndjson")
            except Failed as failed:
                raise _stopped(head, failed) from failed
            head = _same([read_line(bytes(raw)) for raw in items.decode(answer.content)], batch)
            show(head.event_id, report.verdict.head.event_id)
        stats = remote.get("stats").json()
    _check_end(Head(stats["last_event_id"], (stats["latest_hash"] or START.hash.decode()).encode()), report)


async def _into_redis(stream: "Stream", file: Path, report: "Report", known: frozenset[str], show: Show) -> None:
    from audit_stream.appender import Appender
    from audit_stream.event import decode, draft

    _check_target((await stream.end(0, count=1)).written, report, known)
    head = START
    async with Appender(stream) as appender:
        for batch in _batches(file):
            try:
                receipts = await appender.append([draft(decode(request(event)), known) for event in batch])
            except AuditStreamError as error:
                raise _stopped(head, error) from error
            head = _same([receipt.event for receipt in receipts], batch)
            show(head.event_id, report.verdict.head.event_id)
    _check_end(await stream.head(), report)


def _batches(file: Path) -> Iterator[list[Event]]:
    from audit_stream.evidence import events_of

    batch: list[Event] = []
    size_bytes = 0
    for event in events_of(file):
        size = len(event.payload) + 1024
        if batch and (len(batch) == BATCH_EVENTS or size_bytes + size > BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(event)
        size_bytes += size
    if batch:
        yield batch


def request(event: Event) -> bytes:
    """The PublishRequest that the event was made of; the payload's text as it was hashed."""
    return b'{"kind":%b,"source":%b,"payload":%b,"timestamp":%b}' % (
        quoted(event.kind),
        quoted(event.source),
        event.payload,
        quoted(event.timestamp),
    )


def _same(written: list[Event], batch: list[Event]) -> Head:
    for theirs, ours in zip(written, batch, strict=True):
        if theirs != ours:
            raise Failed(
                f"event #{ours.event_id} of the file was written as #{theirs.event_id} with the hash"
                f" {theirs.hash.decode()}: somebody else writes to this chain, and it is not the file's any more"
            )
    return Head(batch[-1].event_id, batch[-1].hash)


def _stopped(head: Head, error: Exception) -> Failed:
    return Failed(f"{error}. Up to event #{head.event_id} the file is written; begin again with an empty chain.")


def _check_end(head: Head, report: "Report") -> None:
    if head != report.verdict.head:
        raise Failed(
            f"the chain's head is {head.event_id}:{head.hash.decode()}, and not that of the file:"
            " somebody else writes to this chain"
        )
