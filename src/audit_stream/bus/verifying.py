"""Verify a bus: recompute every line, and every signature for which there is a key."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from audit_stream.bus.keys import Keyring
from audit_stream.bus.line import CONTINUED, TORN, Line
from audit_stream.bus.reading import Raw, raw_lines
from audit_stream.chain import START, Head


class PolicyLevel(IntEnum):
    """What is thought of lines without a signature. The numbers are those of the published bus."""

    PERMISSIVE = 1
    WARN = 2
    """They are logged."""
    STRICT = 3
    """They are not written, and do not hold."""


class Break(ValueError):
    """Why a line does not hold."""


@dataclass
class Verdict:
    """What recomputing every line showed. Lines are counted through all files, each file's `line` for itself."""

    valid: bool = True
    checked: int = 0
    """How many lines held."""
    first_break_at: int | None = None
    """The `seq` that the first line that does not hold should have."""
    reason: str | None = None
    file: str | None = None
    line: int | None = None
    """Of that file, the line that does not hold; the first has the number 1."""
    start: Head = START
    """What the first line is linked to."""
    head: Head = START
    """The last line that held: compare it with a pin kept elsewhere."""
    torn: int = 0
    """Lines that hold what a crash had left."""
    unsigned: int = 0
    keys: Counter[str] = field(default_factory=Counter)
    """How many lines each key has signed, by its id."""
    hashes: dict[int, str] = field(default_factory=dict)
    """Of the lines that were asked about and held."""


def verify(
    paths: Sequence[str | os.PathLike[str]],
    *,
    keys: Keyring | None = None,
    policy: PolicyLevel = PolicyLevel.PERMISSIVE,
    asked: Iterable[int] = (),
    tell: Callable[[int], None] = lambda done_bytes: None,
) -> Verdict:
    """Check every line of the files, which follow one another; stop at the first that does not hold.

    Without keys, signatures are counted and not checked. Under STRICT, an unsigned line does not hold.
    Proves order and content, not completeness: lines cut off at the end leave no trace but in a pin. In constant
    memory. Raises OSError.
    """
    verdict, wanted, before = Verdict(), frozenset(asked), 0
    for path in paths:
        done = 0
        for raw in raw_lines(path):
            done = raw.end
            try:
                _check(raw, verdict, keys, policy)
            except ValueError as error:
                verdict.valid, verdict.first_break_at = False, verdict.head.event_id + 1
                verdict.file, verdict.line = os.fspath(path), raw.number
                verdict.reason = f"line {raw.number}: {error}"
                return verdict
            if verdict.head.event_id in wanted:
                verdict.hashes[verdict.head.event_id] = verdict.head.hash.decode()
            if not raw.number % 1000:
                tell(before + done)
        before += done
    return verdict


def _check(raw: Raw, verdict: Verdict, keys: Keyring | None, policy: PolicyLevel) -> None:
    line = raw.read()
    if verdict.checked == 0:
        verdict.start = verdict.head = _start(line)
    seq, prev_hash = verdict.head
    if line.seq != seq + 1:
        raise Break(f"seq should be {seq + 1}, got {line.seq}")
    if line.prev_hash != prev_hash:
        raise Break("prev_hash mismatch")
    if line.key:
        id_ = line.key.decode()
        if keys:
            _check_signature(line, keys)
        verdict.keys[id_] += 1
    elif policy >= PolicyLevel.STRICT:
        raise Break("it is not signed")
    else:
        verdict.unsigned += 1
    verdict.torn += line.is_own and line.content.msg_type == TORN
    verdict.checked += 1
    verdict.head = Head(line.seq, line.hash)


def _check_signature(line: Line, keys: Keyring) -> None:
    id_ = line.key.decode()
    key = keys.get(id_)
    if not key:
        raise Break(f"it is signed with the key {id_!r}, which is not among those given")
    if not line.is_signed_with(key):
        raise Break(f"it says that it is signed with the key {id_!r}, and it is not")


def _start(first: Line) -> Head:
    """What the first line there is has to follow. Only a file that goes on behind another begins later than with 1."""
    if first.seq > 1 and first.is_own and first.content.msg_type == CONTINUED:
        return Head(first.seq - 1, first.prev_hash)
    return START
