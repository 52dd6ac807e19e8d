"""The published hashes, through the whole of our own path to a hash."""

import json
from hashlib import sha256
from typing import Any

from audit_stream import chain, event
from audit_stream.decoding import decode
from tests.unit.drafts import KINDS, body

Vectors = dict[str, list[dict[str, Any]]]


def draft_of(vector: dict[str, Any]) -> event.Draft:
    sent = vector["event"]
    request = body(vector["payload_text"], **{name: sent[name] for name in ("kind", "source", "timestamp")})
    return event.draft(decode(request), KINDS)


def test_there_are_47_events_and_a_chain_of_12(vectors: Vectors) -> None:
    assert (len(vectors["events"]), len(vectors["chain"])) == (47, 12)


def test_each_payload_text_becomes_its_published_canonical_text(vectors: Vectors) -> None:
    for vector in vectors["events"]:
        payload = draft_of(vector).payload.decode()
        assert f'"payload":{payload},"prev_hash":' in vector["canonical"], vector["payload_text"]


def test_each_draft_hashes_to_its_published_hash(vectors: Vectors) -> None:
    for vector in vectors["events"]:
        sent = vector["event"]
        found = chain.link_hash(sent["event_id"], *draft_of(vector)[:4], sent["prev_hash"].encode())
        assert found.decode() == vector["hash"], vector["payload_text"]
        assert sha256(vector["canonical"].encode()).hexdigest() == vector["hash"]


def test_each_event_keeps_its_published_hash_through_its_json(vectors: Vectors) -> None:
    for vector in vectors["events"]:
        sent, draft = vector["event"], draft_of(vector)
        made = chain.Event(sent["event_id"], *draft[:4], sent["prev_hash"].encode(), vector["hash"].encode())
        assert chain.parse(event.to_json(made)) == made
        answered = json.loads(event.to_json(made))
        assert list(answered) == ["event_id", "timestamp", "kind", "source", "payload", "prev_hash", "hash"]
        assert answered == {**sent, "hash": vector["hash"]}


def test_the_published_chain_verifies(vectors: Vectors) -> None:
    events = [chain.parse(json.dumps(published)) for published in vectors["chain"]]
    last = vectors["chain"][-1]
    head = chain.Head(last["event_id"], last["hash"].encode())
    assert chain.verify(events) == chain.Verdict(True, 12, None, None, head)


def test_the_published_chain_is_what_its_requests_become(vectors: Vectors) -> None:
    prev = chain.GENESIS
    for published in vectors["chain"]:
        request = {name: published[name] for name in ("kind", "source", "payload", "timestamp")}
        draft = event.draft(decode(json.dumps(request).encode()), KINDS)
        prev = chain.link_hash(published["event_id"], *draft[:4], prev)
        assert prev.decode() == published["hash"]
