import json
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_stream import chain
from audit_stream.errors import Malformed, Refused
from audit_stream.event import (
    MAX_NESTING,
    PublishRequest,
    canonical_text,
    check_timestamp,
    decode,
    decode_batch,
    draft,
    instant,
    is_readable,
    to_json,
    to_json_array,
)
from tests.unit.drafts import AT, KINDS, body, drafted, linked


def refused(text: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        draft(decode(text), KINDS)
    return caught.value


# --- the schema


BREAKS_THE_SCHEMA: dict[str, tuple[bytes, str]] = {
    "unknown kind": (body(kind="party"), "kind"),
    "kind in capitals": (body(kind="OTHER"), "kind"),
    "empty kind": (body(kind=""), "kind"),
    "kind a number": (body(kind=1), "kind"),
    "kind null": (body(kind=None), "kind"),
    "no kind": (b'{"source":"s","payload":{}}', "kind"),
    "empty source": (body(source=""), "source"),
    "source of 257": (body(source="x" * 257), "source"),
    "source a number": (body(source=1), "source"),
    "no source": (b'{"kind":"other","payload":{}}', "source"),
    "payload a list": (body("[]"), "payload"),
    "payload a text": (body('"{}"'), "payload"),
    "payload null": (body("null"), "payload"),
    "timestamp a number": (body(timestamp=1778814855), "timestamp"),
    "empty key": (body(idempotency_key=""), "idempotency_key"),
    "key of 256": (body(idempotency_key="k" * 256), "idempotency_key"),
    "key a number": (body(idempotency_key=7), "idempotency_key"),
    "extra field": (body(actor="me"), "actor"),
    "event_id sent along": (body(event_id=1), "event_id"),
    "hash sent along": (body(hash="0" * 64), "hash"),
    "prev_hash sent along": (body(prev_hash="0" * 64), "prev_hash"),
}


@pytest.mark.parametrize("name", BREAKS_THE_SCHEMA)
def test_what_breaks_the_schema_is_refused_by_the_name_of_its_field(name: str) -> None:
    text, field = BREAKS_THE_SCHEMA[name]
    refusal = refused(text)
    assert refusal.field == field
    assert field in refusal.detail
    assert not isinstance(refusal, Malformed)


@pytest.mark.parametrize("text", [b"[]", b"1", b'"x"', b"null", b"true"])
def test_json_that_is_no_object_is_refused_and_not_called_malformed(text: bytes) -> None:
    refusal = refused(text)
    assert type(refusal) is Refused
    assert "object" in refusal.detail


def test_the_limits_themselves_are_within_them() -> None:
    made = drafted(source="x" * 256, idempotency_key="k" * 255)
    assert (len(made.source), len(made.once)) == (256, 255)
    assert len(drafted(source="😀" * 256).source) == 1024


def test_a_request_needs_no_more_than_a_kind_and_a_source() -> None:
    made = draft(decode(b'{"kind":"other","source":"s"}'), KINDS)
    assert (made.payload, made.once, made.stamped) == (b"{}", b"", True)


def test_a_kind_that_the_deployment_added_is_taken() -> None:
    assert draft(decode(body(kind="gate_opened")), KINDS | {"gate_opened"}).kind == b"gate_opened"


# --- not JSON


NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \n",
    "a word": b"hello",
    "cut short": body()[:-1],
    "cut in a text": body()[:12],
    "cut in an escape": body('{"a":"\\u00')[:-1],
    "more behind it": body() + b"x",
    "two of them": body() + body(),
    "single quotes": body("{'a':1}"),
    "a comma too many": body('{"a":1,}'),
    "a number with a leading zero": body('{"a":01}'),
    "a bare control character": body('{"a":"\x01"}'),
    "an unknown escape": body('{"a":"\\x41"}'),
    "a comment": body('{"a":1/**/}'),
    "a byte that is no UTF-8": body().replace(b"{}", b'{"a":"\xff"}'),
    "UTF-8 cut short": body().replace(b"{}", b'{"a":"\xc3"}'),
    "overlong UTF-8": body().replace(b"{}", b'{"a":"\xc0\x80"}'),
    "UTF-8 beyond Unicode": body().replace(b"{}", b'{"a":"\xf5\x80\x80\x80"}'),
    "a byte order mark": b"\xef\xbb\xbf" + body(),
    "UTF-16": body().decode().encode("utf-16"),
    "a key that is no text": body("{1:2}"),
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_not_json_is_malformed(name: str) -> None:
    refusal = refused(NOT_JSON[name])
    assert isinstance(refusal, Malformed)
    assert refusal.detail.startswith("the body is not JSON")


# --- JSON, or nearly, without a canonical form


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    """A payload that is `depth` levels deep, itself included."""
    return '{"a":' + opening * (depth - 1) + ("1" if opening != "[" else "") + closing * (depth - 1) + "}"


WITHOUT_CANONICAL_FORM: dict[str, tuple[str, str]] = {
    "NaN": ('{"a":NaN}', "NaN"),
    "Infinity": ('{"a":[Infinity]}', "Infinity"),
    "-Infinity": ('{"a":-Infinity}', "Infinity"),
    "1e400": ('{"a":1e400}', "out of range"),
    "-1e400": ('{"a":{"b":-1e400}}', "out of range"),
    "an integer of 400 digits": ('{"a":' + "9" * 400 + "}", "out of the range"),
    "the same, negative and deep": ('{"a":[{"b":-' + "9" * 400 + "}]}", "out of the range"),
    "the first integer too large": (f'{{"a":{2**1024}}}', "out of the range"),
    "an integer of 5,000 digits": ('{"a":' + "9" * 5000 + "}", "out of range"),
    "a decimal of 400 digits": ('{"a":' + "9" * 400 + ".5}", "out of range"),
    "a lone surrogate, escaped": ('{"a":"\\ud800"}', "surrogate"),
    "the second half alone": ('{"a":"\\udc00"}', "surrogate"),
    "the halves in the wrong order": ('{"a":"\\udc00\\ud800"}', "surrogate"),
    "a lone surrogate in a key": ('{"\\udfff":1}', "surrogate"),
    "65 levels of lists": (nested(65), "64"),
    "65 levels of objects": (nested(65, '{"a":', "}"), "64"),
    "10,000 levels of lists": (nested(10_000), "64"),
    "10,000 levels of objects": (nested(10_000, '{"a":', "}"), "64"),
    "10,000 brackets that never close": ('{"a":' + "[" * 10_000, "64"),
}


@pytest.mark.parametrize("name", WITHOUT_CANONICAL_FORM)
def test_what_has_no_canonical_form_is_refused_as_the_payloads_fault(name: str) -> None:
    payload, says = WITHOUT_CANONICAL_FORM[name]
    refusal = refused(body(payload))
    assert type(refusal) is Refused
    assert refusal.field == "payload"
    assert says in refusal.detail


def test_a_surrogate_in_raw_bytes_is_refused() -> None:
    assert refused(body().replace(b"{}", b'{"a":"\xed\xa0\x80"}')).field in ("payload", None)


@pytest.mark.parametrize("field", ["source", "kind", "timestamp", "idempotency_key"])
def test_a_lone_surrogate_outside_the_payload_is_refused_by_the_name_of_its_field(field: str) -> None:
    assert refused(body(**{field: "\ud800"})).field == field


def test_64_levels_are_taken_and_kept() -> None:
    for payload in (nested(MAX_NESTING), nested(MAX_NESTING, '{"a":', "}")):
        assert drafted(payload).payload == payload.encode()


def test_many_brackets_side_by_side_are_not_deep() -> None:
    payload = '{"a":[' + ",".join(["{}"] * 500) + "]}"
    assert drafted(payload).payload == payload.encode()


KEPT_EXACTLY: dict[str, str] = {
    "30 digits": "123456789012345678901234567890",
    "beyond 64 bits": "18446744073709551616",
    "beyond 53 bits": "9007199254740993",
    "the largest integer in range": str(int(sys.float_info.max)),
    "a text of 400 digits": '"' + "9" * 400 + '"',
}


@pytest.mark.parametrize("name", KEPT_EXACTLY)
def test_a_number_in_range_is_kept_digit_by_digit(name: str) -> None:
    payload = '{"a":' + KEPT_EXACTLY[name] + "}"
    assert drafted(payload).payload == payload.encode()


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ('{"a":1,"a":2}', '{"a":2}'),
        ('{"a":{"b":1},"c":0,"a":{}}', '{"a":{},"c":0}'),
        ('{ "b" : 1,\n\t"a" : 2 }', '{"a":2,"b":1}'),
        ('{"a":1E5,"b":1e16,"c":-0,"d":-0.0}', '{"a":100000.0,"b":1e+16,"c":0,"d":-0.0}'),
        ('{"a":"\\u0041\\/"}', '{"a":"A/"}'),
        ('{"a":"é😀"}', '{"a":"\\u00e9\\ud83d\\ude00"}'),
        # By code point, not by UTF-16 unit: U+FFEE comes before U+1F600.
        ('{"😀":1,"\uffee":2}', '{"\\uffee":2,"\\ud83d\\ude00":1}'),
    ],
)
def test_one_value_has_one_text(sent: str, kept: str) -> None:
    assert drafted(sent).payload.decode() == kept


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)
payloads = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), json_values, max_size=5)
sources = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(deadline=None)
@given(payloads, sources, st.booleans())
def test_any_object_is_hashed_as_python_writes_it(payload: dict[str, Any], source: str, ascii_only: bool) -> None:
    text = json.dumps(payload, ensure_ascii=ascii_only, indent=1)
    request = f'{{"payload":{text},"timestamp":"{AT}","source":{json.dumps(source)},"kind":"other"}}'
    (event,) = linked([draft(decode(request.encode()), KINDS)])
    published = {"event_id": 1, "timestamp": AT, "kind": "other", "source": source, "payload": payload}
    published["prev_hash"] = "0" * 64
    canonical = json.dumps(published, sort_keys=True, separators=(",", ":"))
    assert event.payload.decode() == json.dumps(payload, sort_keys=True, separators=(",", ":"))
    assert event.hash.decode() == sha256(canonical.encode()).hexdigest()
    answered = json.loads(to_json(event))
    # repr tells 1 from 1.0 and 0.0 from -0.0, which == does not.
    assert repr(answered["payload"]) == repr(json.loads(text)) or answered["payload"] == payload
    assert answered == {**published, "hash": event.hash.decode()}
    assert chain.parse(to_json(event)) == event


