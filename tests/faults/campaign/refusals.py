"""Faults in which Redis runs on, and forgets, refuses, keeps less than it should, or has the wrong time."""

import random
import time
from datetime import UTC, datetime, timedelta

import httpx

from audit_stream.readiness import EVERY_S
from audit_stream.scripts import append_script
from tests.faults.campaign.moments import until
from tests.faults.campaign.site import CHAIN, Site
from tests.faults.campaign.sites import USER, OneSite
from tests.faults.commands import OF_THE_SCRIPT

HOUR = timedelta(hours=1)
NOT_ALWAYS_NEEDED = ("XINFO", "XRANGE")
"""An append calls these when the chain's end looks cut, or has grown since the server's own last one."""
ENOUGH = str(1 << 30)
"""Bytes of memory that no campaign fills, so that nothing is evicted while it might be."""
FALLS_SHORT: tuple[dict[str, str], ...] = (
    {"appendfsync": "everysec"},
    {"appendonly": "no"},
    {"maxmemory": ENOUGH, "maxmemory-policy": "allkeys-lru"},
)
RIGHT = {"appendfsync": "always", "appendonly": "yes", "maxmemory-policy": "noeviction", "maxmemory": "0"}
SLACK_S = 2
"""For a check itself, on top of the time between two."""


def flush_scripts(site: OneSite, rng: random.Random) -> None:
    with site.primary.client.pipeline(transaction=True) as pipeline:
        pipeline.script_flush()
        pipeline.execute_command("SCRIPT EXISTS", append_script()[1])
        assert pipeline.execute()[1] == [False]


def fill_memory(site: OneSite, rng: random.Random) -> None:
    site.primary.client.config_set("maxmemory", 1)
    try:
        site.prober.until_refused(rng.choice(site.urls), "out of memory")
    finally:
        site.primary.client.config_set("maxmemory", 0)


def deny_command(site: OneSite, rng: random.Random) -> None:
    """Somebody takes a command of the script away from the servers' user, and gives it back."""
    command = rng.choice([*OF_THE_SCRIPT, "EVALSHA"])
    admin = site.primary.client
    admin.execute_command("ACL", "SETUSER", USER, f"-{command.lower()}")
    try:
        if command in NOT_ALWAYS_NEEDED:
            for url in site.urls:
                site.prober.ask(url)
            time.sleep(rng.uniform(0, 0.5))
        else:
            site.prober.until_refused(rng.choice(site.urls), f"'{command.lower()}'")
    finally:
        admin.execute_command("ACL", "SETUSER", USER, f"+{command.lower()}")


def change_settings(site: OneSite, rng: random.Random) -> None:
    """Somebody changes what Redis keeps: every server finds out, and takes no append until it is right again."""
    wrong = rng.choice(FALLS_SHORT)
    setting = list(wrong)[-1]
    changed = time.monotonic()
    for name, value in wrong.items():
        site.primary.client.config_set(name, value)
    try:
        for url in site.urls:
            until(lambda url=url: _not_ready_for(url, setting), f"/readyz that names {setting}")  # type: ignore[misc]
            answer = site.prober.ask(url)
            assert answer is not None
            assert (answer.status_code, setting in answer.text) == (503, True), answer.text
        took_s = time.monotonic() - changed
        assert took_s < EVERY_S + SLACK_S, f"{setting} was noticed after {took_s:.1f} s"
    finally:
        for name in wrong:
            site.primary.client.config_set(name, RIGHT[name])
    put_right = time.monotonic()
    for url in site.urls:
        site.prober.until_appended(url)
    took_s = time.monotonic() - put_right
    assert took_s < EVERY_S + SLACK_S, f"appends came back {took_s:.1f} s after {setting} was right again"


def _not_ready_for(url: str, setting: str) -> bool:
    answer = httpx.get(f"{url}/readyz", timeout=10, trust_env=False)
    return answer.status_code == 503 and setting in answer.text


# --- clocks


_AN_HOUR_AHEAD = """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1]
local ms, id = string.match(newest, '^(%d+)-(%d+)$')
redis.call('XDEL', KEYS[1], newest)
return redis.call('XADD', KEYS[1], string.format('%d-%s', tonumber(ms) + ARGV[1], id), '', '')
"""


def set_back_redis_clock(site: OneSite, rng: random.Random) -> None:
    """The newest event was committed an hour from now: what Redis finds when its clock was set back."""
    client = site.primary.client
    newest = client.eval(_AN_HOUR_AHEAD, 1, f"{{{CHAIN}}}:time", int(HOUR.total_seconds() * 1000))
    seconds, _ = client.time()
    assert int(newest.partition(b"-")[0]) // 1000 - seconds > HOUR.total_seconds() - 60
    site.load.wait_for(5)


def set_back_server_clock(site: Site, rng: random.Random) -> None:
    site.clock_set_back.touch()
    try:
        receipt = site.prober.until_appended(site.urls[1])
        assert datetime.now(UTC) - datetime.fromisoformat(receipt["timestamp"]) > HOUR - timedelta(minutes=1)
        site.load.wait_for(5)
    finally:
        site.clock_set_back.unlink()
