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

    def take(self, amount: float, now: float) -> float:
        """Charge it and return 0; or charge nothing and return in how many seconds the next is due."""
        paid_until = self._paid_until
        if paid_until < now:
            paid_until = now
        owed_s = paid_until - now - self._burst_s
        # A whole burst is taken when nothing is left of it, but for the rounding of floats.
        if owed_s > -1e-9:
            return max(owed_s, 1e-9)
        self._paid_until = paid_until + amount / self.per_second
        return 0.0

    def owe(self, amount: float, now: float) -> None:
        """Charge what could not be known before."""
        self._paid_until = max(self._paid_until, now) + amount / self.per_second
