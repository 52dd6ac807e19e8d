"""Times as people type them: `-1h`, `yesterday`, `2026-11-21`, or an RFC 3339 instant. Days are those of UTC."""

import re
from datetime import UTC, datetime, timedelta

import rich_click as click

from audit_stream.cli.output import tell
from audit_stream.errors import Refused
from audit_stream.timestamps import instant

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"-(\d{1,6})([smhdw])")
_DATE = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?))?")
FORMS = "-1h (s, m, h, d, w), now, today, yesterday, 2026-11-21, or RFC 3339"


def understood(text: str, now: datetime) -> str:
    """Return the RFC 3339 instant that is meant. Raises Refused."""
    try:
        instant(text, field="it")
    except Refused:
        at = _read(text.strip().lower(), now)
        if at is None:
            raise Refused(f"{text[:64]!r} is not a time; write it like {FORMS}") from None
        return at.isoformat(timespec="seconds").replace("+00:00", "Z")
    return text


def _read(text: str, now: datetime) -> datetime | None:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    named = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    try:
        if text in named:
            return named[text]
        if ago := _AGO.fullmatch(text):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        if date := _DATE.fullmatch(text.upper()):
            return datetime.fromisoformat(f"{date[1]}T{date[2] or '00:00'}").replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass  # the 30th of February, or before the year 1
    return None


def time_given(_: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """The callback of an option that takes a time. What was not given as an instant is said on standard error."""
    if not text:
        return None
    try:
        meant = understood(text, datetime.now(UTC))
    except Refused as refused:
        raise click.UsageError(f"{parameter.opts[0]}: {refused}.") from refused
    if meant != text:
        tell(f"{parameter.opts[0]} {meant}")
    return meant
