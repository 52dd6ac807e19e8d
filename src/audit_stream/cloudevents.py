"""CloudEvents 1.0.2 and the chain's events: the one mapping between them, both ways.

    CloudEvent                  event
    type                        kind
    source                      source
    time                        timestamp, verbatim; the server's when left out
    data                        payload: a JSON object; {} when left out
    id, with source             the idempotency key; on the way out, id is the event_id
    prevhash, hash              on the way out: the link
    every other attribute       payload.cloudevent.<name>, and an attribute again on the way out

What this cannot hold is refused, naming the attribute; nothing is dropped.
docs/cloudevents.md says the same to users.
"""

import json
import re
from collections.abc import Iterable, Set
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import msgspec

from audit_stream.chain import Event
from audit_stream.decoding import decode_with
from audit_stream.errors import Refused
from audit_stream.event import (
    MAX_KEY_LENGTH,
    MAX_SOURCE_LENGTH,
    Draft,
    PublishRequest,
    canonical_text,
    draft,
)

SPECVERSION = "1.0"
KEPT = "cloudevent"
"""The member of the payload that holds the attributes which an event has no field for."""
PLAIN = "application/json"
NAME = "[a-z0-9]+"
URI_REFERENCE = r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+"
"""The characters of one (RFC 3986 §4.1), which is not yet all of its grammar."""

_URI_CHARACTERS = "._~:/?#[]@!$&'()*+,;=-"
_HAVE_A_FIELD = frozenset({"specversion", "id", "source", "type", "time"})
_STRINGS = frozenset({"specversion", "id", "source", "type", "subject", "dataschema", "datacontenttype"})
_LINK = frozenset({"prevhash", "hash"})
# What a String may not hold (CloudEvents §3.1): control characters, surrogates, noncharacters.
_UNFIT = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)
_CALLED = {"kind": "type", "timestamp": "time", "payload": "data"}
_structured = msgspec.json.Decoder(dict[str, Any])


def from_json(text: bytes, kinds: Set[str]) -> Draft:
    """Read an event in the JSON format. Raises Malformed, or Refused naming the attribute."""
    return to_draft(decode_with(_structured, text, "a CloudEvent"), kinds)


def to_draft(members: dict[str, Any], kinds: Set[str]) -> Draft:
    """Make a draft of the attributes and, where there is one, the member `data`. Raises Refused."""
    if "data_base64" in members:
        raise Refused(
            "data_base64: binary data have no place in the chain; send data as a JSON object, with the"
            " base64 text as one of its members if need be",
            field="data_base64",
        )
    attributes = {name: value for name, value in members.items() if name != "data" and value is not None}
    _check_required(attributes)
    data = members.get("data", {})
    if not isinstance(data, dict):
        raise Refused(f'data: {_shown(data)} is no JSON object; put it into one, such as {{"value": …}}', field="data")
    if KEPT in data:
        raise Refused(
            f"data: its member {KEPT!r} is where the attributes are kept that an event has no field for;"
            " give yours another name",
            field="data",
        )
    kept = {name: value for name, value in attributes.items() if name not in _HAVE_A_FIELD}
    for name, value in kept.items():
        _check(name, value)
    if "datacontenttype" in kept and _is_plain(kept["datacontenttype"]):
        del kept["datacontenttype"]
    source = attributes["source"]
    request = PublishRequest(
        kind=attributes["type"],
        source=source,
        payload={**data, KEPT: kept} if kept else data,
        timestamp=attributes.get("time"),
        idempotency_key=key_of(source, attributes["id"]),
    )
    try:
        return draft(request, kinds, key_is_ours=True)
    except Refused as refused:
        name = _CALLED[refused.field or "payload"]
        raise Refused(f"{name}{refused.detail.removeprefix(refused.field or '')}", field=name) from refused


def key_of(source: str, id_: str) -> str:
    """The idempotency key: no two pairs of source and id share one, and no other producer's key looks like it."""
    key = "cloudevent:" + json.dumps([source, id_], separators=(",", ":"))
    return key if len(key) <= MAX_KEY_LENGTH else "cloudevent:sha256:" + sha256(key.encode()).hexdigest()


# --- attributes


