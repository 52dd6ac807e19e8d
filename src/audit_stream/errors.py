"""
AuditStreamError
├── Refused          the request is wrong; fix it, do not retry
│   ├── Malformed    it is not JSON at all
│   ├── TooLarge     it is over a limit
│   ├── Forbidden    the token is missing or wrong, or does not allow it
│   └── Unpostable   the bus does not take this message; a ValueError as well
├── Pushback         too busy; retry after `retry_after` seconds
├── Unreachable      Redis is away or takes no writes; nothing is known to be written
│   ├── Loading      it reads its data from disk; it answers when that is done
│   └── Denied       it refuses this user, address or certificate; waiting does not help
├── ChainBroken      evidence of tampering: `at`, `expected`, `found`
│   └── ChainChanged the chain is not the one that was read before: events were lost, or it is another
├── HashMismatch     this replica computes other hashes than Redis does; take it out of service
└── Misconfigured    the server does not start like this; the message says what to change
    └── InUse        another process works in the data folder
"""

import re
from collections.abc import Sequence
from typing import NamedTuple


class AuditStreamError(Exception):
    """The root of every error this package raises on purpose."""


class Mistake(NamedTuple):
    """One thing that is wrong with a request."""

    detail: str
    field: str | None


class Refused(AuditStreamError):
    """The request breaks the schema or has no canonical form. Nothing was written."""

    def __init__(
        self, detail: str, *, field: str | None = None, index: int | None = None, mistakes: Sequence[Mistake] = ()
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.index = index
        """Position in the batch, from 0; None for a single event."""
        self.mistakes = mistakes
        """All that is wrong with the event, where it was read to its end; `field` is the first one's."""

    @classmethod
    def of(cls, mistakes: Sequence[Mistake]) -> "Refused | None":
        """The refusal for these mistakes; None where there are none."""
        if not mistakes:
            return None
        return cls("; also ".join(mistake.detail for mistake in mistakes), field=mistakes[0].field, mistakes=mistakes)

    def within_batch(self, index: int, line: int | None = None) -> "Refused":
        """The same refusal, saying which event of the batch it is about, and on which `line` of the body it stands."""
        return Refused(
            f"{place_in_batch(index, line)}: {self.detail}", field=self.field, index=index, mistakes=self.mistakes
        )


def place_in_batch(index: int, line: int | None = None) -> str:
    """Name an event of a batch, as people count and as programs do: `the 2nd event of the batch (index 1)`."""
    if line is not None:
        return f"line {line} of the body (index {index})"
    number = index + 1
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"the {number}{ending} event of the batch (index {index})"


def without_place(detail: str) -> str:
    """The detail of a refusal without what `place_in_batch` has put before it."""
    return _PLACE.sub("", detail)


_PLACE = re.compile(r"^(?:the \d+(?:st|nd|rd|th) event of the batch|line \d+ of the body) \(index \d+\): ")


class Malformed(Refused):
    """The body is not JSON, or it was cut short."""


class TooLarge(Refused):
    """The body or the batch is over its limit."""


class Forbidden(Refused):
    """What the token does not allow, or what is asked without one. Nothing was written."""


class Unpostable(Refused, ValueError):
    """A message that cannot stand in the bus as it was given. Nothing was written."""


class Pushback(AuditStreamError):
    """The queue is full. Nothing of this request was written."""

    def __init__(self, detail: str, *, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Unreachable(AuditStreamError):
    """Redis is away, or refuses writes (out of memory, read-only).

    `in_doubt`: a write was under way and its reply is lost, so it may have landed. A retry under the
    same idempotency key is safe either way.
    `settles`: the script had looked at the head before it was refused, so an earlier call of the same offer whose
    answer was lost did not land either.
    """

    retry_after = 1

    def __init__(self, detail: str, *, in_doubt: bool = False, settles: bool = False, reason: str = "") -> None:
        super().__init__(detail)
        self.in_doubt = in_doubt
        self.settles = settles
        self.reason = reason or detail
        """Why, without a word on what became of the request: it is true of other requests as well."""


class Loading(Unreachable):
    """Redis is reading its data from disk. How long that takes depends on the data alone."""


class Denied(Unreachable):
    """Redis refuses what was asked, and goes on refusing until a person changes something; the message says what."""


class ChainBroken(AuditStreamError):
    """What is stored is not the chain that was written: evidence, so nothing is built on it."""

    advice = (
        "Restore what is lost from a backup, or record the loss with `audit-stream accept-loss`;"
        " docs/operators/lost-tail.md says how to decide"
    )

    def __init__(self, detail: str, *, at: int, expected: str | None = None, found: str | None = None) -> None:
        super().__init__(detail)
        self.at = at
        self.expected = expected
        self.found = found


class ChainChanged(ChainBroken):
    """The chain holds another event `at`, or none, than the one that was read there before.

    What was read from there back to an unknown place is not on this chain: an older backup, a replica that was
    behind, or another chain stands in its place.
    """


class HashMismatch(AuditStreamError):
    """Redis refused the hash this replica offered: its canonical form has drifted. Nothing was written."""

    retry_after = 1


class Misconfigured(AuditStreamError):
    """A setting, or the Redis behind it, cannot give what was asked for."""


class InUse(Misconfigured):
    """The data folder belongs to another process, which is named."""
