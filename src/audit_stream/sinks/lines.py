"""One line of JSON."""

import json
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


def line_of(fields: dict[str, Any]) -> bytes:
    try:
        return _encode(fields) + b"\n"
    except UnicodeEncodeError:
        # A lone surrogate, which has no UTF-8: escaped it stays what it was.
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"
