"""audit-stream verify."""

import asyncio
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.failures import Failed
from audit_stream.cli.local import with_stream
from audit_stream.cli.options import choose_one, json_option, redis_url_option, setting_option, url_option
from audit_stream.cli.output import console, printable, tell, until_reader_leaves, wants_json, write_lines
from audit_stream.cli.progress import progress
from audit_stream.errors import AuditStreamError, ChainBroken
from audit_stream.server.bodies import HeadBody, VerdictBody

if TYPE_CHECKING:
    from audit_stream.cli.remote import Remote
    from audit_stream.stream import Stream

INTACT, BROKEN, CANNOT_TELL = 0, 1, 2
PROGRESS_S = 0.1


class Checkpoint(NamedTuple):
    event_id: int
    hash: str


def _checkpoint(_: click.Context, __: click.Parameter, text: str | None) -> Checkpoint | None:
    if text is None:
        return None
    match = re.fullmatch(r"#?([1-9][0-9]{0,18}):([0-9A-Fa-f]{64})", text.strip(), re.ASCII)
    if not match:
        raise click.BadParameter("write it as ID:HASH, an event_id and 64 hex digits.")
    return Checkpoint(int(match.group(1)), match.group(2).lower())


@click.command()
@click.option("--from", "first", metavar="ID", type=click.IntRange(min=1), default=1, help="begin with this event")
@click.option("--to", "last", metavar="ID", type=click.IntRange(min=1), help="end with this event, not the newest")
@click.option(
    "--checkpoint",
    metavar="ID:HASH",
    callback=_checkpoint,
    help="an event and its hash as noted earlier, outside Redis: the chain must still hold it",
)
@url_option()
@redis_url_option()
@setting_option("AUDIT_STREAM_CHAIN")
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    first: int,
    last: int | None,
    checkpoint: Checkpoint | None,
    url: str,
    redis_url: str | None,
    chain: str,
    as_json: bool,
) -> int:
    """Recompute the hash chain, on the stored bytes.

    Exit code: 0 intact, 1 broken, 2 could not tell. By URL the server computes; with --redis-url this
    machine does, and need not trust it.
    """
    choose_one(ctx, "url", "redis_url")
    try:
        if redis_url:
            verdict, contradiction = with_stream(
                redis_url, chain, lambda stream: _here(stream, first, last, checkpoint)
            )
        else:
            verdict, contradiction = _there(url, first, last, checkpoint)
    except (Failed, AuditStreamError) as error:
        tell(f"cannot tell: {error}")
        return CANNOT_TELL
    except Exception as error:
        # Whatever went wrong, it is no evidence against the chain, and its exit code must not say so.
        tell(f"cannot tell: {type(error).__name__}: {error}")
        return CANNOT_TELL
    with until_reader_leaves():
        if wants_json(as_json):
            body = msgspec.to_builtins(verdict)
            if checkpoint:
                body["checkpoint"] = {**checkpoint._asdict(), "holds": not contradiction, "reason": contradiction}
            write_lines([msgspec.json.encode(body)])
        else:
            _print(verdict, checkpoint, contradiction)
    return INTACT if verdict.valid and not contradiction else BROKEN


# --- by URL


def _there(url: str, first: int, last: int | None, checkpoint: Checkpoint | None) -> tuple[VerdictBody, str | None]:
    """Return the server's verdict, and what the checkpoint says against it. Raises Failed."""
    from audit_stream.cli.remote import Remote

    with Remote(url) as remote:
        verdict = _ask(remote, first, last)
        if checkpoint is None:
            return verdict, None
        try:
            found = str(remote.get(f"events/{checkpoint.event_id}").json()["hash"])
        except Failed as failed:
            if failed.status == 404:
                return verdict, _contradiction(checkpoint, None)
            if failed.status == 409:
                return verdict, failed.detail
            raise
        return verdict, _contradiction(checkpoint, found)


def _ask(remote: "Remote", first: int, last: int | None) -> VerdictBody:
    params = {"from": first, "to": last}
    with progress("verifying") as show, remote.stream("verify", params, accept="application/x-ndjson") as answer:
        for line in answer.iter_lines():
            body = msgspec.json.decode(line, type=dict[str, Any])
            if "detail" in body:
                raise Failed(f"{remote.url}: {body['detail']}")
            if "valid" in body:
                return msgspec.convert(body, VerdictBody)
            show(body["checked"], body["expected"])
    raise Failed(f"{remote.url} ended its answer without a verdict; its log says why")


# --- on the chain itself


async def _here(
    stream: "Stream", first: int, last: int | None, checkpoint: Checkpoint | None
) -> tuple[VerdictBody, str | None]:
    """The same, computed here. Raises Unreachable, Refused."""
    from audit_stream.verifier import Verifier

    verifier = Verifier(stream)
    try:
        walk, task = verifier.start(first, last)
        with progress("verifying") as show:
            while not (await asyncio.wait({task}, timeout=PROGRESS_S))[0]:
                show(walk.checked, max(walk.expected, walk.checked))
        report = task.result()
    finally:
        await verifier.close()
    valid, checked, first_break_at, reason, head = report.verdict
    verdict = VerdictBody(
        valid=valid,
        checked=checked,
        first_break_at=first_break_at,
        reason=reason,
        first=report.first,
        head=HeadBody(head.event_id, head.hash.decode()),
        indexes=report.indexes,
        took_ms=round(report.took_s * 1000, 1),
    )
    if checkpoint is None:
        return verdict, None
    try:
        event = await stream.get(checkpoint.event_id)
    except ChainBroken as broken:
        return verdict, str(broken)
    return verdict, _contradiction(checkpoint, event and event.hash.decode(errors="replace"))


# --- the verdict


def _contradiction(checkpoint: Checkpoint, found: str | None) -> str | None:
    if found is None:
        return f"event #{checkpoint.event_id} of the checkpoint is not in the chain"
    if found != checkpoint.hash:
        return f"event #{checkpoint.event_id} has the hash {found}, not that of the checkpoint"
    return None


def _print(verdict: VerdictBody, checkpoint: Checkpoint | None, contradiction: str | None) -> None:
    out = console()
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
    out.print(Text.assemble(("  indexes  ", "dim"), verdict.indexes))
    out.print(Text.assemble(("  head     ", "dim"), f"#{head.event_id}"))
    out.print(Text.assemble(("  hash     ", "dim"), head.hash))
    if contradiction:
        out.print(Text.assemble(("the checkpoint does not hold", "bold red"), f": {printable(contradiction)}"))
    elif checkpoint:
        out.print(Text.assemble(("the checkpoint holds", "bold green"), f": event #{checkpoint.event_id}"))
    elif verdict.valid and head.event_id:
        out.print(Text("Keep the head outside Redis, and give it next time:", style="dim"))
        out.print(Text(f"audit-stream verify --checkpoint {head.event_id}:{head.hash}", style="dim"))
