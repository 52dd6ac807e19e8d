"""What all rows share: how large they are, how rounds take turns, and who makes the load."""

import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from benchmarks.load import Generator, Load

T = TypeVar("T")


class Scale(NamedTuple):
    rounds: int
    seconds: float = 1.0
    """Of load in one round on one side."""
    chain_events: int = 100_000
    """What is verified."""
    large_chain_events: int = 1_000_000
    small_chain_events: int = 10_000
    subscribers: int = 1000
    burst_events: int = 50
    flat_out_posts: int = 1000
    """Appended as fast as it goes while all subscribers read along: a burst, which they may get a moment later."""
    sustained_posts: int = 5000
    """The same for so long that they have to keep pace."""
    bus_messages: int = 20_000
    """Posted to a log in one round, and read again."""
    lookups: int = 500
    """Of each kind in a round of the rows on a long chain."""


QUICK = Scale(
    rounds=1,
    seconds=0.3,
    chain_events=4_000,
    large_chain_events=8_000,
    small_chain_events=2_000,
    subscribers=20,
    burst_events=20,
    flat_out_posts=100,
    sustained_posts=200,
    bus_messages=2_000,
    lookups=50,
)


class Session(NamedTuple):
    scale: Scale
    generator: Generator

    def take_turns(self, sides: dict[str, Callable[[], T]], *, warm_up: bool = True) -> dict[str, list[T]]:
        """Run the sides ABAB…, so that what disturbs the machine disturbs all of them; one round before is not kept."""
        found: dict[str, list[T]] = {name: [] for name in sides}
        if warm_up and self.scale.rounds > 1:
            for side in sides.values():
                side()
        for round_ in range(self.scale.rounds):
            for name, side in sides.items():
                found[name].append(side())
            print(f"  round {round_ + 1} of {self.scale.rounds}", end="\r", file=sys.stderr, flush=True)
        return found

    def posting(self, url: str, body: bytes, *, connections: int) -> Callable[[], Load]:
        return lambda: self.generator.post(url, body, connections=connections, seconds=self.scale.seconds)


def rates(loads: list[Load]) -> list[float]:
    return [load.rate for load in loads]


def busy(loads: list[Load]) -> list[float]:
    return [load.busy for load in loads]
