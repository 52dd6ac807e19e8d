"""The last verdict on the chain: what this server found, what others found, and which of the two is shown.

This server's own verdict is in memory that its workers share. `{audit}:verdict` in Redis keeps the last one of any
server, so that a known break outlives restarts and is seen everywhere (`verdict_store` reads and writes it).

Redis is what is being checked, so what it says never saves work:

- The schedule comes from this server's own walks: when the whole chain is due, and from which head on only new
  events are checked. A verdict that was read changes neither. A break that was read makes the next walk a whole one.
- A break is shown, whoever found it, until a walk of the whole chain that began later finds it whole.
- "Intact" is shown when nothing newer is known. It never hides a break that this server found itself: the server
  walks the whole chain again to settle that (`disputed`).

An attacker who can write to Redis can forge or remove what is kept there, as they can forge the chain. So a restarted
server may show what they like until its first walk of its own; the age of the servers' own walks is a metric that
Redis cannot change.
"""

import asyncio
import logging
from collections.abc import Callable
from time import time
from typing import Annotated

import msgspec
from msgspec import Meta

from audit_stream.chain import START, Head
from audit_stream.errors import AuditStreamError
from audit_stream.kept_verdict import VERDICT_BYTES
from audit_stream.tally import Tally
from audit_stream.timestamps import ago
from audit_stream.verifier import Report

REASON_LENGTH = 500
CLOCKS_DIFFER_S = 60.0
"""An "intact" from further in the future than that was not reached by a server."""

log = logging.getLogger(__name__)

# To the end of the year 9999: what is later cannot be shown as a date.
_Moment = Annotated[float, Meta(ge=0, le=253_402_300_799)]
_EventId = Annotated[int, Meta(ge=0, lt=2**53)]


class LastVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a server found when it last verified."""

    valid: bool | None
    """None when the newest attempt could not tell. A break stays one until a whole walk holds."""
    head: tuple[_EventId, Annotated[str, Meta(max_length=64)]] = (0, START.hash.decode())
    """Up to here the chain held."""
    checked: _EventId = 0
    first_break_at: _EventId | None = None
    reason: Annotated[str, Meta(max_length=REASON_LENGTH)] | None = None
    at: _Moment
    """When it was found, in seconds since 1970; not when an attempt failed."""
    whole_at: _Moment | None = None
    """When all of the chain was last checked and held."""
    took_s: Annotated[float, Meta(ge=0)] = 0.0


def parse_verdict(text: bytes) -> LastVerdict:
    """Read what Redis keeps. Raises ValueError for what no server of ours has written."""
    if len(text) >= VERDICT_BYTES:
        raise ValueError("it is too long")
    verdict = msgspec.json.decode(text, type=LastVerdict)  # its errors are ValueErrors
    if verdict.valid is None or verdict.valid is (verdict.first_break_at is not None):
        raise ValueError("it is neither intact nor broken")
    if verdict.valid and verdict.at > time() + CLOCKS_DIFFER_S:
        raise ValueError("it comes from the future")
    return verdict


def format_verdict(verdict: LastVerdict) -> bytes:
    return msgspec.json.encode(verdict)


def summary(valid: bool | None, event_id: int, first_break_at: int | None, age_s: float) -> str:
    """Say in a few words what was found, and how long ago."""
    if valid is False:
        return f"BROKEN at #{first_break_at}, found {ago(age_s)}"
    intact = f"intact up to #{event_id}, {ago(age_s)}"
    return intact if valid else f"could not be checked; {intact}"


class Known(msgspec.Struct, frozen=True):
    """All that is known, as the workers of a server share it."""

    own: LastVerdict | None = None
    """What this server found."""
    heard: LastVerdict | None = None
    """What Redis kept when it was last read. A break stays here when the key is lost, or set back to an older one."""
    heard_at: float = 0.0
    """When `heard` was first read, by this server's clock."""
    whole_began: float = 0.0
    """When the walk began that last found the whole chain intact, by this server's clock."""

    @property
    def shown(self) -> LastVerdict | None:
        own, heard = self.own, self.heard
        if own is None or heard is None:
            return own or heard
        if own.valid is False or (heard.valid is False and self.whole_began >= self.heard_at):
            return own
        return heard if heard.valid is False or heard.at > own.at else own

    @property
    def broken_at(self) -> float:
        """Since when this server knows of a break, by its own clock; 0 when there was none."""
        own, heard = self.own, self.heard
        return max(
            own.at if own and own.valid is False else 0.0,
            self.heard_at if heard and heard.valid is False else 0.0,
        )

    def hearing(self, stored: LastVerdict | None, now: float) -> "Known":
        """This, after Redis has shown `stored`."""
        heard = self.heard
        if stored is None or stored == heard:
            return self
        if heard and heard.valid is False and stored.valid and (stored.whole_at or 0.0) <= heard.at:
            # Nobody has walked the whole chain since: the key is an older copy's, or was written by hand.
            return self
        ours = self.own if stored == self.own else None
        return msgspec.structs.replace(self, heard=stored, heard_at=ours.at if ours else now)

    def missing_from(self, stored: LastVerdict | None) -> LastVerdict | None:
        """The verdict that belongs in Redis in the place of `stored`; None when that is right as it is."""
        shown = self.shown
        if shown is None or shown.valid is None or shown == stored:
            return None
        # The last is a break that our own whole walk has overruled, whatever the other server's clock says.
        return shown if stored is None or shown.at > stored.at or (shown.valid and stored.valid is False) else None


