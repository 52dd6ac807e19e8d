"""Writing a file back to a chain: what `import` and `restore` share.

The whole file is checked before the first event is written. It goes onto the chain where the chain ends: onto an
empty one a file that begins with the first event, onto any other a file that holds its head. So what broke half way
goes on where it was, and increments follow the backup that they belong to.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from audit_stream.chain import START, Event, Head, quoted
from audit_stream.cli.failures import Failed
from audit_stream.cli.local import with_stream
from audit_stream.cli.progress import progress
from audit_stream.errors import AuditStreamError

if TYPE_CHECKING:
    from collections.abc import Callable

    from audit_stream.appender import Appender
    from audit_stream.cli.remote import Remote
    from audit_stream.event import Draft
    from audit_stream.evidence import Report
    from audit_stream.exported import Exported
    from audit_stream.stream import Stream

    Show = Callable[[int, int], None]

BATCH_EVENTS = 500
BATCH_BYTES = 3 * 1024 * 1024
IN_FLIGHT = 2
"""While Redis writes one batch, the next is read and hashed. Larger batches gain nothing: measured 500 to 2,000."""
PATIENCE_S = 60.0
"""No producer waits for an answer here, so a Redis that is slow for a while ends nothing."""
NOT_CARRIED = (
    "idempotency keys (a retry of an event from before may be appended twice)",
    "pins",
    "the last verdict",
)
"""What a file does not hold, and a chain written from it does not have."""


class Plan(NamedTuple):
    """A file that was checked, and belongs onto the chain."""

    path: Path
    report: "Report"
    start: Head
    """The chain's head: the events behind it are to be written."""
    timed: bool
    """Its commit times are to be kept."""

    @property
    def end(self) -> Head:
        return self.report.verdict.head

    @property
    def events(self) -> int:
        """How many events are to be written."""
        return self.end.event_id - self.start.event_id

    def batches(self) -> "Iterator[Batch]":
        """What is to be written, the time of its commit estimated where the line has none."""
        from audit_stream.evidence import exported_in

        times = _Times(self.report.times.first_ms if self.timed else None)
        batch, size_bytes = Batch([], []), 0
        for exported in exported_in(self.path):
            ms = times.of(exported) if self.timed else None
            event = exported.event
            if event.event_id <= self.start.event_id:
                continue
            size = len(event.payload) + 1024
            if batch.events and (len(batch.events) == BATCH_EVENTS or size_bytes + size > BATCH_BYTES):
                yield batch
                batch, size_bytes = Batch([], []), 0
            batch.events.append(event)
            size_bytes += size
            if ms is not None:
                batch.committed.append(ms)
        if batch.events:
            yield batch


class Batch(NamedTuple):
    events: list[Event]
    committed: list[int]
    """Unix milliseconds, one for each event; none at all when they are to be committed now."""


class _Times:
    """The commit time of each line. One without lies between its neighbours: it gets that of the one before."""

    def __init__(self, first_ms: int | None) -> None:
        self._ms = first_ms

    def of(self, exported: "Exported") -> int | None:
        from audit_stream.exported import parse_ms

        if exported.committed_at is not None:
            self._ms = parse_ms(exported.committed_at)
        return self._ms


# --- before the first write


@contextmanager
def lines_of(path: Path) -> "Iterator[Path]":
    """Yield the file as one event a line, also where it is the JSON array that `GET /events` answers. Raises Failed."""
    from audit_stream.evidence import one_event_a_line

    with ExitStack() as stack:
        try:
            lines = stack.enter_context(one_event_a_line(path))
        except OSError as error:
            raise Failed(f"{path} cannot be read: {error.strerror or error}", exit_code=2) from error
        except ValueError as error:
            raise Failed(f"{path} is not imported: {error}; nothing was written") from error
        yield lines


class Unusual(NamedTuple):
    """Events whose timestamp no producer may send today: a text that is not an RFC 3339 date-time with offset."""

    events: int
    first: int
    """The event_id of the first of them."""
    timestamp: str

    def __str__(self) -> str:
        are = "events have timestamps that are" if self.events > 1 else "event has a timestamp that is"
        return (
            f"{self.events:,} {are} not RFC 3339 with offset, the first of them #{self.first}: {self.timestamp[:64]!r}"
        )


def unusual_in(plan: Plan) -> Unusual | None:
    """Look at the events to be written. Raises Failed for one that could not be read back from a chain."""
    from audit_stream.errors import Refused
    from audit_stream.event import is_readable
    from audit_stream.evidence import events_of
    from audit_stream.timestamps import check_timestamp

    count, first = 0, None
    for event in events_of(plan.path):
        if event.event_id <= plan.start.event_id:
            continue
        if not is_readable(event):
            raise Failed(
                f"event #{event.event_id} cannot be stored as it was recorded: its payload or its timestamp is not what"
                " JSON can hold (NaN, an infinity, or a control character); nothing was written"
            )
        try:
            check_timestamp(event.timestamp.decode(), field="timestamp")
        except Refused:
            count, first = count + 1, first or event
    return Unusual(count, first.event_id, first.timestamp.decode()) if first else None


