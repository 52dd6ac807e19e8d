"""CloudEvents over HTTP (HTTP protocol binding 1.0.2): the three modes, and header values."""

import re
from collections.abc import Iterable
from typing import Any, Literal
from urllib.parse import unquote

import msgspec

from audit_stream.cloudevents import from_json, is_json, to_draft
from audit_stream.decoding import decode_with
from audit_stream.errors import Refused, TooLarge
from audit_stream.event import Draft
from audit_stream.server.accept import preferred
from audit_stream.server.problems import Unsupported
from audit_stream.settings import Settings

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
BINARY = frozenset({b"ce-specversion", b"ce-id", b"ce-source", b"ce-type"})
"""A request with one of these is meant as a CloudEvent in binary mode; it then needs them all."""

Mode = Literal["structured", "binary", "batch"]

_any = msgspec.json.Decoder()


def mode_of(content_type: str, headers: Iterable[bytes]) -> Mode | None:
    """How a request carries CloudEvents; None when it does not. Raises Unsupported for a format that is not JSON."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.startswith("application/cloudevents"):
        match media_type:
            case "application/cloudevents+json":
                return "structured"
            case "application/cloudevents-batch+json":
                return "batch"
        raise Unsupported(f"Content-Type: {content_type[:80]!r} is not taken; send {STRUCTURED} or {BATCH}")
    return None if BINARY.isdisjoint(headers) else "binary"


def wants(headers: dict[bytes, str], form: str) -> bool:
    """Whether a receipt is to have this CloudEvents form. JSON unless asked: what was appended is never a 406."""
    accept = headers.get(b"accept", "")
    return "cloudevents" in accept.lower() and preferred(accept, ("application/json", form)) == form


def read_one(mode: Mode, headers: Iterable[tuple[bytes, bytes]], body: bytes, settings: Settings) -> Draft:
    """Make a draft of a request in structured or binary mode. Raises Refused, Unsupported."""
    if mode == "structured":
        return from_json(body, settings.kind_set)
    return to_draft(_members(headers, body, settings.max_event_bytes), settings.kind_set)


def _members(headers: Iterable[tuple[bytes, bytes]], body: bytes, limit: int) -> dict[str, Any]:
    members: dict[str, Any] = {}
    size = len(body)
    for name, value in headers:
        if name == b"content-type":
            members["datacontenttype"] = value.decode("latin-1")
        elif name.startswith(b"ce-"):
            header, attribute = name.decode("latin-1"), name[3:].decode("latin-1")
            if attribute in ("data", "datacontenttype"):
                raise Refused(f"{header}: no such header; data are the body, and Content-Type says their type")
            if attribute in members:
                raise Refused(f"{header}: given more than once", field=attribute)
            members[attribute] = unescaped(header, value)
            size += len(name) + len(value)
    if size > limit:
        raise TooLarge(over_limit("an event", limit))
    if body:
        if not is_json(members.get("datacontenttype", "application/json")):
            raise Unsupported(
                f"Content-Type: {members['datacontenttype'][:80]!r} is not JSON; data must be a JSON object,"
                " sent as application/json"
            )
        members["data"] = decode_with(_any, body, "data")
    return members


def unescaped(header: str, value: bytes) -> str:
    """Read a header's value (HTTP binding §3.1.3.2): quotes and backslashes off, then one round of percent-decoding."""
    try:
        text = value.decode("ascii")
        if len(text) >= 2 and text[0] == text[-1] == '"':
            text = re.sub(r"\\(.)", r"\1", text[1:-1])
        if not re.search("%(?![0-9A-Fa-f]{2})", text):
            return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass
    raise Refused(
        f"{header}: not percent-encoded UTF-8; a percent sign, a space, a quote and all that is not ASCII"
        " are written as %25, %20, %22 and so on",
        field=header.removeprefix("ce-"),
    )


def over_limit(what: str, limit: int) -> str:
    return f"{what} is over the limit of {limit} bytes"
