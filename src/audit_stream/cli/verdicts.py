"""Where a verdict comes from: a server, the chain in its Redis, or a file."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from audit_stream.cli.failures import Failed
from audit_stream.cli.local import with_stream
from audit_stream.cli.progress import progress
from audit_stream.errors import ChainBroken
from audit_stream.pin import Pin
from audit_stream.server.bodies import VerdictBody

if TYPE_CHECKING:
    from audit_stream.cli.remote import Remote
    from audit_stream.evidence import Report
    from audit_stream.stream import Stream

PROGRESS_S = 0.1


class Range(NamedTuple):
    first: int
    last: int | None
    deep: bool


class Found(NamedTuple):
    verdict: VerdictBody
    contradictions: list[str | None]
    """What is to be said against each pin, in their order."""
    line: int | None = None
    """Of a file, the one that does not hold."""


# --- by URL


def of_server(url: str, asked: Range, pins: Sequence[Pin]) -> Found:
    """Return the server's verdict. Raises Failed."""
    from audit_stream.cli.remote import Remote

    with Remote(url) as remote:
        return Found(_ask(remote, asked), [_held_there(remote, pin) for pin in pins])


def _ask(remote: "Remote", asked: Range) -> VerdictBody:
    params = {"from": asked.first, "to": asked.last, "deep": "true" if asked.deep else None}
    with progress("verifying") as show, remote.stream("verify", params, accept="application/x-ndjson") as answer:
        for line in answer.iter_lines():
            body = msgspec.json.decode(line, type=dict[str, Any])
            if "detail" in body:
                raise Failed(f"{remote.url}: {body['detail']}")
            if "valid" in body:
                return msgspec.convert(body, VerdictBody)
            show(body["checked"], body["expected"])
    raise Failed(f"{remote.url} ended its answer without a verdict; its log says why")


def _held_there(remote: "Remote", pin: Pin) -> str | None:
    try:
        try:
            found = str(remote.get(f"events/{pin.event_id}").json()["hash"])
        except Failed as failed:
            if failed.status != 404:
                raise
            return pin.contradiction(None, end=int(remote.get("stats").json()["last_event_id"]))
    except Failed as failed:
        if failed.status == 409:  # the chain is damaged there
            return failed.detail
        raise
    return pin.contradiction(found, end=pin.event_id)


# --- on the chain itself


def of_redis(redis_url: str, chain: str, asked: Range, pins: Sequence[Pin], jobs: int | None) -> Found:
    """The same, computed here. Raises AuditStreamError."""

    async def ask(stream: "Stream") -> Found:
        from audit_stream.split_walk import SplitWalk

        walk = SplitWalk(redis_url, stream, asked.first, asked.last, deep=asked.deep, jobs=jobs)
        task = asyncio.create_task(walk.run())
        try:
            with progress("verifying") as show:
                while not (await asyncio.wait({task}, timeout=PROGRESS_S))[0]:
                    show(walk.checked, max(walk.expected, walk.checked))
            report = task.result()
        finally:
            task.cancel()
            await asyncio.wait({task})
        verdict = VerdictBody.of(report.verdict, report.first, report.indexes, report.took_s, report.unchecked)
        return Found(verdict, [await _held_here(stream, pin) for pin in pins])

    return with_stream(redis_url, chain, ask)


async def _held_here(stream: "Stream", pin: Pin) -> str | None:
    try:
        event, head = await stream.get(pin.event_id), await stream.head()
    except ChainBroken as broken:
        return str(broken)
    return pin.contradiction(event and event.hash.decode(errors="replace"), end=head.event_id)


# --- in a file


def of_file(path: Path, pins: Sequence[Pin], jobs: int | None) -> Found:
    """The same of an evidence file. Raises Failed, AuditStreamError."""
    from audit_stream.evidence import check_file, one_event_a_line, unpacked_bytes

    try:
        with progress("verifying", unit="bytes") as show, one_event_a_line(path) as lines:
            size = unpacked_bytes(lines)
            event_ids = [pin.event_id for pin in pins]
            report = check_file(lines, lambda done: show(done, size), size=size, jobs=jobs, event_ids=event_ids)
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise Failed(f"{path}: {error}") from error
    if report.verdict.valid:
        for pin in pins:
            if pin.event_id < report.first - 1:
                raise Failed(f"{path} begins with event #{report.first}, behind the pinned #{pin.event_id}")
    return Found(
        VerdictBody.of(report.verdict, report.first, "not checked", report.took_s, "a file holds none"),
        [_held_in(report, pin) for pin in pins],
        report.line,
    )


def _held_in(report: "Report", pin: Pin) -> str | None:
    hash_ = report.hashes.get(pin.event_id)
    if hash_ is None and not report.verdict.valid:
        return f"event #{pin.event_id} was not reached"
    found = None if hash_ is None else hash_.decode(errors="replace")
    return pin.contradiction(found, end=report.verdict.head.event_id)
