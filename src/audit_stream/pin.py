"""A pin: an event and its hash, noted where whoever holds the chain cannot change it.

A chain alone proves order and content. That its newest events were cut off, that it was written anew
from some event on, or that an older backup stands in its place, only a pin shows.

A pin file holds one line, `ID:HASH`. When a person has given up events of that chain (`audit-stream accept-loss`),
a second line, `lost ID:HASH`, names the head that was given up, for the servers that still expect it.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from audit_stream.atomic import Replacement, replacing
from audit_stream.errors import Misconfigured

LOCKED_S = 2.0
"""How long to wait for the lock. Its holder writes a few bytes; one that keeps it longer hangs, or was stopped."""
LOCK_RETRY_S = 0.01


class Pin(NamedTuple):
    event_id: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> "Pin":
        """Read ID:HASH. Raises ValueError."""
        match = re.fullmatch(r"#?([1-9][0-9]{0,18}):([0-9A-Fa-f]{64})", text.strip(), re.ASCII)
        if not match:
            raise ValueError("write it as ID:HASH, an event_id and 64 hex digits")
        return cls(int(match.group(1)), match.group(2).lower())

    def __str__(self) -> str:
        return f"{self.event_id}:{self.hash}"

    def contradiction(self, found: str | None, *, end: int, what: str = "event") -> str | None:
        """Say what the chain, which ends at event `end` and has the hash `found` at ours, has against it."""
        if found == self.hash:
            return None
        if found is not None:
            return f"{what} #{self.event_id} is not the pinned one: its hash is {found}"
        if end < self.event_id:
            return f"chain is shorter than the pinned head: it ends at {what} #{end}, and #{self.event_id} is pinned"
        return f"{what} #{self.event_id} is not the pinned one: it is not there"


class Pinned(NamedTuple):
    """What a pin file holds."""

    pin: Pin | None
    lost: Pin | None = None
    """The head that was given up; events up to it are no longer expected."""

    @classmethod
    def parse(cls, text: str) -> "Pinned":
        """Read a pin file. Raises ValueError."""
        first, _, second = text.strip().partition("\n")
        pin = Pin.parse(first)
        if not second:
            return cls(pin)
        word, _, lost = second.partition(" ")
        if word != "lost":
            raise ValueError("a second line is to be: lost ID:HASH")
        return cls(pin, Pin.parse(lost))

    def __str__(self) -> str:
        return f"{self.pin}\nlost {self.lost}\n" if self.lost else f"{self.pin}\n"


class PinFile:
    """Remembers the last verified head between runs."""

    def __init__(self, path: Path, pinned: Pinned, replacement: Replacement) -> None:
        self._path, self._pinned, self._replacement = path, pinned, replacement
        self.pin = pinned.pin

    def move_to(self, head: Pin) -> None:
        """Leaves a pin alone that was moved further, or given up, meanwhile. Raises Misconfigured."""
        if head != self.pin:
            with _named("--pin", "cannot be written", self._path), _locked(self._path):
                _write(_read(self._path), head, self._pinned.lost, self._replacement)


@contextmanager
def pin_file(path: Path) -> Iterator[PinFile]:
    """Open the file, which need not be there yet. Raises Misconfigured when it cannot be read or written later."""
    pinned = read_pin(path, setting="--pin")
    with ExitStack() as stack:
        # Now, not after an hour of checking.
        with _named("--pin", "cannot be written", path):
            replacement = stack.enter_context(replacing(path))
        yield PinFile(path, pinned, replacement)


def read_pin(path: Path, *, setting: str) -> Pinned:
    """Read the file, which need not be there yet. Raises Misconfigured, naming the setting."""
    with _named(setting, "cannot be read", path):
        return _read(path)


def check_writable(path: Path, *, setting: str) -> None:
    """Raise Misconfigured, naming the setting, when the file could not be written.

    Does not wait for the lock: a process that was stopped while it held the lock must not keep another from starting.
    """
    with _named(setting, "cannot be written", path), replacing(path):
        pass


def make_folder(path: Path) -> None:
    """Make the data folder, for its owner alone, where there is none yet. Raises Misconfigured."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"AUDIT_STREAM_DATA_DIR: {path} cannot be made: {error.strerror or error}") from error


def advance(path: Path, head: Pin, *, lost: Pin | None = None) -> Pinned:
    """Pin `head` unless a newer event is pinned, also by another process; return what the file then holds.

    Does nothing when the file's `lost` is another one than the caller's: events were given up meanwhile, and `head`
    may be one of them. Whole or not at all, and on disk when it returns. Raises OSError, ValueError for a file that
    holds no pin, or another event of this id.
    """
    with _locked(path), replacing(path) as replacement:
        pinned = _read(path)
        pin = pinned.pin
        if pinned.lost == lost and pin and pin.event_id == head.event_id and pin.hash != head.hash:
            raise ValueError(f"it pins another event #{pin.event_id} than the one that was appended here")
        return _write(pinned, head, lost, replacement)


def give_up(path: Path, pinned: Pinned, head: Pin, *, lost: Pin) -> None:
    """Pin `head` in place of what the file was read to hold; the only way in which a pin moves back.

    Raises Misconfigured, naming the file, when it holds something else by now, or cannot be written.
    """
    with _named("--pin", "cannot be written", path), _locked(path), replacing(path) as replacement:
        if _read(path) != pinned:
            raise Misconfigured(f"--pin: {path} was moved meanwhile. Run the command again.")
        replacement.file.write(str(Pinned(head, lost)).encode())
        replacement.commit()


def _read(path: Path) -> Pinned:
    return Pinned.parse(path.read_text()) if path.exists() else Pinned(None)


def _write(pinned: Pinned, head: Pin, lost: Pin | None, replacement: Replacement) -> Pinned:
    if pinned.lost != lost or (pinned.pin and pinned.pin.event_id >= head.event_id):
        return pinned
    moved = Pinned(head, lost)
    replacement.file.write(str(moved).encode())
    replacement.commit()
    return moved


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from moving the pin. What is locked is its folder: the file itself is replaced each time."""
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        deadline = time.monotonic() + LOCKED_S
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"another process has held the lock on its folder for {LOCKED_S:g} s") from error
            time.sleep(LOCK_RETRY_S)
        yield
    finally:
        os.close(folder)


@contextmanager
def _named(setting: str, what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise Misconfigured(f"{setting}: {path} holds no pin: {error}") from error
    except OSError as error:
        raise Misconfigured(f"{setting}: {path} {what}: {error.strerror or error}") from error
