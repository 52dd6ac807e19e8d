"""A pin: an event and its hash, noted where whoever holds the chain cannot change it.

A chain alone proves order and content. That its newest events were cut off, that it was written anew
from some event on, or that an older backup stands in its place, only a pin shows.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from audit_stream.atomic import Replacement, replacing
from audit_stream.errors import Misconfigured


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

    def contradiction(self, found: str | None, *, end: int) -> str | None:
        """Say what the chain, which ends at event `end` and has the hash `found` at ours, has against it."""
        if found == self.hash:
            return None
        if found is not None:
            return f"event #{self.event_id} is not the pinned one: its hash is {found}"
        if end < self.event_id:
            return f"chain is shorter than the pinned head: it ends at event #{end}, and #{self.event_id} is pinned"
        return f"event #{self.event_id} is not the pinned one: it is not there"


class PinFile:
    """Remembers the last verified head between runs."""

    def __init__(self, path: Path, pin: Pin | None, replacement: Replacement) -> None:
        self._path, self.pin, self._replacement = path, pin, replacement

    def move_to(self, head: Pin) -> None:
        """Raises Misconfigured."""
        if head != self.pin:
            with _named("cannot be written", self._path):
                self._replacement.file.write(f"{head}\n".encode())
                self._replacement.commit()


@contextmanager
def pin_file(path: Path) -> Iterator[PinFile]:
    """Open the file, which need not be there yet. Raises Misconfigured when it cannot be read or written later."""
    with _named("cannot be read", path):
        pin = Pin.parse(path.read_text()) if path.exists() else None
    with ExitStack() as stack:
        # Now, not after an hour of checking.
        with _named("cannot be written", path):
            replacement = stack.enter_context(replacing(path))
        yield PinFile(path, pin, replacement)


@contextmanager
def _named(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise Misconfigured(f"--pin: {path} holds no pin: {error}") from error
    except OSError as error:
        raise Misconfigured(f"--pin: {path} {what}: {error.strerror or error}") from error
