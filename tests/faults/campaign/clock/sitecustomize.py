"""Python imports this first when it stands on its path: a clock that can be set back under a running server.

It is an hour behind as long as the file named by AUDIT_STREAM_TEST_CLOCK exists.
"""

import os
import time
from pathlib import Path

_SET_BACK = Path(os.environ["AUDIT_STREAM_TEST_CLOCK"])
_HOUR_S = 3600
_real_time = time.time


def _time() -> float:
    return _real_time() - _HOUR_S if _SET_BACK.exists() else _real_time()


time.time = _time
