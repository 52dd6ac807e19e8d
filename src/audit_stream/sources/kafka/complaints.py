"""A log that an outage does not flood: each cause is logged at once, and then once a minute with how often it came.

librdkafka and its callbacks report the same failed connection several times for each attempt, for as long as a broker
is unavailable. Records and dead letters are not complaints: each of them is logged.
"""

import logging
import re
import threading
import time
from collections.abc import Callable

EVERY_S = 60.0

log = logging.getLogger("audit_stream.kafka")
_librdkafka = logging.getLogger("audit_stream.librdkafka")


class Complaints:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._logged: dict[str, tuple[float, int]] = {}
        """When a cause was last logged, and how often it has come since."""

    def warn(self, text: str) -> None:
        self._say(log, logging.WARNING, text)

    def log(self, level: int, message: str, *arguments: object) -> None:
        """Take a line of librdkafka's, as a logger does."""
        text = message % arguments
        # One file of properties serves consumers and producers, and each is told of those that are the other's.
        if not text.startswith("CONFWARN"):
            self._say(_librdkafka, level, text)

    def _say(self, logger: logging.Logger, level: int, text: str) -> None:
        if not logger.isEnabledFor(level):
            return
        now, cause = self._clock(), cause_of(text)
        with self._lock:
            at, count = self._logged.get(cause, (now - EVERY_S, 0))
            if now - at < EVERY_S:
                self._logged[cause] = at, count + 1
                return
            # A cause that came once and never again is forgotten here, so that causes do not pile up.
            self._logged = {name: was for name, was in self._logged.items() if was[1] or now - was[0] < EVERY_S}
            self._logged[cause] = now, 0
        logger.log(level, "%s%s", text, f" ({count:,} more like this since)" if count else "")


def cause_of(text: str) -> str:
    """The text without what differs from one attempt, client or way of reporting to the next."""
    text = re.sub(r"^(kafka: |\w+ \[.*?\] (\[thrd:.*?\]: )?)", "", text)
    return re.sub(r" ?\(after .*\)", "", text)
