"""How full Redis is, in words."""

from collections.abc import Mapping
from typing import Any


def shown(capacity: Mapping[str, Any]) -> str:
    """Describe the `capacity` of /stats."""
    days_until_full = capacity["days_until_full"]
    full = "too little was appended to say when it is full"
    if days_until_full is not None:
        full = f"full in {days_until_full:,.0f} days" if days_until_full >= 1 else "full within a day"
    return f"{_size(capacity['used_bytes'])} of {_size(capacity['limit_bytes'])}, {full}"


def _size(count: int) -> str:
    for name, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {name}"
    return f"{count / 1e3:,.0f} KB"
