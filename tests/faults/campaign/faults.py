"""Every fault, by its name. Each function breaks something, waits until it sees that it is broken, and mends it."""

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from audit_stream.scripts import append_script
from tests.faults.campaign.disk import filled
from tests.faults.campaign.site import CHAIN, Kind, Site, allow_open_files
from tests.faults.processes import stopped
from tests.faults.proxy import Cut
from tests.integration.sse_client import open_stream, take

IDLE_CONNECTIONS = 10_000
HALF_REQUESTS = 50
PATIENCE_S = 60
HOUR = timedelta(hours=1)


class NotHere(Exception):
    """This machine does not permit the fault; says why."""


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not seen: {what}"
        time.sleep(0.005)


# --- processes


def kill_server(site: Site, rng: random.Random) -> None:
    number = rng.randrange(len(site.servers))
    site.kill_server(number)
    site.start_server(number)


def stop_server(site: Site, rng: random.Random) -> None:
    server = rng.choice(site.servers)
    with stopped(server.pid):
        assert site.prober.ask(server.url, timeout_s=0.3) is None


def kill_redis(site: Site, rng: random.Random) -> None:
    site.primary.kill()
    if rng.random() < 0.5:
        site.prober.until_refused(rng.choice(site.urls), "Redis is away")
    site.primary.start()


def stop_redis(site: Site, rng: random.Random) -> None:
    with stopped(site.primary.process.pid):
        site.prober.until_refused(rng.choice(site.urls))


def tear_aof(site: Site, rng: random.Random) -> None:
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


# --- connections


def _cut(site: Site, rng: random.Random, cut: Cut) -> None:
    proxy = rng.choice(site.proxies)
    proxy.cut_next(*[cut] * rng.randint(1, 3))
    assert proxy.has_cut.wait(PATIENCE_S)


def cut_request(site: Site, rng: random.Random) -> None:
    _cut(site, rng, "before")


def cut_reply(site: Site, rng: random.Random) -> None:
    _cut(site, rng, "after")


def kill_clients(site: Site, rng: random.Random) -> None:
    until(lambda: site.primary.client.client_kill_filter(_type="normal") > 0, "connections to be killed")


def silence(site: Site, rng: random.Random) -> None:
    """Half-open: the connections to Redis stand, and not a byte comes through."""
    number = rng.randrange(len(site.proxies))
    site.proxies[number].hush("all", new=rng.random() < 0.5)
    site.prober.until_refused(site.urls[number])
    site.proxies[number].speak()


def slow_redis(site: Site, rng: random.Random) -> None:
    """Now slower than usual, now slower than a server waits."""
    number = rng.randrange(len(site.proxies))
    delay_s = rng.choice([0.05, 0.3, 2.0])
    site.proxies[number].delay_s = delay_s
    try:
        if delay_s > 1:
            site.prober.until_refused(site.urls[number])
        else:
            begun = time.monotonic()
            site.prober.until_appended(site.urls[number])
            assert time.monotonic() - begun >= delay_s
            site.load.wait_for(5)
    finally:
        site.proxies[number].delay_s = 0


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def half_requests(site: Site, rng: random.Random) -> None:
    """Half-open: producers that went away in the middle of a request without a word."""
    server = rng.choice(site.servers)
    whole = b'POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"kind":'
    before = _descriptors(server.pid)
    with ExitStack() as held:
        for _ in range(HALF_REQUESTS):
            connection = held.enter_context(_connect(server.url))
            connection.sendall(whole[: rng.randint(1, len(whole))])
        until(lambda: _descriptors(server.pid) >= before + HALF_REQUESTS // 2, "half requests held by the server")
        site.prober.until_appended(server.url)
        site.load.wait_for(5)


def idle_connections(site: Site, rng: random.Random) -> None:
    if not allow_open_files(IDLE_CONNECTIONS + 1000):
        raise NotHere(f"a process may not open {IDLE_CONNECTIONS + 1000} files here")
    server = rng.choice(site.servers)
    with ExitStack() as held:
        for _ in range(IDLE_CONNECTIONS):
            held.enter_context(_connect(server.url))
        until(lambda: _descriptors(server.pid) >= IDLE_CONNECTIONS, "idle connections held by the server")
        site.prober.until_appended(server.url)
        site.load.wait_for(10)


def _connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=PATIENCE_S)


# --- readers


def stop_reader(site: Site, rng: random.Random) -> None:
    reader = rng.choice(site.readers)
    with stopped(reader.process.pid):
        site.load.wait_for(rng.randint(5, 20))
        until(lambda: site.head() > reader.last_seen, "a reader that is behind")


