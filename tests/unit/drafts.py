"""Drafts and events made the way the server makes them, for the tests beside this file."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from audit_stream.chain import START, Event, Head, link_hash
from audit_stream.decoding import decode
from audit_stream.errors import Refused
from audit_stream.event import Draft, draft
from audit_stream.kinds import BUILT_IN

KINDS = frozenset(BUILT_IN)
AT = "2026-05-15T03:14:15+00:00"


def body(payload: str = "{}", **fields: Any) -> bytes:
    """The JSON of a PublishRequest; `payload` is its text, spliced in as it is."""
    request = {"kind": "other", "source": "unit"} | fields
    return json.dumps(request)[:-1].encode() + b',"payload":' + payload.encode() + b"}"


def drafted(payload: str = "{}", **fields: Any) -> Draft:
    return draft(decode(body(payload, **fields)), KINDS)


def refused(text: bytes) -> Refused:
    """The refusal of a request; fails when it is taken."""
    with pytest.raises(Refused) as caught:
        draft(decode(text), KINDS)
    return caught.value


def linked(drafts: Iterable[Draft], head: Head = START) -> list[Event]:
    """The events that these drafts become behind `head`."""
    events = []
    for event_id, made in enumerate(drafts, start=head.event_id + 1):
        hash_ = link_hash(event_id, *made[:4], head.hash)
        events.append(Event(event_id, *made[:4], head.hash, hash_))
        head = Head(event_id, hash_)
    return events
