from datetime import UTC, datetime, timedelta

import pytest

from audit_stream.errors import Refused
from audit_stream.event import PublishRequest, draft
from audit_stream.timestamps import check_timestamp, instant
from tests.unit.drafts import body, drafted, refused

RFC_3339 = [
    "2026-05-15T03:14:15Z",
    "2026-05-15T03:14:15+00:00",
    "2026-05-15t03:14:15z",
    "2026-05-15T03:14:15.1Z",
    "2026-05-15T03:14:15.123456789-23:59",
    "2024-02-29T00:00:00Z",
    "2016-12-31T23:59:60Z",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59Z",
    "2026-05-15T03:14:15-00:00",
]

NO_RFC_3339 = {
    "no offset": "2026-05-15T03:14:15",
    "a date": "2026-05-15",
    "no seconds": "2026-05-15T03:14Z",
    "a space for the T": "2026-05-15 03:14:15Z",
    "month 13": "2026-13-15T03:14:15Z",
    "month 0": "2026-00-15T03:14:15Z",
    "February 30": "2026-02-30T03:14:15Z",
    "February 29 of no leap year": "2026-02-29T03:14:15Z",
    "day 0": "2026-05-00T03:14:15Z",
    "24:00": "2026-05-15T24:00:00Z",
    "minute 60": "2026-05-15T03:60:15Z",
    "second 61": "2026-05-15T03:14:61Z",
    "year 0": "0000-05-15T03:14:15Z",
    "a year of five digits": "12026-05-15T03:14:15Z",
    "offset 24:00": "2026-05-15T03:14:15+24:00",
    "offset minute 60": "2026-05-15T03:14:15+01:60",
    "offset without colon": "2026-05-15T03:14:15+0100",
    "offset of hours": "2026-05-15T03:14:15+01",
    "an empty fraction": "2026-05-15T03:14:15.Z",
    "a fraction of ten digits": "2026-05-15T03:14:15.1234567890Z",
    "a comma for the point": "2026-05-15T03:14:15,5Z",
    "basic format": "20260515T031415Z",
    "a week date": "2026-W20-5T03:14:15Z",
    "Unix time": "1778814855",
    "text": "yesterday",
    "nothing": "",
    "white space in front": " 2026-05-15T03:14:15Z",
    "a line end behind": "2026-05-15T03:14:15Z\n",
    "Arabic digits": "٢٠٢٦-05-15T03:14:15Z",
    "full-width digits": "2026-05-15T03:14:１５Z",
    "a quote": '2026-05-15T03:14:15Z"',
    "a name of a zone": "2026-05-15T03:14:15 UTC",
    "a minus that is not ASCII": "2026-05-15T03:14:15−01:00",
}


@pytest.mark.parametrize("timestamp", RFC_3339)
def test_a_timestamp_of_rfc_3339_is_kept_letter_by_letter(timestamp: str) -> None:
    made = drafted(timestamp=timestamp)
    assert made.timestamp == timestamp.encode()
    assert not made.stamped


@pytest.mark.parametrize("name", NO_RFC_3339)
def test_a_timestamp_that_is_no_rfc_3339_is_refused_by_name(name: str) -> None:
    refusal = refused(body(timestamp=NO_RFC_3339[name]))
    assert refusal.field == "timestamp"
    assert refusal.detail.startswith("timestamp: ")
    with pytest.raises(Refused, match=r"^since: "):
        check_timestamp(NO_RFC_3339[name], field="since")
    with pytest.raises(Refused, match=r"^since: "):
        instant(NO_RFC_3339[name], field="since")


def test_a_long_timestamp_is_not_repeated_whole_in_its_refusal() -> None:
    assert len(refused(body(timestamp="9" * 100_000)).detail) < 300


@pytest.mark.parametrize("timestamp", [None, "left out"])
def test_without_a_timestamp_the_event_gets_the_time_of_now_in_milliseconds(timestamp: str | None) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    made = drafted() if timestamp else drafted(timestamp=None)
    assert made.stamped
    assert len(made.timestamp) == len("2026-05-15T03:14:15.123+00:00")
    assert made.timestamp.endswith(b"+00:00")
    assert before <= datetime.fromisoformat(made.timestamp.decode()) <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-15T03:14:15Z", datetime(2026, 5, 15, 3, 14, 15, tzinfo=UTC)),
        ("2026-05-15t03:14:15z", datetime(2026, 5, 15, 3, 14, 15, tzinfo=UTC)),
        ("2026-05-15T05:14:15+02:00", datetime(2026, 5, 15, 3, 14, 15, tzinfo=UTC)),
        ("2026-05-14T23:44:15-03:30", datetime(2026, 5, 15, 3, 14, 15, tzinfo=UTC)),
        ("2026-05-15T03:14:15.5Z", datetime(2026, 5, 15, 3, 14, 15, 500_000, tzinfo=UTC)),
        ("2026-05-15T03:14:15.123456789Z", datetime(2026, 5, 15, 3, 14, 15, 123_456, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("2016-12-31T23:59:60.25Z", datetime(2016, 12, 31, 23, 59, 59, 250_000, tzinfo=UTC)),
        ("2024-02-29T23:30:00-01:00", datetime(2024, 3, 1, 0, 30, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_an_instant_is_the_same_one_in_utc(text: str, expected: datetime) -> None:
    assert instant(text, field="since") == expected
    assert instant(text, field="since").tzinfo is UTC


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"])
def test_an_instant_that_leaves_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="since: ") as caught:
        instant(text, field="since")
    assert caught.value.field == "since"


@pytest.mark.parametrize("moment", [0, 0.0009, 999.9996, 1_800_000_000, 1_800_000_000.123, 1_800_000_059.9999])
def test_now_is_what_datetime_says(monkeypatch: pytest.MonkeyPatch, moment: float) -> None:
    monkeypatch.setattr("time.time", lambda: moment)
    made = draft(PublishRequest("other", "s"), frozenset({"other"})).timestamp.decode()
    cut = datetime.fromtimestamp(int(moment * 1000) // 1000, UTC).replace(microsecond=int(moment * 1000) % 1000 * 1000)
    assert made == cut.isoformat(timespec="milliseconds")