@settings(deadline=None)
@given(payloads)
def test_a_canonical_text_stays_as_it_is_when_it_is_read_again(payload: dict[str, Any]) -> None:
    text = canonical_text(payload)
    assert drafted(text.decode()).payload == text


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_whatever_bytes_come_in_the_only_error_is_a_refusal(text: bytes) -> None:
    for request in (text, body().replace(b"{}", b'{"a":%b}' % text), body().replace(b"unit", text)):
        try:
            made = draft(decode(request), KINDS)
        except Refused:
            continue
        json.loads(made.payload)


# --- timestamps


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


# --- idempotency keys


def test_a_key_comes_from_the_header_or_the_body_or_both_when_they_agree() -> None:
    plain, keyed = decode(body()), decode(body(idempotency_key="k"))
    assert draft(plain, KINDS).once == b""
    assert draft(plain, KINDS, once="k").once == b"k"
    assert draft(keyed, KINDS).once == b"k"
    assert draft(keyed, KINDS, once="k").once == b"k"


def test_a_header_that_contradicts_the_body_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        draft(decode(body(idempotency_key="k")), KINDS, once="other")
    assert caught.value.field == "idempotency_key"


@pytest.mark.parametrize(
    ("retry", "same"),
    [
        ({}, True),
        ({"payload": '{"b":2, "a":1.0}'}, True),
        ({"timestamp": None}, True),
        ({"idempotency_key": "k2"}, True),
        ({"payload": '{"a":1,"b":2}'}, False),
        ({"kind": "flag_swapped"}, False),
        ({"source": "unit2"}, False),
        ({"timestamp": "2026-05-15T03:14:15Z"}, False),
    ],
)
def test_a_draft_says_the_same_when_a_retry_of_the_request_would_look_like_it(
    retry: dict[str, Any], same: bool
) -> None:
    first = drafted('{"a":1.0,"b":2}', timestamp=AT, idempotency_key="k1")
    again = drafted(**{"payload": '{"a":1.0,"b":2}', "timestamp": AT, "idempotency_key": "k1"} | retry)
    assert again.says_the_same_as(first) is same
    assert again.says_the_same_as(linked([first])[0]) is same