def slow_reader(site: Site, rng: random.Random) -> None:
    """It reads a little, then nothing while the others go on, then all of the rest."""

    async def read() -> list[int]:
        after = max(0, site.head() - 3000)
        async with open_stream(rng.choice(site.urls), last_event_id=after, receive_buffer=4096) as stream:
            ids = [frame.id or 0 for frame in await take(stream, 3)]
            await asyncio.to_thread(site.load.wait_for, 15)
            head = await asyncio.to_thread(site.head)
            assert head > ids[-1]
            async for frame in stream.events():
                ids.append(frame.id or 0)
                if ids[-1] >= head:
                    break
        assert ids == list(range(after + 1, head + 1))
        return ids

    asyncio.run(read())


# --- Redis forgets, or takes no writes


def flush_scripts(site: Site, rng: random.Random) -> None:
    with site.primary.client.pipeline(transaction=True) as pipeline:
        pipeline.script_flush()
        pipeline.execute_command("SCRIPT EXISTS", append_script()[1])
        assert pipeline.execute()[1] == [False]


def fill_memory(site: Site, rng: random.Random) -> None:
    site.primary.client.config_set("maxmemory", 1)
    try:
        site.prober.until_refused(rng.choice(site.urls), "out of memory")
    finally:
        site.primary.client.config_set("maxmemory", 0)


def fill_disk(site: Site, rng: random.Random) -> None:
    """Valkey that cannot write what it must fsync does not answer: it ends."""
    if site.why_no_small_disk:
        raise NotHere(site.why_no_small_disk)
    with filled(site.disk):
        site.prober.until_refused(rng.choice(site.urls))
        assert site.primary.process.wait(PATIENCE_S) == 1
    site.primary.start()


# --- clocks


_AN_HOUR_AHEAD = """
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1]
local ms, id = string.match(newest, '^(%d+)-(%d+)$')
redis.call('XDEL', KEYS[1], newest)
return redis.call('XADD', KEYS[1], string.format('%d-%s', tonumber(ms) + ARGV[1], id), '', '')
"""


def set_back_redis_clock(site: Site, rng: random.Random) -> None:
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


# --- replicas

_LAGGING = "only 0 of the promised 1 replicas"


def fail_over(site: Site, rng: random.Random) -> None:
    site.primary.kill()
    if rng.random() < 0.5:
        site.prober.until_refused(rng.choice(site.urls), "Redis is away")
    site.promote()


def kill_replica(site: Site, rng: random.Random) -> None:
    assert site.replica
    site.replica.kill()
    site.prober.until_refused(rng.choice(site.urls), _LAGGING)
    site.replica.start(replica_of=site.primary)


def stop_replica(site: Site, rng: random.Random) -> None:
    assert site.replica
    with stopped(site.replica.process.pid):
        site.prober.until_refused(rng.choice(site.urls), _LAGGING)


class Fault(NamedTuple):
    inject: Callable[[Site, random.Random], None]
    share: int
    """How often, next to the others: what takes long is seldom."""
    sites: tuple[Kind, ...] = ("one",)


BOTH: tuple[Kind, ...] = ("one", "pair")
FAULTS: dict[str, Fault] = {
    "SIGKILL a server": Fault(kill_server, 8, BOTH),
    "SIGSTOP a server": Fault(stop_server, 8),
    "SIGKILL Redis": Fault(kill_redis, 10, BOTH),
    "SIGKILL Redis, its log torn": Fault(tear_aof, 10),
    "SIGSTOP Redis": Fault(stop_redis, 8, BOTH),
    "cut before the request arrives": Fault(cut_request, 10, BOTH),
    "cut before the reply arrives": Fault(cut_reply, 10, BOTH),
    "CLIENT KILL": Fault(kill_clients, 8, BOTH),
    "half-open connections to Redis": Fault(silence, 3),
    "half-open connections to a server": Fault(half_requests, 5),
    "10,000 idle connections": Fault(idle_connections, 3),
    "slow Redis": Fault(slow_redis, 8),
    "SCRIPT FLUSH": Fault(flush_scripts, 10, BOTH),
    "maxmemory reached": Fault(fill_memory, 8),
    "disk full": Fault(fill_disk, 8),
    "Redis' clock set back an hour": Fault(set_back_redis_clock, 8),
    "a server's clock set back an hour": Fault(set_back_server_clock, 6),
    "an SSE reader stopped": Fault(stop_reader, 6),
    "a slow SSE reader": Fault(slow_reader, 6),
    "failover to the replica": Fault(fail_over, 10, ("pair",)),
    "SIGKILL the replica": Fault(kill_replica, 4, ("pair",)),
    "SIGSTOP the replica": Fault(stop_replica, 4, ("pair",)),
}
