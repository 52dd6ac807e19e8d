"""Canonical text: what has one, and that it is the one Python writes."""

import json
import sys
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_stream import chain
from audit_stream.decoding import decode
from audit_stream.errors import Refused
from audit_stream.event import MAX_NESTING, canonical_text, draft, is_readable, to_json
from tests.unit.drafts import AT, KINDS, body, drafted, linked, refused

# --- JSON, or nearly, without a canonical form


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    """A payload that is `depth` levels deep, itself included."""
    return '{"a":' + opening * (depth - 1) + ("1" if opening != "[" else "") + closing * (depth - 1) + "}"


WITHOUT_CANONICAL_FORM: dict[str, tuple[str, str]] = {
    "NaN": ('{"a":NaN}', "NaN"),
    "Infinity": ('{"a":[Infinity]}', "Infinity"),
    "-Infinity": ('{"a":-Infinity}', "Infinity"),
    "1e400": ('{"a":1e400}', "out of the range"),
    "-1e400": ('{"a":{"b":-1e400}}', "out of the range"),
    "an integer of 400 digits": ('{"a":' + "9" * 400 + "}", "out of the range"),
    "the same, negative and deep": ('{"a":[{"b":-' + "9" * 400 + "}]}", "out of the range"),
    "the first integer too large": (f'{{"a":{2**1024}}}', "out of the range"),
    "an integer of 5,000 digits": ('{"a":' + "9" * 5000 + "}", "out of the range"),
    "a decimal of 400 digits": ('{"a":' + "9" * 400 + ".5}", "out of the range"),
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
