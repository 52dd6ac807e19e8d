"""Faults of processes: one dies, hangs, or is started while another is not ready for it."""

import os
import random
import threading
from pathlib import Path

from tests.faults.campaign.disk import filled
from tests.faults.campaign.moments import PATIENCE_S, NotHere, until
from tests.faults.campaign.site import Site
from tests.faults.campaign.sites import OneSite, PairSite
from tests.faults.processes import stopped

LAGGING = ("only 0 of the promised 1 replicas", "replicas is 0, should be 1 or more")
"""What a server says after it has waited in vain, and after it has seen that it would."""
BALLAST_KEYS = 5000
LOADS_SLOWLY = {"key_load_delay": "4000", "loading_process_events_interval_bytes": "1024"}
"""4 ms for each key, so 20 s for all. Commands are answered every 25 keys: sooner than a server gives up on Redis."""


def kill_server(site: Site, rng: random.Random) -> None:
    number = rng.randrange(len(site.servers))
    site.kill_server(number)
    site.start_server(number)


def stop_server(site: Site, rng: random.Random) -> None:
    server = rng.choice(site.servers)
    with stopped(server.pid):
        assert site.prober.ask(server.url, timeout_s=0.3) is None


def kill_redis(site: OneSite, rng: random.Random) -> None:
    site.primary.kill()
    if rng.random() < 0.5:
        site.prober.until_refused(rng.choice(site.urls), "Redis is away")
    site.primary.start()


def stop_redis(site: OneSite, rng: random.Random) -> None:
    with stopped(site.primary.process.pid):
        site.prober.until_refused(rng.choice(site.urls))


def tear_aof(site: OneSite, rng: random.Random) -> None:
    """Power is lost while Redis writes: its log ends somewhere in what nobody was answered yet."""
    for proxy in site.proxies:
        proxy.hush("answers", new=True)
    answered = site.primary.written_bytes()
    until(lambda: site.primary.written_bytes() > answered, "a write that nobody was answered")
    site.primary.kill()
    end = rng.randrange(answered, site.primary.written_bytes())
    os.truncate(site.primary.log_of_writes, end)
    for proxy in site.proxies:
        proxy.speak()
    site.primary.start()


def fill_disk(site: OneSite, rng: random.Random) -> None:
    """Valkey that cannot write what it must fsync does not answer: it ends."""
    if site.why_no_small_disk:
        raise NotHere(site.why_no_small_disk)
    with filled(site.disk):
        site.prober.until_refused(rng.choice(site.urls))
        assert site.primary.process.wait(PATIENCE_S) == 1
    site.primary.start()


def start_while_loading(site: OneSite, rng: random.Random) -> None:
    """A machine starts Redis and a server at once, and Redis has much to load."""
    number, redis = rng.randrange(len(site.servers)), site.primary
    # Written in one piece, and not as single commands: only so is Redis able to answer while it loads.
    redis.client.mset({f"ballast-{n}": os.urandom(200) for n in range(BALLAST_KEYS)})
    redis.rewrite_log()
    site.kill_server(number)
    redis.kill()
    usual = redis.options
    redis.options = usual | LOADS_SLOWLY
    redis.start(wait=False)
    log = Path(site.folder, "started-while-loading.log")
    with log.open("wb") as file:
        starting = threading.Thread(target=site.start_server, args=(number, file))
        starting.start()
        try:
            until(lambda: b"is loading its data" in log.read_bytes(), "a server that waits for Redis to load")
            assert starting.is_alive()
            assert redis.client.info("persistence")["loading"]
        finally:
            redis.options = usual
            redis.client.config_set("key-load-delay", 0)
            starting.join(PATIENCE_S)
    redis.client.delete(*(f"ballast-{n}" for n in range(BALLAST_KEYS)))


# --- replicas


def fail_over(site: PairSite, rng: random.Random) -> None:
    site.primary.kill()
    if rng.random() < 0.5:
        site.prober.until_refused(rng.choice(site.urls), "Redis is away")
    site.promote()


def kill_replica(site: PairSite, rng: random.Random) -> None:
    site.replica.kill()
    site.prober.until_refused(rng.choice(site.urls), *LAGGING)
    site.replica.start(replica_of=site.primary)


def stop_replica(site: PairSite, rng: random.Random) -> None:
    with stopped(site.replica.process.pid):
        site.prober.until_refused(rng.choice(site.urls), *LAGGING)
