"""Reading what a producer sent: strictly and fast, and after a refusal once more to name every mistake.

The strict decoder stops at the first mistake and describes it in words of its own. So it only decides; what a
producer reads is written by `mistakes.py`, from a second and slow look at the same bytes.
"""

import json
import math
from collections.abc import Set
from typing import Any, TypeVar

import msgspec

from audit_stream.errors import Malformed, Refused
from audit_stream.event import Draft, PublishRequest, draft, too_deep
from audit_stream.mistakes import EVENT, json_type, mistakes, no_object, uncanonical

T = TypeVar("T")

_one = msgspec.json.Decoder(PublishRequest)
_array = msgspec.json.Decoder(list[msgspec.Raw])
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read(body: bytes, kinds: Set[str], *, once: str | None = None, key: str | None = None) -> Draft:
    """Make a draft of one PublishRequest. Raises Malformed, or Refused with all of its mistakes.

    `once` is the idempotency key in the request's header, which the body may repeat and not contradict; `key` is that
    of an event which names none.
    """
    try:
        request = _one.decode(body)
        if key is not None and request.idempotency_key is None:
            once = key
        return draft(request, kinds, once=once)
    except _UNDECODABLE as error:
        raise _refusal(body, error, kinds, once) from error
    except Refused as refused:
        raise Refused.of(mistakes(_loosely(body), kinds, once)) or refused from refused


def decode(body: bytes) -> PublishRequest:
    """Read one PublishRequest whose kind is not looked at. Raises Malformed, or Refused with all of its mistakes."""
    try:
        return _one.decode(body)
    except _UNDECODABLE as error:
        raise _refusal(body, error) from error


def decode_with(decoder: "msgspec.json.Decoder[T]", body: bytes, what: str) -> T:
    """Read `what`, which is a JSON object. Raises Malformed, or Refused when it has no canonical form."""
    try:
        return decoder.decode(body)
    except _UNDECODABLE as error:
        raise _refusal(body, error, what=what) from error


def decode_batch(body: bytes, *, lines: bool) -> list[bytes]:
    """Split a JSON array, or NDJSON when `lines`, into the texts of its events; blank lines are skipped."""
    if lines:
        return [line for line in body.split(b"\n") if line.strip()]
    try:
        return [bytes(raw) for raw in _array.decode(body)]
    except msgspec.ValidationError as error:
        raise Refused(
            f"a batch is a JSON array of events, or one event a line as application/x-ndjson; this is {_opens(body)}"
        ) from error
    except _UNDECODABLE as error:
        raise _batch_refusal(body, error) from error


def line_of(body: bytes, index: int) -> int:
    """Return the line of an NDJSON body, from 1, that the event at `index` stands on."""
    filled = (number for number, line in enumerate(body.split(b"\n"), start=1) if line.strip())
    return next(number for place, number in enumerate(filled) if place == index)


# --- refusals


def _refusal(
    body: bytes, error: Exception, kinds: Set[str] | None = None, once: str | None = None, *, what: str = ""
) -> Refused:
    """Say what is wrong with a body that the strict decoder has refused. `what` it is, if no PublishRequest."""
    try:
        loose = _loosely(body)
    except RecursionError:
        given = _opens(body)
        return too_deep() if given == "an object" else Refused(no_object(what or EVENT, given))
    except ValueError as malformed:
        return Malformed(f"the body is not JSON: {malformed}")
    if not what:
        found = Refused.of(mistakes(loose, kinds, once))
    elif isinstance(loose, dict):
        found = _without_canonical_form(loose)
    else:
        found = Refused(no_object(what, json_type(loose)))
    if found is None and isinstance(error, msgspec.ValidationError):
        return _repeated(body)
    return found or Malformed(f"the body is not JSON: {error}")


def _batch_refusal(body: bytes, error: Exception) -> Refused:
    try:
        loose = _loosely(body)
    except RecursionError:
        return too_deep()
    except ValueError as malformed:
        return Malformed(f"the body is not JSON: {malformed}")
    for index, item in enumerate(loose if isinstance(loose, list) else ()):
        if isinstance(item, dict) and (found := _without_canonical_form(item)):
            return found.within_batch(index)
    return Malformed(f"the body is not JSON: {error}")


def _loosely(body: bytes) -> Any:
    """Read what is JSON, and what nearly is: NaN, lone surrogates, numbers of any length. Raises ValueError."""
    return json.loads(body.decode("utf-8", "surrogatepass"), parse_int=_whole, parse_float=_decimal)


_BEYOND = 10**400
"""Stands in for every number that is out of the range of a double: Python reads at most 4,300 digits of one."""


def _whole(text: str) -> int:
    return int(text) if len(text) < 400 else _BEYOND


def _decimal(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _BEYOND


_OPENINGS = {b"{": "an object", b"[": "an array", b'"': "a string", b"t": "a boolean", b"f": "a boolean", b"n": "null"}


def _opens(body: bytes) -> str:
    """What a JSON value is, by its first byte."""
    return _OPENINGS.get(body.lstrip()[:1], "a number")


def _without_canonical_form(members: dict[str, Any]) -> Refused | None:
    return Refused.of(list(filter(None, map(uncanonical, members.keys(), members.values()))))


def _repeated(body: bytes) -> Refused:
    """Of a name that comes twice, JSON readers keep the last value; the strict decoder has refused an earlier one."""
    pairs: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=list)
    names = [name for name, _ in pairs]
    name = next((name for name in names if names.count(name) > 1), None)
    return Refused(f"{name}: given more than once, and not each time as it must be", field=name)
