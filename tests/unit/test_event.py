import json
from typing import Any

import pytest

from audit_stream.decoding import decode, decode_batch, line_of, read
from audit_stream.errors import Malformed, Refused, place_in_batch, without_place
from audit_stream.event import PublishRequest, draft, to_json, to_json_array
from tests.unit.drafts import AT, KINDS, body, drafted, linked, refused

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


@pytest.mark.parametrize("key", ['cloudevent:["s","1"]', "cloudevent:sha256:00", "audit-stream:accept-loss:1:2"])
def test_a_key_that_only_the_server_makes_is_refused_when_a_producer_writes_it(key: str) -> None:
    request = decode(body(idempotency_key=key))
    for asked, header in ((request, None), (decode(body()), key)):
        with pytest.raises(Refused, match="begin yours with something else") as caught:
            draft(asked, KINDS, once=header)
        assert caught.value.field == "idempotency_key"
        assert key in caught.value.detail
    assert draft(request, KINDS, key_is_ours=True).once == key.encode()


@pytest.mark.parametrize("key", ["bus:00", "kafka:clu:topic:0:1:2", "cloudevents:1", "Cloudevent:1"])
def test_a_key_as_our_relays_send_it_is_taken(key: str) -> None:
    assert draft(decode(body(idempotency_key=key)), KINDS).once == key.encode()


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


# --- idempotency keys


def test_a_key_comes_from_the_header_or_the_body_or_both_when_they_agree() -> None:
    plain, keyed = decode(body()), decode(body(idempotency_key="k"))
    assert draft(plain, KINDS).once == b""
    assert draft(plain, KINDS, once="k").once == b"k"
    assert draft(keyed, KINDS).once == b"k"
    assert draft(keyed, KINDS, once="k").once == b"k"


def test_the_key_of_a_batch_is_for_events_that_name_none() -> None:
    assert read(body(), KINDS, key="batch:0").once == b"batch:0"
    assert read(body(idempotency_key="own"), KINDS, key="batch:0").once == b"own"


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
    assert refusal.detail == "the 4th event of the batch (index 3): kind: no"
    on_a_line = Refused("kind: no").within_batch(3, 7).detail
    assert on_a_line == "line 7 of the body (index 3): kind: no"
    assert {without_place(detail) for detail in (refusal.detail, on_a_line, "kind: no")} == {"kind: no"}


def test_places_in_a_batch_are_counted_as_people_count() -> None:
    counted = [place_in_batch(index).split()[1] for index in (0, 1, 2, 3, 10, 11, 12, 20, 110, 111, 1999)]
    assert counted == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "111th", "112th", "2000th"]


def test_a_line_is_counted_with_the_blank_ones() -> None:
    assert [line_of(b"\n{}\n \r\n{}\n{}", index) for index in range(3)] == [2, 4, 5]


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
