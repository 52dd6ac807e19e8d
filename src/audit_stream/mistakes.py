"""Every mistake of a request that was refused, in words for its producer: what is wrong, and what would be right.

Slow, and made for refusals alone. What is right is decided by the strict decoder and `event.draft`; each of their
rules has its sentence here.
"""

import json
from collections.abc import Set
from difflib import get_close_matches
from typing import Any

from audit_stream.errors import Mistake, Refused
from audit_stream.event import (
    MAX_KEY_LENGTH,
    MAX_SOURCE_LENGTH,
    PublishRequest,
    canonical_text,
    conflicting_keys,
    too_deep,
)
from audit_stream.kinds import unknown_kind
from audit_stream.timestamps import check_timestamp

EVENT = "an event"
FIELDS = PublishRequest.__struct_fields__

_SHOWN = 64
_TYPES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def mistakes(request: Any, kinds: Set[str] | None, once: str | None) -> list[Mistake]:
    """List what is wrong with a PublishRequest as it was read loosely, in the order of its fields.

    `kinds` are those of this deployment; None: any will do. `once` is the key in the request's header.
    """
    if not isinstance(request, dict):
        return [Mistake(no_object(EVENT, json_type(request)), None)]
    found = [
        _text(request, "kind") or _kind(request["kind"], kinds),
        _text(request, "source") or _length(request, "source", MAX_SOURCE_LENGTH),
        _payload(request.get("payload", {})),
        _text(request, "timestamp", optional=True) or _timestamp(request.get("timestamp")),
        _text(request, "idempotency_key", optional=True) or _key(request, once),
        *(_unknown(name) for name in request if name not in FIELDS),
    ]
    return [mistake for mistake in found if mistake]


def no_object(what: str, given: str) -> str:
    return f"{what} is a JSON object; this is {given}"


def json_type(value: Any) -> str:
    return _TYPES[type(value)]


def uncanonical(name: str, value: Any) -> Mistake | None:
    """Why a member of a JSON object has no canonical form; None where it has one."""
    try:
        json.dumps([name, value], ensure_ascii=False, allow_nan=False).encode()
        if isinstance(value, dict):
            canonical_text(value)
    except RecursionError:
        return Mistake(f"{name}{too_deep().detail.removeprefix('payload')}", name)
    except UnicodeEncodeError:
        field = name if name.isascii() else "payload"
        return Mistake(f"{field}: a lone surrogate has no canonical form", field)
    except ValueError:
        return Mistake(f"{name}: NaN, Infinity and numbers beyond a double have no canonical form", name)
    except Refused as refused:
        return Mistake(f"{name}{refused.detail.removeprefix('payload')}", name)
    return None


# --- field by field


def _text(request: dict[str, Any], name: str, *, optional: bool = False) -> Mistake | None:
    if name not in request:
        return None if optional else Mistake(f"{name}: is missing; each event has one", name)
    value = request[name]
    if isinstance(value, str):
        return uncanonical(name, value)
    if value is None and optional:
        return None
    return Mistake(f"{name}: is {json_type(value)}; send a string", name)


def _length(request: dict[str, Any], name: str, most: int) -> Mistake | None:
    length = len(request[name])
    if 1 <= length <= most:
        return None
    if length:
        return Mistake(f"{name}: has {length} characters; 1 to {most} are allowed", name)
    return Mistake(f"{name}: is empty; 1 to {most} characters", name)


def _kind(kind: str, kinds: Set[str] | None) -> Mistake | None:
    return Mistake(unknown_kind(kind, kinds), "kind") if kinds is not None and kind not in kinds else None


def _payload(payload: Any) -> Mistake | None:
    if not isinstance(payload, dict):
        return Mistake(f"payload: is {json_type(payload)}; send a JSON object", "payload")
    return uncanonical("payload", payload)


def _timestamp(timestamp: str | None) -> Mistake | None:
    if timestamp is not None:
        try:
            check_timestamp(timestamp, field="timestamp")
        except Refused as refused:
            return Mistake(refused.detail, "timestamp")
    return None


def _key(request: dict[str, Any], once: str | None) -> Mistake | None:
    key = request.get("idempotency_key")
    if key is None:
        return None
    if found := _length(request, "idempotency_key", MAX_KEY_LENGTH):
        return found
    return Mistake(conflicting_keys().detail, "idempotency_key") if once is not None and once != key else None


def _unknown(name: str) -> Mistake:
    shown = name if name.isprintable() and len(name) <= _SHOWN else ascii(name[:_SHOWN])
    near = get_close_matches(name[:_SHOWN], FIELDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FIELDS)}; all else goes into payload"
    return Mistake(f"{shown}: is not a field of an event; {hint}", name if name.isprintable() else None)