def test_a_request_without_timestamp_says_the_same_as_its_first_try_at_another_time() -> None:
    first = drafted()._replace(timestamp=b"2026-05-15T03:14:15.000+00:00")
    assert drafted().says_the_same_as(first)


# --- batches and answers


def test_a_batch_is_split_without_a_byte_of_its_events_changing() -> None:
    first, second = body('{ "a" : 1.0 }'), body('{"é":"\\u00e9"}')
    assert decode_batch(b"[%b , %b]" % (first, second), lines=False) == [first, second]
    assert decode_batch(b"%b\n\n  \n%b\r\n" % (first, second), lines=True) == [first, second + b"\r"]
    assert decode_batch(b"[]", lines=False) == []
    assert decode_batch(b"\n", lines=True) == []


@pytest.mark.parametrize("text", [b"", b"[", b"[{}", b"[{}]x", b'[{"kind":"\xff"}]', b"\xff"])
def test_a_batch_that_is_not_json_is_malformed(text: bytes) -> None:
    with pytest.raises(Malformed):
        [decode(event) for event in decode_batch(text, lines=False)]


@pytest.mark.parametrize("text", [b"{}", b"1", b"null", b'"[]"'])
def test_a_batch_that_is_no_array_is_refused(text: bytes) -> None:
    with pytest.raises(Refused, match="a batch is a JSON array") as caught:
        decode_batch(text, lines=False)
    assert type(caught.value) is Refused