def _check_required(attributes: dict[str, Any]) -> None:
    for name in ("specversion", "type", "source", "id"):
        if name not in attributes:
            raise Refused(f"{name}: a CloudEvent has one, and this has none", field=name)
        _check_text(name, attributes[name])
    if "time" in attributes:
        _check_text("time", attributes["time"])
    if attributes["specversion"] != SPECVERSION:
        raise Refused(
            f"specversion: {_shown(attributes['specversion'])} is not known here; {SPECVERSION} is", field="specversion"
        )
    source = attributes["source"]
    if not re.fullmatch(URI_REFERENCE, source):
        raise Refused(
            f"source: {_shown(source)} is no URI-reference (RFC 3986); percent-encode it,"
            f" as in {_shown(_uri_reference(source))}",
            field="source",
        )
    if len(source) > MAX_SOURCE_LENGTH:
        raise Refused(f"source: longer than {MAX_SOURCE_LENGTH} characters", field="source")


def _check(name: str, value: Any) -> None:
    """Raises Refused for an attribute that CloudEvents does not allow, or that says the data are not JSON."""
    if not re.fullmatch(NAME, name):
        raise Refused(
            f"{_shown(name)}: an attribute's name is lower-case letters and digits; all else goes into data", field=name
        )
    if isinstance(value, int) and name not in _STRINGS:  # a bool is one, too
        if not -(2**31) <= value < 2**31:
            raise Refused(f"{name}: {value} is no 32-bit integer; send it as a string", field=name)
        return
    _check_text(name, value)
    if name == "dataschema" and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:" + URI_REFERENCE, value):
        raise Refused(f"dataschema: {_shown(value)} is no absolute URI (RFC 3986)", field=name)
    if name == "datacontenttype" and not is_json(value):
        raise Refused(f"datacontenttype: {_shown(value)} is not JSON, and data must be a JSON object", field=name)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise Refused(f"{name}: {_shown(value)} is no string", field=name)
    if not value and name in _STRINGS:
        raise Refused(f"{name}: it is empty", field=name)
    if unfit := _UNFIT.search(value):
        raise Refused(f"{name}: it holds U+{ord(unfit.group()):04X}, which no attribute may", field=name)


def is_json(content_type: str) -> bool:
    """Whether data of this media type are JSON (JSON format §3.1.1): its subtype is json or ends with +json."""
    return re.fullmatch(r"[^/\s]+/(?:[^/\s;]+\+)?json", content_type.partition(";")[0].strip().lower()) is not None


def _is_plain(content_type: str) -> bool:
    return re.fullmatch(r'application/json\s*(;\s*charset="?utf-8"?\s*)?', content_type.strip().lower()) is not None


def _uri_reference(source: str) -> str:
    """The source where it is one, else percent-encoded."""
    return source if re.fullmatch(URI_REFERENCE, source) else quote(source, safe=_URI_CHARACTERS)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- out


def to_json(event: Event) -> bytes:
    """Return the event in the JSON format, the stored text of its payload spliced in where nothing is taken from it."""
    data, kept = _taken_apart(event.payload)
    attributes = {
        "specversion": SPECVERSION,
        "id": str(event.event_id),
        "source": _uri_reference(event.source.decode()),
        "type": event.kind.decode(),
        "time": event.timestamp.decode(),
        "datacontenttype": PLAIN,
        **kept,
        "prevhash": event.prev_hash.decode(),
        "hash": event.hash.decode(),
    }
    return b'%b,"data":%b}' % (msgspec.json.encode(attributes)[:-1], data)


def to_json_array(events: Iterable[Event]) -> bytes:
    return b"[%b]" % b",".join(map(to_json, events))


def _taken_apart(payload: bytes) -> tuple[bytes, dict[str, Any]]:
    """The data, and the attributes that were kept with them."""
    if b'"%b":{"' % KEPT.encode() not in payload:
        return payload, {}
    body = json.loads(payload)
    kept = body.get(KEPT)
    if not isinstance(kept, dict) or not kept or not _could_be_attributes(kept):
        return payload, {}
    del body[KEPT]
    return canonical_text(body), kept


def _could_be_attributes(kept: dict[str, Any]) -> bool:
    """Any producer may give a payload such a member; and the link that goes out is the event's own, no other."""
    if not kept.keys().isdisjoint(_HAVE_A_FIELD | _LINK | {"data"}):
        return False
    try:
        for name, value in kept.items():
            _check(name, value)
    except Refused:
        return False
    return True
