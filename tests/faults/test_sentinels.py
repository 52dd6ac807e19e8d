"""A chain behind sentinels: the servers go where the sentinels point, and nowhere else."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from audit_stream.appender import Appender
from audit_stream.errors import Denied, Misconfigured, Unreachable
from audit_stream.event import Draft, PublishRequest, draft
from audit_stream.kinds import BUILT_IN
from audit_stream.settings import Settings
from audit_stream.spine import check
from audit_stream.stream import Stream
from tests.faults.campaign.valkey import Valkey
from tests.faults.evidence import check_load
from tests.faults.load import Load, Spec
from tests.harness import running_server
from tests.sentinels import MASTER, Sentinel, Watched, a_sentinel, watched

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A primary, a replica and three sentinels with a password of their own."""
    with watched(tmp_path_factory.mktemp("site"), password="spoken") as running:
        yield running


def with_password(site: Watched) -> str:
    return f"{site.url}?sentinel_password=spoken"


def test_after_the_primarys_death_appends_go_on_at_the_promoted_replica_with_nothing_lost(
    site: Watched, chain: str
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(
            running_server(
                AUDIT_STREAM_REDIS_URL=with_password(site),
                AUDIT_STREAM_CHAIN=chain,
                AUDIT_STREAM_ACK="fsync,replicas=1",
            )
        )
        load = stack.enter_context(Load(*(Spec(name=f"producer-{n}", urls=[server.url], tasks=2) for n in range(2))))
        load.wait_for(20)
        old = site.primary()
        old.kill()
        new = site.promoted_after(old)
        old.start(replica_of=new)  # one must hold each event besides the primary
        load.wait_for(20)
        check_load(new.url, chain, load.finish())


async def test_reads_and_appends_leave_the_old_primary_when_the_sentinels_name_another(
    site: Watched, chain: str
) -> None:
    stream = Stream.at(with_password(site), chain)
    try:
        async with Appender(stream) as appender:
            old = site.primary()
            await appender.append([an_event()])
            assert (await stream.facts())["tcp_port"] == str(old.port)
            assert not await stream.follow_owner()
            new = await asyncio.to_thread(site.fail_over)
            assert await stream.follow_owner()
            assert (await stream.facts())["tcp_port"] == str(new.port)
            await appender.append([an_event()])
            assert not await stream.follow_owner()
        assert new.client.xlen(stream.keys.events) == 2
    finally:
        await stream.close()


def an_event() -> Draft:
    return draft(PublishRequest(kind="other", source="s"), frozenset(BUILT_IN))


async def refusal_of(url: str) -> str:
    settings = Settings.from_env({"AUDIT_STREAM_REDIS_URL": url})
    stream = Stream.at(url)
    try:
        with pytest.raises(Misconfigured) as caught:
            await check(stream, settings)
        assert isinstance(caught.value.__cause__, Denied)
    finally:
        await stream.close()
    return str(caught.value)


async def test_a_wrong_name_of_the_master_is_said_at_once(site: Watched) -> None:
    refusal = await refusal_of(with_password(site).replace(f"/{MASTER}/", "/nomaster/"))
    assert "watches no master 'nomaster': correct the name in the address" in refusal


async def test_sentinels_that_want_a_password_say_so_at_once(site: Watched) -> None:
    assert "the sentinel at 127.0.0.1:" in (refusal := await refusal_of(site.url))
    assert "wants a password" in refusal
    assert "sentinel_" in refusal


async def test_a_redis_in_place_of_a_sentinel_is_said_at_once(site: Watched) -> None:
    server = site.servers[0]
    refusal = await refusal_of(f"redis+sentinel://127.0.0.1:{server.port}/{MASTER}")
    assert f"the server at 127.0.0.1:{server.port} is not a sentinel" in refusal


async def test_sentinels_that_are_gone_are_named(chain: str) -> None:
    stream = Stream.at("redis+sentinel://127.0.0.1:1,127.0.0.1:2/mymaster", chain)
    with pytest.raises(Unreachable, match=r"no sentinel answers at 127.0.0.1:1, 127.0.0.1:2"):
        await stream.facts()
    await stream.close()


# --- sentinels that are wrong


async def test_a_replica_that_a_sentinel_names_is_not_written_to(tmp_path: Path, chain: str) -> None:
    with ExitStack() as stack:
        primary = stack.enter_context(Valkey(tmp_path / "primary"))
        replica = stack.enter_context(Valkey(tmp_path / "replica", replica_of=primary))
        replica.client.config_set("replica-read-only", "no")  # it would take the write, and lose it
        sentinel = stack.enter_context(a_sentinel(tmp_path / "sentinel", replica.port))
        assert f"127.0.0.1:{replica.port} as the master 'mymaster', but it is a replica" in await refusal_to_write(
            sentinel, chain
        )
        assert replica.client.keys(f"{{{chain}}}:*") == []


async def test_a_server_that_is_not_a_redis_is_said_to_be_none(tmp_path: Path, chain: str) -> None:
    with ExitStack() as stack:
        web = await asyncio.start_server(answer_as_a_web_server, "127.0.0.1", 0)
        stack.callback(web.close)
        port = web.sockets[0].getsockname()[1]
        sentinel = stack.enter_context(a_sentinel(tmp_path / "sentinel", port))
        refusal = await refusal_to_write(sentinel, chain)
        assert f"the server at 127.0.0.1:{port}, which we were sent to, does not answer as a Redis does" in refusal


async def answer_as_a_web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    writer.close()


async def refusal_to_write(sentinel: Sentinel, chain: str) -> str:
    await asyncio.to_thread(sentinel.until_it_answers)
    stream = Stream.at(f"redis+sentinel://{sentinel.address}/{MASTER}", chain)
    try:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1") as caught:
            await stream.rebuilding.fill([(stream.keys.time, b"1-1")], kept_s=60)
        return str(caught.value)
    finally:
        await stream.close()
