"""What the relay makes of a row, without a database."""

import json

import pytest

from audit_stream.daemon import Listen
from audit_stream.decoding import decode
from audit_stream.errors import Misconfigured
from audit_stream.event import canonical_text
from audit_stream.sources.postgres.changes import Change, as_event, canonical_payload
from audit_stream.sources.postgres.settings import RelaySettings


def sent(value_text: str) -> object:
    """What a column becomes whose JSON is `value_text`; the spine must be able to take it."""
    payload = json.loads(canonical_payload(b'{"operation":"INSERT","new":{"c":%b}}' % value_text.encode()))
    canonical_text(payload)
    return payload["new"]["c"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.50", 1.5),
        ("0.1", 0.1),
        ("123456789012.345", 123456789012.345),
        ("9007199254740993", 9007199254740993),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("1e+300", 1e300),
        ("1.7976931348623157e+308", 1.7976931348623157e308),
        ("5e-324", 5e-324),
        ("0.30000000000000004", 0.30000000000000004),
        ('"12345678901234567890.12"', "12345678901234567890.12"),
        ('"caf\u00e9"', "café"),
        ('"\\ud83d\\ude00"', "😀"),
        ("[" * 62 + "]" * 62, json.loads("[" * 62 + "]" * 62)),
    ],
)
def test_what_has_a_canonical_form_is_sent_as_it_is(text: str, value: object) -> None:
    assert sent(text) == value
    assert type(sent(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "as_text"),
    [
        ("0.12345678901234567890", "0.12345678901234567890"),
        ("12345678901234567890.12", "12345678901234567890.12"),
        ("1e999", "1e999"),
        ("-1e999", "-1e999"),
        ("1e-400", "1e-400"),
        ("1" + "0" * 309, "1" + "0" * 309),
        ('"\\ud800"', '"\\ud800"'),
        ('{"\\udfff": 1}', '{"\\udfff": 1}'),
        ("[" * 63 + "]" * 63, "[" * 63 + "]" * 63),
        ('{"a":\n[%s]}' % ("[" * 70 + "]" * 70), '{"a": [%s]}' % ("[" * 70 + "]" * 70)),
    ],
)
def test_what_has_none_is_sent_as_text_and_loses_nothing(text: str, as_text: str) -> None:
    assert sent(text) == as_text


def test_an_event_is_the_same_bytes_each_time_and_a_publish_request() -> None:
    change = Change(7, "0b5b6a9c", b"other", 'caf\u00e9 "x"'.encode(), "2026-05-15T03:14:15.123456+00:00", b'{"n":1}')
    request = decode(as_event(change))
    assert as_event(change) == as_event(change)
    assert (request.kind, request.source, request.payload) == ("other", 'café "x"', {"n": 1})
    assert (request.timestamp, request.idempotency_key) == ("2026-05-15T03:14:15.123456+00:00", "0b5b6a9c")


def test_a_payload_does_not_grow_on_its_way() -> None:
    plain = '{"new":{"c":"%s","d":1},"change_id":"1e123e4567-e890"}' % ("é" * 1000)
    assert canonical_payload(plain.encode()) == plain.encode()
    exact = plain.replace('"d":1', '"d":0.12345678901234567890')
    assert len(canonical_payload(exact.encode())) == len(exact.encode()) + 2  # the quotes around the number


def test_a_payload_deeper_than_can_be_read_is_left_to_the_spine_to_refuse() -> None:
    deep = b'{"new":{"c":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    assert canonical_payload(deep) == deep


ENVIRON = {"DATABASE_URL": "postgresql://localhost/app"}


def test_without_more_than_a_database_the_settings_are_the_documented_ones() -> None:
    settings = RelaySettings.from_env(ENVIRON)
    assert settings == RelaySettings(
        database_url="postgresql://localhost/app",
        audit_stream_url="http://127.0.0.1:8093",
        headers={},
        poll_s=5.0,
        log_level="INFO",
        metrics=Listen("127.0.0.1", 8094),
        metrics_asked_for=False,
    )


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("AUDIT_STREAM_URL", "https://spine:8093/events", "audit_stream_url", "https://spine:8093"),
        ("AUDIT_STREAM_URL", "http://spine/audit/events/", "audit_stream_url", "http://spine/audit"),
        ("AUDIT_STREAM_TOKEN", "s3cret", "headers", {"Authorization": "Bearer s3cret"}),
        ("POLL_TIMEOUT", "0.5", "poll_s", 0.5),
        ("LOG_LEVEL", "warning", "log_level", "WARNING"),
        ("METRICS_LISTEN", "off", "metrics", None),
        ("METRICS_LISTEN", "9000", "metrics", Listen("127.0.0.1", 9000)),
        ("METRICS_LISTEN", ":0", "metrics", Listen("127.0.0.1", 0)),
        ("METRICS_LISTEN", "[::1]:9000", "metrics", Listen("::1", 9000)),
        ("METRICS_LISTEN", "0.0.0.0:9000", "metrics", Listen("0.0.0.0", 9000)),
    ],
)
def test_a_good_value_is_read(name: str, text: str, field: str, value: object) -> None:
    assert getattr(RelaySettings.from_env({**ENVIRON, name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DATABASE_URL", " "),
        ("AUDIT_STREAM_URL", "spine:8093"),
        ("AUDIT_STREAM_URL", "http://me:secret@spine"),
        ("POLL_TIMEOUT", "0"),
        ("POLL_TIMEOUT", "-1"),
        ("POLL_TIMEOUT", "5s"),
        ("LOG_LEVEL", "loud"),
        ("METRICS_LISTEN", "on"),
        ("METRICS_LISTEN", "host:port"),
        ("METRICS_LISTEN", "host:65536"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(name: str, text: str) -> None:
    with pytest.raises(Misconfigured, match=f"^{name}"):
        RelaySettings.from_env({**ENVIRON, name: text})
