"""A refusal names every mistake of its event, in words of ours."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audit_stream.decoding import read
from audit_stream.errors import Malformed, Refused
from tests.unit.drafts import KINDS

GOOD: dict[str, Any] = {"kind": "other", "source": "s"}


def refusal_of(request: Any) -> Refused | None:
    try:
        read(json.dumps(request).encode(), KINDS)
    except Refused as refused:
        return refused
    return None


def refusal(request: Any, once: str | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        read(request if isinstance(request, bytes) else json.dumps(request).encode(), KINDS, once=once)
    return caught.value


SENTENCES: list[tuple[Any, list[str]]] = [
    ([], ["an event is a JSON object; this is an array"]),
    ({}, ["kind: is missing; each event has one", "source: is missing; each event has one"]),
    (GOOD | {"kind": 7, "source": None}, ["kind: is a number; send a string", "source: is null; send a string"]),
    (GOOD | {"source": ""}, ["source: is empty; 1 to 256 characters"]),
    (GOOD | {"source": "s" * 300}, ["source: has 300 characters; 1 to 256 are allowed"]),
    (GOOD | {"payload": [1]}, ["payload: is an array; send a JSON object"]),
    (GOOD | {"timestamp": True}, ["timestamp: is a boolean; send a string"]),
    (
        GOOD | {"timestamp": "2026-05-15T03:14:15"},
        [
            "timestamp: '2026-05-15T03:14:15' is not an RFC 3339 date-time with offset, such as"
            " 2026-05-15T03:14:15.123+00:00; the offset is missing: send 2026-05-15T03:14:15Z if it is UTC"
            " (in Python, datetime.now(UTC).isoformat())"
        ],
    ),
    (GOOD | {"idempotency_key": ""}, ["idempotency_key: is empty; 1 to 255 characters"]),
    (GOOD | {"payloud": {}}, ["payloud: is not a field of an event; did you mean payload?"]),
    (
        GOOD | {"colour": 1},
        [
            "colour: is not a field of an event; there are kind, source, payload, timestamp, idempotency_key;"
            " all else goes into payload"
        ],
    ),
    (
        GOOD | {"kind": "", "payload": {"a": float("nan")}, "timestamp": 0},
        [
            "kind: '' is not a kind; GET / lists them, and AUDIT_STREAM_KINDS adds a deployment's own",
            "payload: NaN, Infinity and numbers beyond a double have no canonical form",
            "timestamp: is a number; send a string",
        ],
    ),
    (GOOD | {"source": "\ud800"}, ["source: a lone surrogate has no canonical form"]),
]


@pytest.mark.parametrize(("request_", "sentences"), SENTENCES)
def test_each_mistake_has_its_sentence(request_: Any, sentences: list[str]) -> None:
    found = refusal(request_)
    assert [mistake.detail for mistake in found.mistakes] == sentences
    assert found.detail == "; also ".join(sentences)
    assert found.field == found.mistakes[0].field


def test_a_name_that_comes_twice_is_refused_for_that() -> None:
    found = refusal(b'{"kind":"other","source":"","source":"s"}')
    assert (found.field, found.detail) == ("source", "source: given more than once, and not each time as it must be")


def test_keys_that_differ_are_named_beside_another_mistake() -> None:
    found = refusal(GOOD | {"idempotency_key": "one", "kind": "x"}, once="two")
    assert [mistake.field for mistake in found.mistakes] == ["kind", "idempotency_key"]


text = st.sampled_from(["", "other", "x" * 300, "\ud800", "2026-05-15T03:14:15Z", "2026-05-15T03:14:15"])
anything: st.SearchStrategy[Any] = text | st.sampled_from(
    [None, True, 7, 1.5, float("inf"), [], {}, {"a": 10**400}, {"a": "\udfff"}]
)
requests = st.dictionaries(
    st.sampled_from(["kind", "source", "payload", "timestamp", "idempotency_key", "colour", "\ud800", "\n"]), anything
)


@given(requests | anything)
@example({"kind": "other", "source": "s", "payload": {"\ud800": 1}})
def test_whatever_is_refused_has_sentences_that_can_be_sent(request: Any) -> None:
    found = refusal_of(request)
    if found is not None:
        assert found.mistakes
        assert not isinstance(found, Malformed), found.detail
        assert "`" not in found.detail
        assert "Expected" not in found.detail
        for detail, field in found.mistakes:
            detail.encode()
            assert field is None or field.encode()