def make_plan(path: Path, head: Head, *, timed: bool, shown: Path | None = None) -> Plan:
    """Check the file against the chain's head. Raises Failed, also for commit times that cannot be right if `timed`.

    `shown` is the name that messages give the file, where it is another one.
    """
    from audit_stream.evidence import check_file, unpacked_bytes

    try:
        with progress("verifying", unit="bytes") as show:
            size = unpacked_bytes(path)
            report = check_file(path, lambda done: show(done, size), size=size, event_ids=[head.event_id])
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror or error}", exit_code=2) from error
    if why_not := _why_not(report, head, timed=timed):
        raise Failed(f"{shown or path} is not imported: {why_not}; nothing was written")
    return Plan(path, report, head, timed and report.times.first_ms is not None)


def _why_not(report: "Report", head: Head, *, timed: bool) -> str | None:
    if not report.verdict.valid:
        return report.verdict.reason
    if not report.verdict.checked:
        return "it holds no event"
    end = report.verdict.head.event_id
    if head.event_id > end:
        return f"the chain ends at event #{head.event_id} already, and the file at #{end}"
    if head.event_id < report.first - 1:
        what = f"ends at event #{head.event_id}" if head.event_id else "is empty"
        return f"it begins with event #{report.first}, and the chain {what}"
    if report.hashes[head.event_id] != head.hash:
        return f"the chain is another one: its event #{head.event_id} is not the one in the file"
    if timed and report.times.problem:
        return (
            f"line {report.times.line}: {report.times.problem}. No hash covers commit times: correct it, or commit"
            " everything now with --without-times"
        )
    return None


def check_end(head: Head, plan: Plan) -> None:
    if head != plan.end:
        raise Failed(
            f"the chain's head is {head.event_id}:{head.hash.decode()}, and not that of the file:"
            " somebody else writes to this chain"
        )


# --- the ways in


def server_head(remote: "Remote") -> Head:
    stats = remote.get("stats").json()
    return Head(int(stats["last_event_id"]), stats["latest_hash"].encode()) if stats["latest_hash"] else START


def into_server(remote: "Remote", plan: Plan, show: "Show") -> None:
    """Append what the chain lacks, committed now: no producer may claim a commit time. Raises Failed."""
    from audit_stream.exported import read_line

    items = msgspec.json.Decoder(list[msgspec.Raw])
    head = plan.start
    for batch in plan.batches():
        try:
            answer = remote.post("events/batch", b"\n".join(map(request, batch.events)), "application/x-ndjson")
        except Failed as failed:
            raise _stopped(head, failed) from failed
        head = _same([read_line(bytes(raw)).event for raw in items.decode(answer.content)], batch.events)
        show(head.event_id, plan.end.event_id)
    check_end(server_head(remote), plan)


def write_to_redis(
    path: Path, redis_url: str, chain: str, *, timed: bool, check: "Callable[[Plan], None]", shown: Path | None = None
) -> Plan:
    """Check the file against the chain, and write what the chain lacks. Raises Failed, AuditStreamError."""
    plan = make_plan(path, with_stream(redis_url, chain, redis_head), timed=timed, shown=shown)
    check(plan)
    with progress("importing") as show:
        with_stream(redis_url, chain, lambda stream: into_redis(stream, plan, show))
    return plan


async def redis_head(stream: "Stream") -> Head:
    """Where the chain ends. Raises Failed for one whose end was cut."""
    head, written = await stream.head(), (await stream.end(0, count=1)).written
    if written > head.event_id:
        raise Failed(
            f"the chain ends at event #{head.event_id}, but #{written} was written: its key remembers that."
            " Nothing was written now; give the file a chain of its own with --chain, or an empty Redis"
        )
    return head


async def into_redis(stream: "Stream", plan: Plan, show: "Show") -> None:
    """Append what the chain lacks, committed when the file says. Raises Failed."""
    from audit_stream.appender import Appender

    if (head := await stream.head()) != plan.start:
        raise Failed(f"the chain has grown to event #{head.event_id} since the file was checked; nothing was written")
    async with Appender(stream, deadline_s=PATIENCE_S) as appender:
        flights: list[asyncio.Task[Head]] = []
        try:
            for batch in plan.batches():
                flights.append(asyncio.create_task(_append(appender, batch)))
                await asyncio.sleep(0)  # it is handed in before the next one, and so written before it
                if len(flights) == IN_FLIGHT:
                    head = await flights.pop(0)
                    show(head.event_id, plan.end.event_id)
            while flights:
                head = await flights.pop(0)
        except AuditStreamError as error:
            raise _stopped(head, error) from error
        finally:
            await asyncio.gather(*flights, return_exceptions=True)
    check_end(await stream.head(), plan)


async def _append(appender: "Appender", batch: Batch) -> Head:
    receipts = await appender.append([_draft(event) for event in batch.events], committed=batch.committed)
    return _same([receipt.event for receipt in receipts], batch.events)


def _draft(event: Event) -> "Draft":
    """What the event was linked from: the bytes that were hashed, whatever this version takes from producers."""
    from audit_stream.event import Draft

    return Draft(*event[1:5], stamped=False, once=b"")


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
    return Failed(
        f"{error}. Up to event #{head.event_id} the file is written; run the same command again to go on from there."
    )
