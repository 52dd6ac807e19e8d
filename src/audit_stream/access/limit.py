"""How much a token may do in a second."""


class Limit:
    """`per_second` in the long run, and what `burst_s` would bring at once (GCRA; ITU-T I.371).

    Looked at first and charged afterwards, so that what is larger than a second's worth passes too:
    the time it took is then owed by what follows. Counts in this process only.
    """

    __slots__ = ("_burst_s", "_paid_until", "per_second")

    def __init__(self, per_second: float, *, burst_s: float = 1.0) -> None:
        self.per_second = per_second
        self._burst_s = burst_s
        self._paid_until = 0.0

    def wait_s(self, now: float) -> float:
        """How long until the next one is due; 0 when it is."""
        owed = self._paid_until - now - self._burst_s
        # A whole burst is taken when nothing is left of it, but for the rounding of floats.
        return max(owed, 1e-9) if owed > -1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        self._paid_until = max(self._paid_until, now) + amount / self.per_second
