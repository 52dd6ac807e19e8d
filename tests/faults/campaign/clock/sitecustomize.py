"""Python imports this first when it stands on its path: a clock that can be set back under a running server.

It is an hour behind as long as the file named by AUDIT_STREAM_TEST_CLOCK exists.
"""

import os
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import audit_stream.event

_SET_BACK = Path(os.environ["AUDIT_STREAM_TEST_CLOCK"])
_HOUR = timedelta(hours=1)
_real_time = time.time


class _Clock(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_Clock":
        return super().now(tz) - _HOUR if _SET_BACK.exists() else super().now(tz)


def _time() -> float:
    return _real_time() - _HOUR.total_seconds() if _SET_BACK.exists() else _real_time()


time.time = _time
audit_stream.event.datetime = _Clock  # type: ignore[attr-defined]
