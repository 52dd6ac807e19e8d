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
    key = "kafka:c1:audit.log:audit_id:a-1"
    assert made(event) == PublishRequest("other", "cli", event, "2026-02-16T23:45:12Z", key)


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
    key = "kafka:c1:audit.log:key:mine"
    assert made(given) == PublishRequest("request_denied", "gw", {"a": 1}, "2026-02-16T23:45:12.345+00:00", key)
    assert made({"kind": "other", "source": "gw"}).idempotency_key == f"kafka:c1:audit.log:3:42:{AT}"


def key_of(value: Any, topic: str = "audit.log", cluster: str = "c1", **more: Any) -> str:
    record = record_of(value, **more)._replace(topic=topic)
    return decode(as_event(record, "other", cluster).event).idempotency_key or ""


def put_back(origin: str) -> dict[str, Any]:
    return {"headers": [(ORIGIN, origin.encode())]}


def test_a_record_that_was_put_back_is_the_same_one_however_often_that_is_done() -> None:
    event = {"operation": "q"}
    first = record_of(event).origin("c1")
    again = record_of(event, **put_back(first))._replace(partition=1, offset=99)
    assert again.origin("c1") == first
    keys = {key_of(event, **put_back(first)), decode(as_event(again, "other", "c1").event).idempotency_key}
    assert len(keys) == 1
    # What came to the chain under the place itself is another record.
    assert keys != {first}


@pytest.mark.parametrize(
    "record",
    [
        ({"operation": "q"}, put_back("kafka:c1:payments:0:42:1000")),
        ({"operation": "q"}, put_back("kafka:c2:intern:0:42:1000")),
        ({"operation": "q"}, put_back("kafka:c1:intern")),
        ({"operation": "q", "audit_id": "kafka:c1:payments:0:42:1000"}, {}),
        ({"kind": "other", "source": "s", "idempotency_key": "kafka:c1:payments:0:42:1000"}, {}),
        ({"kind": "other", "source": "s"}, put_back("kafka:c1:payments:0:42:1000")),
    ],
)
def test_no_header_or_field_of_a_record_takes_the_key_of_another_topic_s_record(
    record: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    value, more = record
    assert key_of(value, topic="intern", **more).startswith("kafka:c1:intern:")


def test_no_header_takes_the_key_of_a_record_of_the_same_topic_with_other_content() -> None:
    place = "kafka:c1:audit.log:3:43:1000"
    assert key_of({"operation": "mine"}, **put_back(place)) != key_of({"operation": "theirs"}, **put_back(place))
    assert key_of({"operation": "mine"}, **put_back(place)) != place


def test_one_audit_id_in_two_topics_or_clusters_is_two_records() -> None:
    event = {"operation": "q", "audit_id": "a-1"}
    assert len({key_of(event, topic=topic, cluster=c) for topic in ("t", "u") for c in ("c1", "c2")}) == 4


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ({"operation": "q", "client_app": "release-signing"}, "release-signing"),
        ({"operation": "q"}, "audit.log"),
        ({"kind": "other", "source": "release-signing"}, "release-signing"),
    ],
)
def test_a_topic_brings_only_the_sources_that_it_is_allowed(value: Any, source: str) -> None:
    record = record_of(value)
    assert decode(as_event(record, "other", "c1", frozenset([source, "x"])).event).source == source
    reason = rf"the topic audit\.log may not bring events of the source '{source}': KAFKA_SOURCES allows it a, b"
    with pytest.raises(Unusable, match=reason):
        as_event(record, "other", "c1", frozenset("ab"))


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
