"""What every fault needs: to wait until it is seen, and to say that it cannot be had here."""

import time
from collections.abc import Callable

PATIENCE_S = 60


class NotHere(Exception):
    """This machine does not permit the fault; says why."""


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not seen: {what}"
        time.sleep(0.005)
