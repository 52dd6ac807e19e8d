"""What becomes of one record, without Kafka."""

from typing import Any

import msgspec
import pytest

from audit_stream.decoding import decode
from audit_stream.event import MAX_KEY_LENGTH, PublishRequest
from audit_stream.sources.kafka.records import ORIGIN, Record, Unusable, as_event

AT = 1_771_285_512_345


def record_of(value: Any, **more: Any) -> Record:
    raw = value if isinstance(value, bytes | None) else msgspec.json.encode(value)
    fields: dict[str, Any] = {"timestamp_ms": AT, "key": None, "headers": [], **more}
    return Record("audit.log", 3, 42, value=raw, **fields)


def made(value: Any, **more: Any) -> PublishRequest:
    return decode(as_event(record_of(value, **more), "other", "c1").event)


def test_an_audit_event_becomes_the_payload_as_it_stands() -> None:
    event: dict[str, Any] = {
        "audit_id": "a-1",
        "operation": "q",
        "client_app": "cli",
        "args": ["x"],
        "timestamp": "2026-02-16T23:45:12Z",
    }
    event |= {
        "trust_score": 0.8,
        "metadata": {},
        "duration_ms": 58,
        "schema_version": "2.1",
        "of_a_later_version": True,
    }
    assert made(event) == PublishRequest("other", "cli", event, "2026-02-16T23:45:12Z", "a-1")


def test_what_an_audit_event_does_not_say_is_taken_from_its_place() -> None:
    found = made({"operation": "q"})
    assert (found.source, found.timestamp) == ("audit.log", "2026-02-16T23:45:12.345+00:00")
    assert found.idempotency_key == f"kafka:c1:audit.log:3:42:{AT}"
    assert found.payload == {"operation": "q"}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("2026-02-16T23:45:12.345", "2026-02-16T23:45:12.345+00:00"),
        ("2026-02-16T23:45:12.345Z", "2026-02-16T23:45:12.345Z"),
        ("2026-02-16T23:45:12-05:00", "2026-02-16T23:45:12-05:00"),
    ],
)
def test_a_time_without_an_offset_is_utc(said: str, meant: str) -> None:
    assert made({"operation": "q", "timestamp": said}).timestamp == meant


def test_a_publish_request_stays_what_it_is() -> None:
    given = {"kind": "request_denied", "source": "gw", "payload": {"a": 1}, "idempotency_key": "mine"}
    assert made(given) == PublishRequest("request_denied", "gw", {"a": 1}, "2026-02-16T23:45:12.345+00:00", "mine")
    assert made({"kind": "other", "source": "gw"}).idempotency_key == f"kafka:c1:audit.log:3:42:{AT}"


def test_a_record_that_was_put_back_is_still_the_same_one() -> None:
    assert (
        made({"operation": "q"}, headers=[(ORIGIN, b"kafka:c1:other:0:7:1")]).idempotency_key == "kafka:c1:other:0:7:1"
    )


def test_a_key_that_is_too_long_is_hashed() -> None:
    keys = {made({"operation": "q", "audit_id": text * 300}).idempotency_key for text in "xy"}
    assert len(keys) == 2
    assert all(key and len(key) <= MAX_KEY_LENGTH for key in keys)


def test_a_record_without_a_time_gets_the_server_s() -> None:
    assert made({"operation": "q"}, timestamp_ms=None).timestamp is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "tombstone"),
        (b"", "not a JSON object"),
        (b"\x00\x01\xff", "not a JSON object"),
        (b'{"operation": "q"', "truncated"),
        (b'[{"operation": "q"}]', "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b'{"operation": "q"} {}', "trailing characters"),
        ({}, "missing required field `operation`"),
        ({"operation": 7}, r"Expected `str`, got `int` - at `\$.operation`"),
        ({"operation": "q", "trust_score": "high"}, r"\$.trust_score"),
        ({"operation": "q", "metadata": []}, r"\$.metadata"),
        ({"kind": "other"}, "no PublishRequest: .* `source`"),
        ({"kind": "other", "source": "x", "extra": 1}, "unknown field `extra`"),
        (b"[" * 100_000, "not a JSON object"),
    ],
)
def test_what_is_no_event_says_why(value: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        made(value)