class Verdicts:
    """The verdicts that a server knows, shared by its workers."""

    def __init__(self, tally: Tally, on_intact: Callable[[Head], None] | None = None) -> None:
        """`on_intact` is told the head of each chain that was found whole, from its first event to its end."""
        self._tally, self._on_intact = tally, on_intact
        self.changed = asyncio.Event()
        """Set when this process has reached a verdict."""

    @property
    def known(self) -> Known:
        return _known(self._tally.board.note)

    @property
    def last(self) -> LastVerdict | None:
        """The verdict to show."""
        return self.known.shown

    @property
    def own(self) -> LastVerdict | None:
        """What this server found itself."""
        return self.known.own

    @property
    def disputed(self) -> bool:
        """Whether another server has since found whole what this one found broken."""
        own, heard = self.known.own, self.known.heard
        return bool(own and heard and own.valid is False and heard.valid and (heard.whole_at or 0.0) > own.at)

    def found(self, report: Report, whole: bool) -> None:
        """Keep the verdict. One on a part of the chain says that all is well only where all was well before."""
        verdict, known, now = report.verdict, self.known, time()
        last, began = known.shown, now - report.took_s
        self._tally.verified("valid" if verdict.valid else "broken")
        # A break may be one of the indexes, so the links alone prove nothing against it.
        proves_all = verdict.valid and whole and report.indexes == "agree"
        whole_at = now if proves_all else known.own.whole_at if known.own else None
        if verdict.valid and whole and not proves_all:
            log.warning(
                "every link of the chain holds; whether its indexes agree was not checked: %s", report.unchecked
            )

        def keeps_a_break(known: Known) -> bool:
            # A walk that had passed the place before the break was found there proves nothing against it either.
            broken = known.shown is not None and known.shown.valid is False
            return verdict.valid and broken and not (proves_all and began >= known.broken_at)

        if keeps_a_break(known):
            return
        if not verdict.valid:
            if not last or (last.first_break_at, last.reason) != (verdict.first_break_at, _short(verdict.reason)):
                log.error(
                    "the chain is broken at event #%s: %s",
                    verdict.first_break_at,
                    verdict.reason,
                    extra={"event_id": verdict.first_break_at, "reason": verdict.reason},
                )
        else:
            if last is not None and last.valid is False:
                log.warning("the chain holds again; it was broken at event #%s: %s", last.first_break_at, last.reason)
            if whole and self._on_intact:
                self._on_intact(verdict.head)
        own = LastVerdict(
            valid=verdict.valid,
            head=(verdict.head.event_id, verdict.head.hash.decode(errors="replace")[:64]),
            checked=verdict.checked,
            first_break_at=verdict.first_break_at,
            reason=_short(verdict.reason),
            at=now,
            whole_at=whole_at,
            took_s=report.took_s,
        )

        def with_ours(known: Known) -> Known:
            if keeps_a_break(known):  # another worker has found it since
                return known
            return msgspec.structs.replace(known, own=own, whole_began=began if proves_all else known.whole_began)

        self._change(with_ours)
        self.changed.set()

    def asked_for(self, report: Report, whole: bool) -> None:
        """Keep what somebody's walk found: that all of the chain holds, or that some of it does not."""
        if whole or not report.verdict.valid:
            self.found(report, whole)

    def cannot_tell(self, error: AuditStreamError) -> None:
        self._tally.verified("unknown")
        log.warning("whether the chain holds could not be told: %s", error)

        def unsure(known: Known) -> Known:
            if known.own is None or not known.own.valid:
                return known
            return msgspec.structs.replace(known, own=msgspec.structs.replace(known.own, valid=None))

        self._change(unsure)

    def forget(self) -> None:
        """Drop this server's own verdict, for one that another has reached since. A break is not dropped."""

        def without(known: Known) -> Known:
            if known.own and known.own.valid is False:
                return known
            return Known(heard=known.heard, heard_at=known.heard_at)

        self._change(without)

    def hear(self, stored: LastVerdict | None) -> LastVerdict | None:
        """Take note of what Redis keeps; return what belongs there instead, None when it is right."""
        now = time()
        self._change(lambda known: known.hearing(stored, now))
        return self.known.missing_from(stored)

    def _change(self, change: Callable[[Known], Known]) -> None:
        self._tally.board.change_note(lambda note: msgspec.json.encode(change(_known(note))))


def _known(note: bytes) -> Known:
    return msgspec.json.decode(note, type=Known) if note else Known()


def _short(reason: str | None) -> str | None:
    return None if reason is None else reason[:REASON_LENGTH]
