"""Which of the offered media types an Accept header gets."""

import pytest

from audit_stream.server.accept import preferred

JSON, LINES, EVENTS = "application/json", "application/x-ndjson", "application/cloudevents-batch+json"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON),
        (EVENTS, EVENTS),
        ("Application/CloudEvents-Batch+JSON; charset=utf-8", EVENTS),
        (f"{EVENTS}, */*", EVENTS),
        (f"*/*, {LINES}", LINES),
        (f"{JSON};q=0.5, {EVENTS};q=0.9", EVENTS),
        (f"{JSON};q=0.5, */*", LINES),
        (f"{JSON};q=0, */*;q=0.1", LINES),
        (f"{JSON};q=0,{LINES};q=0.000,*/*", EVENTS),
        (f"{EVENTS},{LINES},{JSON}", EVENTS),
        (f"{JSON} ; q=0.8 , {LINES} ; q=0.80", JSON),
        ("application/*;q=0", None),
        ("text/html", None),
        (f"{JSON};q=0", None),
        ("application/cloudevents+json", None),
    ],
)
def test_the_best_of_what_is_accepted_is_chosen(accept: str, chosen: str | None) -> None:
    assert preferred(accept, (JSON, LINES, EVENTS)) == chosen
