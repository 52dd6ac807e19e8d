"""What a producer hands in as a payload, checked before it is sent: a refusal names the place and what to do."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Set
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from audit_stream.errors import Refused
from audit_stream.event import canonical_text

_REMEDIES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((date, time), "use .isoformat()"),
    (timedelta, "use .total_seconds()"),
    ((UUID, Decimal, PurePath), "use str()"),
    (Enum, "use its .value"),
    ((bytes, bytearray, memoryview), "decode it to text, such as with .hex()"),
    (Mapping, "use dict()"),
    ((Set, Iterator, range), "use list()"),
)


def canonical_payload(payload: Any) -> bytes:
    """Return the canonical text of a payload, `{}` for None. Raises Refused, naming the first place that has none."""
    if payload is None:
        return b"{}"
    if not isinstance(payload, Mapping):
        raise Refused(
            f"payload: {_named(payload)} is not a JSON object; give a dict, such as {{'items': …}}", field="payload"
        )
    body = dict(payload)
    try:
        text = canonical_text(body)
    except (TypeError, ValueError) as error:
        why = _why_not(body, "payload") or f"payload: it has no canonical form: {error}"
        raise Refused(why, field="payload") from error
    # Python writes a key of 1 as "1", and the receipt would hold another payload than was handed in.
    if not _has_text_keys(body):
        raise Refused(_why_not(body, "payload") or "payload: a key is not a string", field="payload")
    return text


def _has_text_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_has_text_keys, value.values()))
    return not isinstance(value, list | tuple) or all(map(_has_text_keys, value))


def _why_not(value: Any, path: str) -> str | None:
    """Say of the first value that JSON cannot hold where it is and what to do; None where all of them can be held."""
    if isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str):
                return f"{path}: the key {key!r} is {_named(key)}; keys are strings: use str()"
            step = f".{key}" if key.isidentifier() else f"[{key!r}]"
            if why := _why_not(child, path + step):
                return why
        return None
    if isinstance(value, list | tuple):
        reasons = (_why_not(child, f"{path}[{index}]") for index, child in enumerate(value))
        return next(filter(None, reasons), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value}, which is not a JSON number; use None or a text"
    if value is None or isinstance(value, str | int | float):
        return None
    return f"{path} is {_named(value)}, which JSON has no form for; {_remedy(value)}"


def _named(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIOU' and name != 'UUID' else 'a'} {name}"


def _remedy(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return "use dataclasses.asdict()"
    return next((remedy for types, remedy in _REMEDIES if isinstance(value, types)), "make it of dict, list and text")
