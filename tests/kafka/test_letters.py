"""Dead letters hold the record whole, in both formats, and give it back."""

import base64
from typing import Any

import msgspec
import pytest

from audit_stream.sources.kafka.letters import FORMAT, TOPIC, Letter, headers_of, original, place_of, value_of
from audit_stream.sources.kafka.records import ORIGIN, Record
from audit_stream.sources.kafka.settings import DlqFormat

VALUES = [
    None,
    b"",
    b"null",
    b'{"a": 1,\n "a": 2}',
    b"[1]",
    b"caf\xc3\xa9",
    b"\xff\x00",
    b'{"a": "\xff"}',
    b'"{}"',
    b"7",
]


def letter_of(value: bytes | None, **more: Any) -> Letter:
    headers = [("trace", b"t-1"), ("empty", None), ("trace", b"t-2")]
    return Letter(Record("audit", 3, 42, 1_771_285_512_345, b"k", value, headers), "because", "decoding")


def dead(letter: Letter, dlq_format: DlqFormat) -> Record:
    headers = headers_of(letter, group="g", cluster="c1", dlq_format=dlq_format)
    return Record("audit.dlq", 0, 7, 1, letter.record.key, value_of(letter, dlq_format), headers)


@pytest.mark.parametrize("dlq_format", ["connect", "json"])
@pytest.mark.parametrize("value", VALUES)
def test_what_was_put_into_a_dead_letter_comes_out_of_it(value: bytes | None, dlq_format: DlqFormat) -> None:
    letter = letter_of(value)
    found = original(dead(letter, dlq_format))
    assert (found.topic, found.key, found.value, found.reason) == ("audit", b"k", value, "because")
    assert found.timestamp_ms == letter.record.timestamp_ms
    assert found.headers[:-1] == letter.record.headers
    assert found.headers[-1] == (ORIGIN, b"kafka:c1:audit:3:42:1771285512345")


def test_a_dead_letter_says_what_connect_says() -> None:
    record = dead(letter_of(b"x"), "connect")
    assert record.value == b"x"
    said = {name.removeprefix("__connect.errors."): value for name, value in record.headers}
    assert (said["topic"], said["partition"], said["offset"]) == (b"audit", b"3", b"42")
    assert (said["stage"], said["exception.message"]) == (b"VALUE_CONVERTER", b"because")
    assert place_of(record) == ("g", "audit", 3, 42)


def test_the_envelope_is_the_published_one() -> None:
    found = msgspec.json.decode(dead(letter_of(b'{"a": 1}'), "json").value or b"")
    assert found.pop("timestamp").endswith("Z")
    assert found == {"original_topic": "audit", "original_event": {"a": 1}, "error": "because"}
    raw = msgspec.json.decode(dead(letter_of(b"\xff"), "json").value or b"")
    assert base64.b64decode(raw["original_event"]) == b"\xff"


def test_the_published_daemon_s_dead_letters_can_be_put_back() -> None:
    envelope = {
        "original_topic": "audit",
        "original_event": {"a": 1},
        "error": "db",
        "timestamp": "2026-01-01T00:00:00Z",
    }
    found = original(Record("audit.dlq", 0, 7, 1, None, msgspec.json.encode(envelope), []))
    assert (found.topic, found.value, found.reason, found.headers) == ("audit", b'{"a":1}', "db", [])
    with pytest.raises(ValueError, match=r"audit\.dlq \[0\] at offset 7 is no dead letter"):
        original(Record("audit.dlq", 0, 7, 1, None, b"?", []))


def test_a_record_that_was_a_dead_letter_before_keeps_its_origin_and_gets_the_new_reason() -> None:
    again = original(dead(letter_of(b"x"), "json"))
    record = Record("audit", 3, 99, again.timestamp_ms, again.key, again.value, again.headers)
    twice = dead(Letter(record, "still", "appending"), "connect")
    assert [name for name, _ in twice.headers].count(TOPIC) == 1
    assert [value for name, value in twice.headers if name == FORMAT] == [b"connect"]
    assert original(twice) == again._replace(reason="still")
    assert place_of(twice) == ("g", "audit", 3, 99)
