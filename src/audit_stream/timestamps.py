"""RFC 3339 timestamps: which are taken, and which instant they name. Standard library only."""

import re
from datetime import UTC, datetime

from audit_stream.errors import Refused

# RFC 3339 §5.6, `date-time`.
_DATE_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(\.\d{1,9})?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII
)


def check_timestamp(text: str, *, field: str) -> str:
    """Return `text` when it is an RFC 3339 date-time with offset; raise Refused naming `field` otherwise."""
    match = _DATE_TIME.fullmatch(text)
    if match:
        year, month, day, hour, minute, second = map(int, match.groups()[:6])
        try:
            # A leap second, 23:59:60Z, is RFC 3339 but nothing that datetime knows.
            datetime(year, month, day, hour, minute, 59 if second == 60 else second)
        except ValueError:
            pass
        else:
            return text
    detail = f"{field}: {text[:64]!r} is not an RFC 3339 date-time with offset, such as 2026-05-15T03:14:15.123+00:00"
    if match is None and _DATE_TIME.fullmatch(f"{text}Z"):
        # Which instant it names nobody can tell from the text; what is stored is hashed, and stays for ever.
        detail += f"; the offset is missing: send {text}Z if it is UTC (in Python, datetime.now(UTC).isoformat())"
    raise Refused(detail, field=field)


def instant(text: str, *, field: str) -> datetime:
    """Read an RFC 3339 date-time; a leap second counts as the second before it. Raises Refused."""
    check_timestamp(text, field=field)
    text = text.upper().replace("Z", "+00:00")
    whole, rest = text[:19], text[19:]
    if whole.endswith("60"):
        whole = whole[:17] + "59"
    fraction = re.match(r"\.\d+", rest)
    if fraction:
        digits, rest = fraction.group()[1:7].ljust(6, "0"), rest[fraction.end() :]
        whole = f"{whole}.{digits}"
    try:
        return datetime.fromisoformat(whole + rest).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Refused(f"{field}: {text!r} is out of range", field=field) from error


def ago(seconds: float) -> str:
    """Say how long ago something was: `just now`, `3 min ago`, `5 h ago`, `2 days ago`."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return "just now"
    if minutes < 60:
        return f"{minutes} min ago"
    if minutes < 48 * 60:
        return f"{minutes // 60} h ago"
    return f"{minutes // (24 * 60)} days ago"
