"""Reading a chain out to a file: what `export` and `backup` share."""

import gzip
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from audit_stream.addresses import blanked
from audit_stream.chain import START, Event, Head, verify
from audit_stream.cli.failures import Failed
from audit_stream.cli.output import tell

if TYPE_CHECKING:
    from audit_stream.stream import Stream

PAGE = 1_000

Times = list[int | None]
Show = Callable[[int, int], None]
Write = Callable[[list[Event], Times], None]


class Exporting:
    """Writes what holds."""

    def __init__(self, first: int, last: int | None, write: Write, show: Show, *, timed: bool = True) -> None:
        """With `timed`, each event is written with the time of its commit."""
        self._first, self._last, self._write, self._show = first, last, write, show
        self._head: Head | None = START if first == 1 else None
        self._newest_ms = 0
        self.timed = timed
        self.untimed = 0
        """How many events were written without the time of their commit, though it was asked for."""
        self.cursor = first - 1
        self.upto = 0

    def end_at(self, newest: int) -> None:
        """Go as far as the chain does now. Raises Failed for a range that it does not have."""
        self.upto = newest if self._last is None else self._last
        if self.upto > newest or self._first > newest + 1:
            raise Failed(f"the chain ends at event #{newest}")

    @property
    def left(self) -> int:
        return self.upto - self.cursor

    def take(self, events: list[Event], times: Times) -> None:
        """Raises Failed for a link that does not hold."""
        if not events:
            raise Failed(f"event #{self.cursor + 1} is not there")
        head = self._head or Head(self._first - 1, events[0].prev_hash)
        verdict = verify(events, start=head)
        if not verdict.valid:
            raise Failed(f"the chain is broken: {verdict.reason}")
        self._head, self.cursor = verdict.head, verdict.head.event_id
        self._write(events, [self._plausible(ms) for ms in times])
        self._show(self.count, self.upto - self._first + 1)

    def _plausible(self, ms: int | None) -> int | None:
        """Commit times never run back; one that does is from a damaged index, and no import would take it."""
        if ms is None or ms < self._newest_ms:
            self.untimed += self.timed
            return None
        self._newest_ms = ms
        return ms

    @property
    def count(self) -> int:
        return self.cursor - self._first + 1

    @property
    def head(self) -> Head:
        return self._head or START

    def tell_untimed(self) -> None:
        """Say it where events were written without the time of their commit."""
        if self.untimed:
            tell(
                f"{self.untimed:,} events are without the time of their commit, which the index lacks;"
                " `audit-stream reindex` estimates it, then write the file again"
            )


# --- where from


def from_server(url: str, exporting: Exporting) -> None:
    from audit_stream.cli.remote import Remote
    from audit_stream.exported import parse_ms, read_line

    with Remote(url) as remote:
        exporting.end_at(int(remote.get("stats").json()["last_event_id"]))
        while exporting.left:
            params: dict[str, int | str] = {"after": exporting.cursor, "limit": min(PAGE, exporting.left)}
            if exporting.timed:
                params["committed"] = "true"
            with remote.stream("events", params, accept="application/x-ndjson") as answer:
                lines = [line for line in answer.read().split(b"\n") if line]
            try:
                read = [read_line(line) for line in lines]
                times = [None if text is None else parse_ms(text) for _, text in read]
            except ValueError as error:
                raise Failed(f"{blanked(url)} answered with what is not an event: {error}") from error
            exporting.take([event for event, _ in read], times)


async def from_redis(stream: "Stream", exporting: Exporting) -> None:
    from audit_stream.query import Pace

    exporting.end_at((await stream.head()).event_id)
    pace = Pace()
    while exporting.left:
        events = (await stream.page(exporting.cursor, upto=exporting.upto, count=pace.count)).unbroken()
        pace.saw(events)
        ids = [event.event_id for event in events]
        times: Times = await stream.commit_times.of(ids) if exporting.timed else [None] * len(ids)
        exporting.take(events, times)


# --- where to


@contextmanager
def destination(out: str, *, flag: str = "--out", private: bool = False) -> Iterator[IO[bytes]]:
    """Yield a file that takes its place whole or not at all; `-` is standard output. Raises Failed."""
    from audit_stream.atomic import replacing

    if out == "-":
        yield sys.stdout.buffer
        return
    try:
        with replacing(Path(out), private=private) as replacement:
            if out.endswith(".gz"):
                with cast("AbstractContextManager[IO[bytes]]", _packed(replacement.file)) as file:
                    yield file
            else:
                yield replacement.file
            replacement.commit()
    except OSError as error:
        raise Failed(f"{flag}: {out} cannot be written: {error.strerror or error}", exit_code=2) from error


def _packed(file: IO[bytes]) -> gzip.GzipFile:
    # Without name and time, so that the same events make the same file.
    return gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0)


class Jsonl:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, events: list[Event], times: Times) -> None:
        from audit_stream.exported import to_line

        self._file.write(b"".join(b"%b\n" % to_line(*pair) for pair in zip(events, times, strict=True)))
