"""The mapping between CloudEvents and events: what it refuses, and that nothing is lost on the way."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_stream.chain import GENESIS, Event, link_hash
from audit_stream.cloudevents import KEPT, from_json, key_of, to_json
from audit_stream.errors import Malformed, Refused
from audit_stream.event import MAX_KEY_LENGTH, Draft
from audit_stream.server.cloudevents import unescaped
from tests.fuzzing import fuzzed

KINDS = frozenset({"other", "flag_swapped"})


def cloudevent(**changes: Any) -> dict[str, Any]:
    event = {
        "specversion": "1.0",
        "id": "A-1",
        "source": "/billing",
        "type": "other",
        "time": "2026-05-15T03:14:15Z",
        "data": {"a": 1},
    }
    return {name: value for name, value in (event | changes).items() if value is not ...}


def read(**changes: Any) -> Draft:
    return from_json(json.dumps(cloudevent(**changes)).encode(), KINDS)


def chained(draft: Draft, event_id: int = 7) -> Event:
    hash_ = link_hash(event_id, *draft[:4], GENESIS)
    return Event(event_id, *draft[:4], GENESIS, hash_)


def written(draft: Draft) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(to_json(chained(draft)))
    return body


# --- in


def test_each_attribute_goes_to_its_field() -> None:
    draft = read()
    assert draft[:5] == (b"2026-05-15T03:14:15Z", b"other", b"/billing", b'{"a":1}', False)
    assert draft.once == b'cloudevent:["/billing","A-1"]'


def test_what_is_left_out_is_filled_in_and_null_is_left_out() -> None:
    for unset in (..., None):
        draft = read(time=unset, subject=unset)
        assert draft.stamped
        assert draft.payload == b'{"a":1}'
    assert read(data=...).payload == b"{}"


def test_attributes_without_a_field_are_kept_in_the_payload() -> None:
    draft = read(subject="s", dataschema="urn:x:y", traceparent="00-1", sampled=True, n=-5, gone=None)
    kept = json.loads(draft.payload)[KEPT]
    assert kept == {"subject": "s", "dataschema": "urn:x:y", "traceparent": "00-1", "sampled": True, "n": -5}


@pytest.mark.parametrize(
    ("content_type", "kept"),
    [
        ("application/json", None),
        ("Application/JSON; charset=UTF-8", None),
        ('application/json;charset="utf-8"', None),
        ("text/json", "text/json"),
        ("application/vnd.acme.v1+json", "application/vnd.acme.v1+json"),
        ("application/json; profile=x", "application/json; profile=x"),
    ],
)
def test_the_type_of_the_data_is_kept_where_it_says_more_than_json(content_type: str, kept: str | None) -> None:
    draft = read(datacontenttype=content_type)
    assert json.loads(draft.payload).get(KEPT, {}).get("datacontenttype") == kept
    assert written(draft)["datacontenttype"] == (kept or "application/json")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    *(({name: unset}, name, "has one") for name in ("specversion", "id", "source", "type") for unset in (..., None)),
    *(({name: ""}, name, "empty") for name in ("id", "source", "type", "subject", "dataschema")),
    *(({name: 1}, name, "no string") for name in ("specversion", "id", "source", "type", "time", "subject")),
    ({"specversion": "0.3"}, "specversion", "1.0 is"),
    ({"type": "surprise"}, "type", "AUDIT_STREAM_KINDS"),
    ({"source": "my service"}, "source", "my%20service"),
    ({"source": "caf\u00e9"}, "source", "caf%C3%A9"),
    ({"source": "50%"}, "source", "50%25"),
    ({"source": "/" + "s" * 256}, "source", "256"),
    ({"id": "a\nb"}, "id", "U+000A"),
    ({"id": "a\u0085"}, "id", "U+0085"),
    ({"id": "\ufdd0"}, "id", "U+FDD0"),
    ({"subject": "\U0001ffff"}, "subject", "U+1FFFF"),
    ({"time": "yesterday"}, "time", "RFC 3339"),
    ({"time": "2026-05-15T03:14:15"}, "time", "RFC 3339"),
    ({"data": [1]}, "data", "JSON object"),
    ({"data": "text"}, "data", "JSON object"),
    ({"data": None}, "data", "JSON object"),
    ({"data": {KEPT: 1}}, "data", KEPT),
    ({"data": ..., "data_base64": "AAAA"}, "data_base64", "JSON object"),
    ({"data_base64": "AAAA"}, "data_base64", "JSON object"),
    ({"datacontenttype": "text/xml"}, "datacontenttype", "not JSON"),
    ({"datacontenttype": "application/jsonp"}, "datacontenttype", "not JSON"),
    ({"dataschema": "/relative"}, "dataschema", "absolute"),
    ({"Subject": "s"}, "Subject", "lower-case"),
    ({"trace_parent": "s"}, "trace_parent", "lower-case"),
    ({"n": 2**31}, "n", "32-bit"),
    ({"n": 0.5}, "n", "no string"),
    ({"ext": {"a": 1}}, "ext", "no string"),
    ({"ext": ["a"]}, "ext", "no string"),
]


@pytest.mark.parametrize(("changes", "field", "words"), REFUSED)
def test_what_has_no_place_is_refused_by_its_name(changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        read(**changes)
    assert refused.value.field == field
    assert words in str(refused.value)
    assert field in str(refused.value)


def test_what_is_no_json_object_is_no_cloudevent() -> None:
    with pytest.raises(Malformed):
        from_json(b"{", KINDS)
    for body in (b"[]", b'"x"', b"null"):
        with pytest.raises(Refused):
            from_json(body, KINDS)
    deep: Any = {}
    for _ in range(70):
        deep = {"a": deep}
    with pytest.raises(Refused, match=r"^data: nested deeper"):
        read(data=deep)


def test_no_two_pairs_of_source_and_id_share_a_key() -> None:
    pairs = [("a", "b"), ("a,b", ""), ('a","b', ""), ("", "a"), ("a" * 256, "b"), ("a" * 255, "ab"), ("\u00e9", "b")]
    keys = [key_of(source, id_) for source, id_ in pairs]
    assert len(set(keys)) == len(pairs)
    assert all(len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable() for key in keys)


# --- out


def test_an_event_goes_out_with_its_link() -> None:
    event = chained(read())
    assert json.loads(to_json(event)) == {
        "specversion": "1.0",
        "id": "7",
        "source": "/billing",
        "type": "other",
        "time": "2026-05-15T03:14:15Z",
        "datacontenttype": "application/json",
        "prevhash": GENESIS.decode(),
        "hash": event.hash.decode(),
        "data": {"a": 1},
    }


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/a?b=c#d", "/a?b=c#d"),
        ("urn:x:y%20z", "urn:x:y%20z"),
        ("my service", "my%20service"),
        ("50% caf\u00e9", "50%25%20caf%C3%A9"),
    ],
)
def test_a_source_that_is_no_uri_reference_goes_out_percent_encoded(source: str, shown: str) -> None:
    event = chained(read())._replace(source=source.encode())
    assert json.loads(to_json(event))["source"] == shown


@pytest.mark.parametrize(
    "kept",
    [
        {},
        [],
        "s",
        {"id": "8"},
        {"hash": "f" * 64},
        {"data": "x"},
        {"data_base64": "AAAA"},
        {"subject": ""},
        {"Big": "x"},
        {"ext": {"a": 1}},
        {"ext": None},
        {"datacontenttype": "text/xml"},
    ],
)
def test_a_payload_s_own_member_of_that_name_stays_where_it_is(kept: Any) -> None:
    payload = json.dumps({KEPT: kept, "z": 1}, separators=(",", ":")).encode()
    found = json.loads(to_json(chained(read())._replace(payload=payload)))
    assert found["data"] == {KEPT: kept, "z": 1}
    assert found["id"] == "7"
    assert found["hash"] != "f" * 64
    assert found["datacontenttype"] == "application/json"


# --- round


values = st.one_of(
    st.booleans(), st.integers(-(2**31), 2**31 - 1), st.text('abc \u00e9\U0001f600"\\%/', min_size=0, max_size=8)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
taken = {"specversion", "id", "source", "type", "time", "data", "subject", "dataschema", "datacontenttype"}


@fuzzed
@given(
    attributes=st.dictionaries(
        st.from_regex("[a-z0-9]{1,20}", fullmatch=True).filter(lambda name: name not in taken | {"prevhash", "hash"}),
        values,
        max_size=4,
    ),
    subject=st.none() | st.text('abc \u00e9"', min_size=1, max_size=8),
    data=st.dictionaries(st.text(max_size=5), json_values, max_size=4),
)
def test_a_cloudevent_comes_out_as_it_went_in(
    attributes: dict[str, Any], subject: str | None, data: dict[str, Any]
) -> None:
    sent = cloudevent(data=data, **attributes) | ({} if subject is None else {"subject": subject})
    draft = from_json(json.dumps(sent).encode(), KINDS)
    found = written(draft)
    assert {name: found.pop(name) for name in ("id", "prevhash", "hash", "datacontenttype")}["id"] == "7"
    assert found == {name: value for name, value in sent.items() if name != "id"}
    again = from_json(json.dumps(found | {"id": "B"}).encode(), KINDS)
    assert again.says_the_same_as(draft)


def test_an_event_of_one_chain_can_be_appended_to_another_and_its_link_is_kept() -> None:
    first = chained(read(subject="s"))
    second = from_json(to_json(first), KINDS)
    kept = json.loads(second.payload)[KEPT]
    assert kept == {"subject": "s", "prevhash": first.prev_hash.decode(), "hash": first.hash.decode()}
    assert second.once == b'cloudevent:["/billing","7"]'
    out = written(second)
    assert out["data"] == {"a": 1, KEPT: kept}
    assert out["hash"] != kept["hash"]


# --- header values


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (b"plain", "plain"),
        (b"Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro \u20ac \U0001f600"),
        (b"%e2%82%ac%41", "\u20acA"),
        (b'"two words"', "two words"),
        (rb'"a \"b\" \\ c"', r'a "b" \ c'),
        (b'"100%25"', "100%"),
        (b"%2541", "%41"),
        (b'"', '"'),
        (b"", ""),
    ],
)
def test_a_header_value_is_unquoted_and_percent_decoded_once(value: bytes, meant: str) -> None:
    assert unescaped("ce-subject", value) == meant


@pytest.mark.parametrize("value", [b"%C0%A0", b"%ff", b"100%", b"%zz", "\u00e9".encode(), b"\xff"])
def test_a_header_value_that_is_no_text_is_refused(value: bytes) -> None:
    with pytest.raises(Refused, match="ce-subject") as refused:
        unescaped("ce-subject", value)
    assert refused.value.field == "subject"
