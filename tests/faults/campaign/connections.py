"""Faults of connections, and readers that are slow."""

import asyncio
import random
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults.campaign.moments import PATIENCE_S, NotHere, until
from tests.faults.campaign.site import Site, allow_open_files
from tests.faults.campaign.sites import OneSite
from tests.faults.processes import stopped
from tests.faults.proxy import Cut
from tests.integration.sse_client import open_stream, take

IDLE_CONNECTIONS = 10_000
HALF_REQUESTS = 50


# --- to Redis, and to a server


def _cut(site: OneSite, rng: random.Random, cut: Cut) -> None:
    proxy = rng.choice(site.proxies)
    proxy.cut_next(*[cut] * rng.randint(1, 3))
    assert proxy.has_cut.wait(PATIENCE_S)


def cut_request(site: OneSite, rng: random.Random) -> None:
    _cut(site, rng, "before")


def cut_reply(site: OneSite, rng: random.Random) -> None:
    _cut(site, rng, "after")


def kill_clients(site: OneSite, rng: random.Random) -> None:
    until(lambda: site.primary.client.client_kill_filter(_type="normal") > 0, "connections to be killed")


def silence(site: OneSite, rng: random.Random) -> None:
    """Half-open: the connections to Redis stand, and not a byte comes through."""
    number = rng.randrange(len(site.proxies))
    site.proxies[number].hush("all", new=rng.random() < 0.5)
    site.prober.until_refused(site.urls[number])
    site.proxies[number].speak()


def slow_redis(site: OneSite, rng: random.Random) -> None:
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
    whole = b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n"
    whole += b'{"kind":'
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


def stop_reader(site: OneSite, rng: random.Random) -> None:
    reader = rng.choice(site.readers)
    with stopped(reader.process.pid):
        site.load.wait_for(rng.randint(5, 20))
        until(lambda: site.head() > reader.last_seen, "a reader that is behind")


def slow_reader(site: OneSite, rng: random.Random) -> None:
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
