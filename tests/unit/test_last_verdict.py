"""What `audit-stream stats` says of the last verdict."""

from typing import Any

import pytest

from audit_stream.cli.stats import shown

LAST = {"at": "2026-05-15T03:14:15.123+00:00", "event_id": 42, "reason": None, "valid": True}


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (None, "never"),
        (LAST, "2026-05-15T03:14:15.123+00:00, intact up to #42"),
        (LAST | {"valid": False, "reason": "hash mismatch at event #43"}, "BROKEN: hash mismatch at event #43"),
        (LAST | {"valid": None}, "up to #42; since then it could not be told"),
    ],
)
def test_a_verdict_is_told_for_what_it_is(last: dict[str, Any] | None, text: str) -> None:
    assert shown(last).endswith(text)
