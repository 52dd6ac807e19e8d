"""What a sink is: it takes events in order, each once, and knows by itself how far it has come."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from audit_stream.chain import Event, Head
from audit_stream.errors import AuditStreamError

Name = Literal["postgres", "purview", "trust", "jsonl"]
NAMES: tuple[Name, ...] = ("postgres", "purview", "trust", "jsonl")


class SinkFailed(AuditStreamError):
    """The sink takes nothing now. What it has stays; trying again later may help, and the message says with what."""


class Position(NamedTuple):
    """Where a sink wants to go on."""

    behind: Head
    """The event behind which to go on."""
    newest: Head
    """The newest event that it holds: the chain has to have it, or it is another one."""


class Standing(NamedTuple):
    """How far a sink has come, as seen from outside."""

    event_id: int
    hash: str
    at_work: bool
    """Whether a projection is at work on it."""


class Sink(Protocol):
    name: Name

    async def open(self) -> Position:
        """Take hold of the sink, mend what a crash has left, and say where to go on.

        Raises SinkFailed: it is away, or another projection has hold of it; OSError; Misconfigured.
        """

    async def write(self, events: Sequence[Event]) -> None:
        """Take the events, which follow the last ones. On return they are on disk, each once; else it raises.

        After an error only `close` may be called. Then, or after a crash, `open` finds out what was taken.
        """

    async def rest(self) -> None:
        """The end of the chain is reached: time for what can wait."""

    async def close(self) -> None: ...

    async def standing(self) -> Standing:
        """How far it has come, asked from beside a projection that may be at work. Raises as `open` does."""
