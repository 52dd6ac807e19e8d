"""Faults in which another Redis takes the chain over while the one before is alive."""

import random
import time

import httpx

from tests.faults.campaign.crashes import LAGGING
from tests.faults.campaign.sites import ClusterSite, SentinelSite


def split_brain(site: SentinelSite, rng: random.Random) -> float:
    """The primary keeps its clients and a sentinel that believes in it; behind the cut another one is promoted.

    Returns the seconds from the cut until both servers append at the new primary, which is while it lasts.
    """
    site.net.cut()
    cut = time.monotonic()
    site.prober.until_refused(rng.choice(site.urls), *LAGGING)
    if rng.random() < 0.5:
        # Intact, as far as it goes: with events at its end that no replica has.
        httpx.get(f"{rng.choice(site.urls)}/verify", timeout=10, trust_env=False)
    old, new = site.net.promoted()
    for url in site.urls:
        site.prober.until_appended(url)
    took_s = time.monotonic() - cut
    assert site.net.still_believed()
    assert (old.client.info("replication")["role"], new.client.info("replication")["role"]) == ("master", "master")
    site.chain_has_moved()
    if rng.random() < 0.5:
        site.load.wait_for(5)
    site.net.heal(old)
    return took_s


def move_slot(site: ClusterSite, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        site.move_slowly(rng)
