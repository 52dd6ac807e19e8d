"""The server's pin: the newest event that was promised or verified, noted in a file outside Redis.

The file is behind what was answered by a second at most, and never ahead of it: a pin is a promise, and
only what is on disk was promised. Where a pin can stand when the server is killed:

    not written yet        it names an older event, which the chain still has; the next run starts from that
    being written          it is replaced whole, so it is the old one or the new one
    disk full, read-only   it stays as it was; this is logged and shown in /stats, and appends go on

Servers on one host may share a file: each takes over what another has pinned, and none moves it back. Only
`audit-stream accept-loss` does. It names the lost head in the file, and a server that has promised no more than that
gives its own promise up and goes on from the new pin.
"""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Self

from audit_stream.appender import Appender
from audit_stream.chain import START, Head, verify
from audit_stream.errors import ChainBroken, Misconfigured
from audit_stream.pin import Pin, Pinned, advance, check_writable, make_folder, read_pin
from audit_stream.settings import Settings
from audit_stream.stream import NOTHING, Stream

SETTING = "AUDIT_STREAM_PIN"
PERIOD_S = 1.0

log = logging.getLogger(__name__)


class PinKeeper:
    """Moves the pin behind the appender. Leave it after the appender, so that its last promise is pinned, too."""

    def __init__(self, path: Path, pinned: Pinned, appender: Appender) -> None:
        self._path, self._appender = path, appender
        self._stopping = asyncio.Event()
        self.trouble = ""
        """Why the pin cannot be moved; empty when all is well."""
        self.pin = pinned.pin
        """What the file held when it was last read or written."""
        self._lost = pinned.lost

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="pin")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        await self._task
        await self.move()

    async def _keep(self) -> None:
        while not self._stopping.is_set():
            await self.move()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await self._stopping.wait()

    async def move(self) -> None:
        """Pin what was promised, and promise what others have pinned. What keeps it from that is in `trouble`."""
        trouble = ""
        try:
            # In a thread: it waits for the disk.
            pinned = await asyncio.to_thread(_moved, self._path, self._appender.promised, self._lost)
        except Misconfigured as error:
            trouble = str(error)
        except (OSError, ValueError) as error:
            trouble = f"{SETTING}: {self._path}: {getattr(error, 'strerror', None) or error}"
        else:
            self._take_over(pinned)
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                log.error("the pin cannot be moved, appends go on without: %s", trouble)
            else:
                log.warning("the pin is moved again: %s", self._path)

    def _take_over(self, pinned: Pinned) -> None:
        if pinned.lost and pinned.lost != self._lost:
            # A server that has promised more than was given up keeps its promise: nobody has decided about the rest.
            self._appender.give_up(head_of(pinned.lost), head_of(pinned.pin))
            log.warning("events up to #%d were given up; the pin is now #%s", pinned.lost.event_id, pinned.pin)
        self.pin, self._lost = pinned
        self._appender.promise(head_of(self.pin))


def _moved(path: Path, promised: Head, lost: Pin | None) -> Pinned:
    pinned = read_pin(path, setting=SETTING)
    if promised.event_id > 0 and pinned.pin != (ours := Pin(promised.event_id, promised.hash.decode())):
        return advance(path, ours, lost=lost)
    return pinned


def head_of(pin: Pin | None) -> Head:
    return Head(pin.event_id, pin.hash.encode()) if pin else NOTHING


async def check_pin(stream: Stream, settings: Settings) -> Pinned:
    """Return what is pinned when the chain agrees with it.

    Raises Misconfigured when it does not, when the file cannot be read and written, and when nothing that
    this server promises could be pinned.
    """
    path = settings.pin
    if path is None:
        return Pinned(None)
    if not settings.ack.fsync:
        raise Misconfigured(
            f"{SETTING}: AUDIT_STREAM_ACK={settings.ack} promises nothing that could be pinned: what is only in memory"
            " may be gone after a crash. Use AUDIT_STREAM_ACK=fsync, or leave the pin out."
        )
    pinned = read_pin(path, setting=SETTING)
    try:
        if path.parent == settings.data_dir:
            make_folder(path.parent)
        check_writable(path, setting=SETTING)
    except Misconfigured as error:
        raise Misconfigured(f"{error}. Name another file in {SETTING}, or turn the pin off: {SETTING}=off") from error
    if pinned.pin and (reason := await contradiction(stream, pinned.pin)):
        raise Misconfigured(f"{SETTING}: {reason}.\n{await _next_steps(stream, path)}")
    return pinned


async def _next_steps(stream: Stream, path: Path) -> str:
    """Say what may have happened to a chain that is without its pinned event, and how to go on."""
    steps = [
        f"Acknowledged events are gone: the chain has lost what {path} remembers. Its end was cut, an older backup or a"
        " replica that was behind stands in its place, or it was written anew. Nothing was changed.",
        "Restore the newest backup.",
    ]
    try:
        head = await stream.head()
    except ChainBroken:
        head = None
    if head == START and (await stream.facts()).get("appendonly") == "yes":
        steps.append("If it was restored already from a dump.rdb: Redis with appendonly yes ignores that file.")
    if head:
        steps.append(
            f"If the events cannot be brought back: audit-stream accept-loss --to {head.event_id}:{head.hash.decode()}"
            " records the loss on the chain and goes on from there."
        )
    steps.append(
        f"If this is another chain on purpose, give it a file of its own in {SETTING}. See docs/operators/lost-tail.md."
    )
    return "\n".join(steps)


async def contradiction(stream: Stream, pin: Pin) -> str | None:
    """Say what the chain has against the pin. Raises Unreachable."""
    try:
        event = await stream.get(pin.event_id)
        end = (await stream.head()).event_id
    except ChainBroken as broken:
        return str(broken)
    if event and not verify([event], start=Head(event.event_id - 1, event.prev_hash)).valid:
        return f"event #{pin.event_id} is not the pinned one: its content does not give its hash"
    return pin.contradiction(event and event.hash.decode(errors="replace"), end=end)
