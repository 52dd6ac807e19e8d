"""What `audit-stream stats` and `audit-stream doctor` say of the last verdict."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from audit_stream.cli.doctor import last_verdict
from audit_stream.cli.stats import shown


def told(valid: bool | None, age: timedelta) -> dict[str, Any]:
    """What /stats says now of a verdict that is so old."""
    at = (datetime.now(UTC) - age).isoformat(timespec="milliseconds")
    broken = {"first_break_at": 43, "reason": "hash mismatch at event #43"} if valid is False else {}
    return {"at": at, "event_id": 42, "first_break_at": None, "reason": None, "valid": valid} | broken


MINUTES, DAYS = timedelta(minutes=3), timedelta(days=3)


@pytest.mark.parametrize(
    ("last", "text", "style"),
    [
        (None, "never verified", "yellow"),
        ((True, MINUTES), "intact up to #42, 3 min ago (20", "green"),
        ((False, MINUTES), "BROKEN at #43, found 3 min ago (20", "bold red"),
        ((None, MINUTES), "could not be checked; intact up to #42, 3 min ago (20", "yellow"),
    ],
)
def test_stats_tells_a_verdict_for_what_it_is(
    last: tuple[bool | None, timedelta] | None, text: str, style: str
) -> None:
    found = shown(last and told(*last))
    assert (found.plain[: len(text)], found.style) == (text, style)
    assert found.plain.endswith("): hash mismatch at event #43") is (style == "bold red")


@pytest.mark.parametrize(
    ("last", "found", "fine", "warning"),
    [
        (None, "never verified", True, True),
        ((True, MINUTES), "intact up to #42, 3 min ago", True, False),
        ((True, DAYS), "intact up to #42, 3 days ago", True, True),
        ((None, MINUTES), "could not be checked; intact up to #42, 3 min ago", True, True),
        ((False, DAYS), "BROKEN at #43, found 3 days ago", False, False),
    ],
)
def test_doctor_finds_fault_with_a_break_and_warns_of_a_verdict_that_is_missing_or_old(
    last: tuple[bool | None, timedelta] | None, found: str, fine: bool, warning: bool
) -> None:
    check = last_verdict(last and told(*last))
    assert (check.name, check.found, check.fine, check.warning) == ("last verdict", found, fine, warning)
    assert bool(check.why) is bool(check.mend) is (warning or not fine)
