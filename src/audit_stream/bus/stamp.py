"""The time of now, as lines carry it."""

import time
from datetime import UTC, datetime
from functools import lru_cache


def now() -> str:
    """What `datetime.now(UTC).isoformat(timespec="microseconds")` gives, in a third of the time."""
    second, ns = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(second)}.{ns // 1000:06d}+00:00"


@lru_cache(maxsize=2)
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()[:19]
