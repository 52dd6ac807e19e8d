"""The server's pin: the newest event that was promised or verified, noted in a file outside Redis.

The file is behind what was answered by a second at most, and never ahead of it: a pin is a promise, and
only what is on disk was promised. Where a pin can stand when the server is killed:

    not written yet        it names an older event, which the chain still has; the next run starts from that
    being written          it is replaced whole, so it is the old one or the new one
    disk full, read-only   it stays as it was; this is logged and shown in /stats, and appends go on

Servers on one host may share a file: each takes over what another has pinned, and none moves it back.
"""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Self

from audit_stream.appender import Appender
from audit_stream.chain import Head, verify
from audit_stream.errors import ChainBroken, Misconfigured
from audit_stream.pin import Pin, advance, check_writable, read_pin
from audit_stream.settings import Settings
from audit_stream.stream import NOTHING, Stream

SETTING = "AUDIT_STREAM_PIN"
PERIOD_S = 1.0

log = logging.getLogger(__name__)


class PinKeeper:
    """Moves the pin behind the appender. Leave it after the appender, so that its last promise is pinned, too."""

    def __init__(self, path: Path, pin: Pin | None, appender: Appender) -> None:
        self._path, self._appender = path, appender
        self._stopping = asyncio.Event()
        self.trouble = ""
        """Why the pin cannot be moved; empty when all is well."""
        self.pin = pin
        """What the file held when it was last read or written."""

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
            self.pin = await asyncio.to_thread(_moved, self._path, self._appender.promised)
        except Misconfigured as error:
            trouble = str(error)
        except (OSError, ValueError) as error:
            trouble = f"{SETTING}: {self._path}: {getattr(error, 'strerror', None) or error}"
        else:
            self._appender.promise(head_of(self.pin))
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                log.error("the pin cannot be moved, appends go on without: %s", trouble)
            else:
                log.warning("the pin is moved again: %s", self._path)


def _moved(path: Path, promised: Head) -> Pin | None:
    pin = read_pin(path, setting=SETTING)
    if promised.event_id > 0 and pin != (ours := Pin(promised.event_id, promised.hash.decode())):
        return advance(path, ours)
    return pin


def head_of(pin: Pin | None) -> Head:
    return Head(pin.event_id, pin.hash.encode()) if pin else NOTHING


async def check_pin(stream: Stream, settings: Settings) -> Pin | None:
    """Return the pin when the chain agrees with it.

    Raises Misconfigured when it does not, when the file cannot be read and written, and when nothing that
    this server promises could be pinned.
    """
    if settings.pin is None:
        return None
    if not settings.ack.fsync:
        raise Misconfigured(
            f"{SETTING}: AUDIT_STREAM_ACK={settings.ack} promises nothing that could be pinned: what is only in memory"
            " may be gone after a crash. Use AUDIT_STREAM_ACK=fsync, or leave the pin out."
        )
    pin = read_pin(settings.pin, setting=SETTING)
    check_writable(settings.pin, setting=SETTING)
    if pin and (reason := await contradiction(stream, pin)):
        raise Misconfigured(
            f"{SETTING}: {reason}.\n"
            f"The chain has lost what {settings.pin} remembers: its end was cut, it was written anew, an older backup"
            " stands in its place, or this is another chain. Restore the newest one. Only if this one is right"
            " after all, remove the file."
        )
    return pin


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
