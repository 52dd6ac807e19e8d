"""Days until the memory of Redis is full: on the chain's own commit times, in /stats, /metrics and doctor."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import pytest
import redis

from audit_stream.capacity import DAY, Capacity, CapacityWatch, Growth, growth
from audit_stream.keys import Keys
from audit_stream.stream import Stream
from tests.harness import ServerProcess, clean_environ

Answer = TypeVar("Answer")

HOUR_MS = 3_600_000


def commit_at(redis_url: str, chain: str, hours_ago: list[float]) -> None:
    """Write the time index anew: event n was committed so many hours ago."""
    with redis.Redis.from_url(redis_url) as client:
        now_ms = int(client.time()[0]) * 1000
        client.unlink(Keys(chain).time)
        with client.pipeline() as pipeline:
            for event_id, hours in enumerate(hours_ago, 1):
                pipeline.xadd(Keys(chain).time, {"": ""}, f"{now_ms - int(hours * HOUR_MS)}-{event_id}")
            pipeline.execute()


async def asked(
    redis_url: str, chain: str, ask: Callable[[Stream], Awaitable[Answer]], kind: type[Stream] = Stream
) -> Answer:
    stream = kind.at(redis_url, chain)
    try:
        return await ask(stream)
    finally:
        await stream.close()


def some_events(count: int) -> list[dict[str, object]]:
    return [{"kind": "other", "source": "s", "payload": {"n": number}} for number in range(count)]


@pytest.mark.parametrize(
    ("hours_ago", "recent", "window"),
    [
        ([50, 49, 30, 20, 2, 1], 3, DAY),
        ([3, 2, 2, 1, 1, 0.5], 6, timedelta(hours=3)),
        ([60, 50, 40, 39, 38, 37], 0, DAY),
    ],
)
def test_the_rate_is_that_of_the_last_day_or_of_the_chain_s_life(
    server: ServerProcess, redis_url: str, chain: str, hours_ago: list[float], recent: int, window: timedelta
) -> None:
    server.post_batch(some_events(len(hours_ago))).raise_for_status()
    commit_at(redis_url, chain, hours_ago)
    found = asyncio.run(asked(redis_url, chain, growth))
    assert (found.events, found.recent) == (len(hours_ago), recent)
    assert abs(found.window - window) < timedelta(minutes=1)


def test_an_empty_chain_does_not_grow(redis_url: str, chain: str) -> None:
    assert asyncio.run(asked(redis_url, chain, growth)) == Growth(0, 0, timedelta(0))


def test_stats_metrics_and_doctor_say_when_redis_is_full(server: ServerProcess, redis_url: str, chain: str) -> None:
    server.post_batch(some_events(1_000)).raise_for_status()
    commit_at(redis_url, chain, [2 - number / 1_000 for number in range(1_000)])
    capacity = server.get("/stats").json()["capacity"]
    days = capacity["days_until_full"]
    assert 0 < capacity["used_bytes"] < capacity["limit_bytes"]
    assert days > 0
    scraped = dict(line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(scraped["audit_stream_days_until_full"]) == pytest.approx(days, abs=0.05)
    assert float(scraped["audit_stream_redis_memory_bytes"]) == capacity["used_bytes"]
    assert float(scraped["audit_stream_redis_memory_limit_bytes"]) == capacity["limit_bytes"]
    for flags in (["--url", server.url], ["--redis-url", redis_url, "--chain", chain]):
        (memory,) = [check for check in doctor(*flags) if check["name"] == "memory"]
        assert memory["fine"] is (days >= 14)
        assert re.fullmatch(r"[\d.,]+ [KM]B of [\d.,]+ [MG]B, full in [\d,]+ days", str(memory["found"]))


def doctor(*flags: str) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "audit_stream", "doctor", "--json", *flags]
    done = subprocess.run(command, env=clean_environ(), capture_output=True, check=False)
    found: list[dict[str, object]] = json.loads(done.stdout)["checks"]
    return found


def test_redis_is_asked_once_a_minute_however_often_it_is_scraped(redis_url: str, chain: str) -> None:
    looks = 0

    class Counted(Stream):
        async def facts(self) -> dict[str, str]:
            nonlocal looks
            looks += 1
            return await super().facts()

    async def scrape(stream: Stream) -> list[Capacity | None]:
        watch = CapacityWatch(stream)
        return await asyncio.gather(*(watch.now() for _ in range(20)))

    found = asyncio.run(asked(redis_url, chain, scrape, Counted))
    assert looks == 1
    assert set(found) == {found[0]}
    assert isinstance(found[0], Capacity)


def test_a_redis_that_denies_info_has_no_capacity(redis_url: str, chain: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser(chain, enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"])
        try:
            url = with_user(redis_url, chain)
            assert asyncio.run(asked(url, chain, lambda stream: CapacityWatch(stream).now())) is None
        finally:
            client.acl_deluser(chain)


def with_user(redis_url: str, name: str) -> str:
    if redis_url.startswith("unix://"):
        return f"{redis_url}?username={name}&password=any"
    return redis_url.replace("redis://", f"redis://{name}:any@")
