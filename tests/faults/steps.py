"""The table: each step of a write, failed or failed but persisted.

`test_steps.py` drives every cell, `docs/failures.md` shows it.
"""

from typing import Literal, NamedTuple

Stored = Literal["nothing", "once"]


class Outcome(NamedTuple):
    how: str
    status: int | None
    """What the client is told; None: it hears nothing."""
    told: str
    stored: Stored
    repairs: str
    sent_again: int
    """What the same request, under the same idempotency key, is answered once that is repaired."""


class Impossible(NamedTuple):
    why: str


class Step(NamedTuple):
    name: str
    failed: Outcome | Impossible
    persisted: Outcome | Impossible


NOT_SENT = Impossible("cannot be: nothing has been sent to Redis yet")
IN_DOUBT = "whether it was written is not known yet, and to send it again under the same key"
WITH_REASON = "the reason, and when to come back"

STEPS = (
    Step(
        "request decoded",
        Outcome("the body is cut short, or breaks the schema", 400, "what is wrong", "nothing", "the producer", 201),
        NOT_SENT,
    ),
    Step(
        "event waits in the queue",
        Outcome(
            "the server dies", None, "nothing: the connection breaks", "nothing", "the producer, sending again", 201
        ),
        NOT_SENT,
    ),
    Step(
        "EVALSHA sent",
        Outcome(
            "the connection breaks before Redis has it",
            201,
            "its receipt",
            "once",
            "the server, making the same offer again",
            200,
        ),
        Outcome(
            "Redis has it, and its answers no longer come through",
            503,
            IN_DOUBT,
            "once",
            "the producer, sending again",
            200,
        ),
    ),
    Step(
        "script runs",
        Outcome(
            "Redis refuses writes: maxmemory, read-only, fewer replicas than it asks for",
            503,
            WITH_REASON,
            "nothing",
            "the operator, giving Redis what it lacks",
            201,
        ),
        Outcome(
            "Redis hangs with the call in hand, and runs it when it wakes",
            503,
            IN_DOUBT,
            "once",
            "the producer, sending again",
            200,
        ),
    ),
    Step(
        "XADDs applied",
        Outcome(
            "the chain refuses: its end was cut, or holds what is no event",
            409,
            "where the chain is damaged",
            "nothing",
            "the operator, restoring what was cut",
            201,
        ),
        Outcome(
            "an index refuses, after the chain has taken the event",
            201,
            "its receipt; the log names the index",
            "once",
            "the operator, with `audit-stream reindex`",
            200,
        ),
    ),
    Step(
        "fsync",
        Outcome(
            "Redis dies with its log torn inside the write",
            503,
            IN_DOUBT,
            "nothing",
            "Redis, dropping the torn end when it starts; the producer, sending again",
            201,
        ),
        Outcome(
            "Redis dies with the write on disk and not answered",
            503,
            IN_DOUBT,
            "once",
            "the producer, sending again",
            200,
        ),
    ),
    Step(
        "reply travels",
        Outcome(
            "the connection breaks on a refusal",
            503,
            WITH_REASON,
            "nothing",
            "the server, asking again; then as for the refusal",
            201,
        ),
        Outcome(
            "the connection breaks on a success",
            201,
            "its receipt",
            "once",
            "the server, finding its own event on the chain",
            200,
        ),
    ),
    Step(
        "WAIT for replicas",
        Outcome(
            "the primary is lost before a replica has the event",
            503,
            "that too few replicas hold it, and to send it again under the same key",
            "nothing",
            "the operator, promoting a replica; the producer, sending again",
            201,
        ),
        Outcome(
            "the replica is away or behind",
            503,
            "that too few replicas hold it, and to send it again under the same key",
            "once",
            "the operator, bringing the replica back; the producer, sending again",
            200,
        ),
    ),
    Step(
        "201 travels",
        Impossible("cannot be: a 201 is made only for what is stored"),
        Outcome("the producer or its connection is gone", None, "nothing", "once", "the producer, sending again", 200),
    ),
)


def outcomes() -> dict[str, Outcome]:
    """Every cell that can be, by its name."""
    cells: dict[str, Outcome] = {}
    for step in STEPS:
        for which, cell in (("failed", step.failed), ("failed but persisted", step.persisted)):
            if isinstance(cell, Outcome):
                cells[f"{step.name}: {which}"] = cell
    return cells


def as_markdown() -> str:
    """The table as it stands in the docs."""
    lines = [
        "| step | | what happens | the client is told | stored | who repairs it | sent again |",
        "|---|---|---|---|---|---|---|",
    ]
    for step in STEPS:
        lines.append(_row(f"**{step.name}**", "failed", step.failed))
        lines.append(_row("", "failed but persisted", step.persisted))
    return "\n".join(lines)


def _row(step: str, which: str, cell: Outcome | Impossible) -> str:
    if isinstance(cell, Impossible):
        return f"| {step} | {which} | {cell.why} | | | | |"
    told = cell.told if cell.status is None else f"{cell.status}: {cell.told}"
    again = "200, the first receipt" if cell.sent_again == 200 else f"{cell.sent_again}"
    return f"| {step} | {which} | {cell.how} | {told} | {cell.stored} | {cell.repairs} | {again} |"