def test_a_refusal_within_a_batch_says_where() -> None:
    refusal = Refused("kind: no", field="kind").within_batch(3)
    assert (refusal.index, refusal.field) == (3, "kind")
    assert "event 3" in refusal.detail
    assert "kind: no" in refusal.detail


def test_an_array_of_events_is_the_events_in_an_array() -> None:
    events = linked([drafted(), drafted('{"a":[1]}')])
    assert json.loads(to_json_array(events)) == [json.loads(to_json(event)) for event in events]
    assert to_json_array([]) == b"[]"


def test_the_size_of_a_draft_covers_what_is_stored_of_it() -> None:
    made = drafted('{"a":"' + "x" * 1000 + '"}', source="s" * 100, idempotency_key="k" * 100)
    (event,) = linked([made])
    assert made.size_bytes >= sum(map(len, event[1:])) + len(made.once)


def test_a_request_made_in_python_is_drafted_like_one_that_was_read() -> None:
    made = draft(PublishRequest(kind="other", source="unit", payload={"b": 1, "a": 2}, timestamp=AT), KINDS)
    assert made == drafted('{"b":1,"a":2}', timestamp=AT)


@settings(deadline=None)
@given(payloads, sources)
def test_every_event_that_was_drafted_can_be_shown_on_one_line(payload: dict[str, Any], source: str) -> None:
    (event,) = linked([drafted(json.dumps(payload), source=source)])
    assert is_readable(event)
    assert b"\n" not in to_json(event)


@pytest.mark.parametrize(
    "damage",
    [
        {"payload": b"{"}, {"payload": b"[]"}, {"payload": b'{"a":\n1}'}, {"payload": b'{"a":"\xff"}'},
        {"payload": b""},
        {"source": b"\xff"}, {"kind": b"\xff"}, {"kind": b"a\nb"}, {"timestamp": b"\xff"}, {"timestamp": b"\r"},
        {"hash": b'"'}, {"hash": b""}, {"prev_hash": b"\n"}, {"prev_hash": b"0\\"},
    ],
    ids=str,
)  # fmt: skip
def test_an_event_whose_json_could_not_be_read_is_not_called_readable(damage: dict[str, Any]) -> None:
    (event,) = linked([drafted()])
    assert not is_readable(event._replace(**damage))
