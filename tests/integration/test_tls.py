"""TLS to a Redis, to sentinels and the primary behind them, and to a cluster: options of the address."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from audit_stream import spine
from audit_stream.addresses import OPTIONS, parse
from audit_stream.connection import connect
from audit_stream.errors import Denied, Misconfigured
from audit_stream.settings import Settings
from audit_stream.spine import check
from audit_stream.stream import Stream
from tests.cluster import a_cluster
from tests.faults.campaign.valkey import Valkey
from tests.faults.processes import free_port
from tests.harness import ROOT
from tests.sentinels import MASTER, a_sentinel
from tests.tls import Authority, handshakes, tls_front

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("own") / "data") as running:
        yield running


@asynccontextmanager
async def at(url: str, chain: str) -> AsyncIterator[Stream]:
    stream = Stream.at(url, chain)
    try:
        yield stream
    finally:
        await stream.close()


async def works(url: str, chain: str) -> dict[str, str]:
    """Start on it, write, read, and return the facts."""
    settings = Settings.from_env({"AUDIT_STREAM_REDIS_URL": url, "AUDIT_STREAM_CHAIN": chain})
    async with at(url, chain) as stream:
        facts = await check(stream, settings)
        await stream.rebuilding.fill([(stream.keys.time, b"1-1")], kept_s=60)
        assert await stream.indexes.times(b"0-0", count=1) == [(b"1-1", 1)]
        await stream.rebuilding.drop([stream.keys.time])
        assert not await stream.follow_owner()
    return facts


async def refusal_of(url: str, chain: str) -> str:
    settings = Settings.from_env({"AUDIT_STREAM_REDIS_URL": url, "AUDIT_STREAM_CHAIN": chain})
    async with at(url, chain) as stream:
        with pytest.raises(Misconfigured) as caught:
            await check(stream, settings)
    assert isinstance(caught.value.__cause__, Denied)  # at once
    return str(caught.value)


async def test_a_redis_behind_tls_is_reached_with_its_authority(
    valkey: Valkey, authority: Authority, chain: str
) -> None:
    with tls_front(authority.server_context(), valkey.port) as [port]:
        await works(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.ca_certs}", chain)
        await works(f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none", chain)


async def test_a_certificate_that_is_not_trusted_is_refused_at_once_with_its_reason(
    valkey: Valkey, authority: Authority, chain: str
) -> None:
    with tls_front(authority.server_context(), valkey.port) as [port]:
        refusal = await refusal_of(f"rediss://127.0.0.1:{port}/0", chain)
    assert "the certificate of Redis is refused: unable to get local issuer certificate" in refusal
    assert "ssl_ca_certs" in refusal


async def test_a_certificate_of_another_name_is_refused_unless_the_name_does_not_count(
    valkey: Valkey, authority: Authority, chain: str
) -> None:
    with tls_front(authority.server_context("redis.example.org"), valkey.port) as [port]:
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority.ca_certs}"
        assert "IP address mismatch" in await refusal_of(url, chain)
        await works(f"{url}&ssl_check_hostname=off", chain)


async def test_a_redis_that_wants_a_certificate_of_its_clients_gets_it(
    valkey: Valkey, authority: Authority, chain: str
) -> None:
    context = authority.server_context(wants_certificate=True)
    options = f"ssl_ca_certs={authority.ca_certs}"
    with handshakes(context) as port:
        refusal = await refusal_of(f"rediss://127.0.0.1:{port}/0?{options}", chain)
        assert "It may want a certificate of its clients: ssl_certfile and ssl_keyfile in the address" in refusal
    options += f"&ssl_certfile={authority.client_cert}&ssl_keyfile={authority.client_key}"
    with tls_front(context, valkey.port) as [port]:
        await works(f"rediss://127.0.0.1:{port}/0?{options}", chain)


async def test_a_port_without_tls_is_asked_after(valkey: Valkey, chain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Redis takes the handshake for the beginning of a command, and waits for the rest of it.
    monkeypatch.setattr(spine, "REACHABLE_WITHIN_S", 0.1)
    with pytest.raises(Misconfigured, match="and that it speaks TLS"):
        await works(f"rediss://127.0.0.1:{valkey.port}/0", chain)


async def test_a_server_that_answers_without_tls_is_said_to_have_none(chain: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"-ERR what is this?\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        refusal = await refusal_of(f"rediss://127.0.0.1:{port}/0", chain)
    assert "Redis does not speak TLS at this port" in refusal


async def test_sentinels_and_the_primary_behind_them_are_reached_by_tls(
    valkey: Valkey, authority: Authority, tmp_path: Path, chain: str
) -> None:
    with ExitStack() as stack:
        [port] = stack.enter_context(tls_front(authority.server_context(), valkey.port))
        sentinel = stack.enter_context(a_sentinel(tmp_path / "sentinel", port))  # it names the port that speaks TLS
        sentinel.until_it_answers()
        [sentinel_port] = stack.enter_context(tls_front(authority.server_context(), sentinel.port))
        options = f"ssl_ca_certs={authority.ca_certs}"
        await works(f"rediss+sentinel://127.0.0.1:{sentinel_port}/{MASTER}/0?{options}", chain)
        await works(f"rediss+sentinel://{sentinel.address}/{MASTER}?{options}&sentinel_tls=off", chain)
        wrong = (
            f"rediss+sentinel://127.0.0.1:{sentinel_port}/{MASTER}?ssl_cert_reqs=none&sentinel_ssl_cert_reqs=required"
        )
        refusal = await refusal_of(wrong, chain)
        assert f"the sentinel at 127.0.0.1:{sentinel_port}: the certificate of Redis is refused" in refusal


async def test_a_cluster_is_reached_by_tls(authority: Authority, tmp_path: Path, chain: str) -> None:
    announced = free_port()
    with (
        a_cluster(tmp_path / "cluster", masters=1, cluster_announce_port=str(announced)) as cluster,
        tls_front(authority.server_context(), cluster.nodes[0].port, at=(announced,)),
    ):
        facts = await works(f"rediss+cluster://127.0.0.1:{announced}?ssl_ca_certs={authority.ca_certs}", chain)
        assert facts["tcp_port"] == str(cluster.nodes[0].port)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
def test_a_file_that_is_not_there_is_named_before_anything_is_connected(option: str) -> None:
    with pytest.raises(Misconfigured, match=r"\(/nowhere\.pem\) cannot be used: No such file or directory"):
        connect(f"rediss://127.0.0.1:1?{option}=/nowhere.pem", "audit")


# --- the page for operators


PAGE = (ROOT / "docs" / "operators" / "connections.md").read_text()


@pytest.mark.parametrize("option", [name for name in OPTIONS if name.startswith("ssl_")])
async def test_each_option_of_tls_has_an_example_on_the_page_that_works(
    valkey: Valkey, authority: Authority, chain: str, option: str
) -> None:
    row = re.search(rf"^\| `{option}` \|.*\| `(.+?)` \|$", PAGE, flags=re.M)
    assert row, option
    url = row[1]
    assert f"{option}=" in url
    wants_certificate = "ssl_certfile" in url
    with tls_front(authority.server_context(wants_certificate=wants_certificate), valkey.port) as [port]:
        for shown, real in {
            "redis.example.org:6380": f"127.0.0.1:{port}",
            "/etc/ssl/redis-ca.pem": authority.ca_certs,
            "/etc/ssl/client.pem": authority.client_cert,
            "/etc/ssl/client-key.pem": authority.client_key,
        }.items():
            url = url.replace(shown, str(real))
        await works(url, chain)


def test_the_page_names_every_option_and_each_of_its_addresses_can_be_read() -> None:
    addresses = re.findall(r"`((?:rediss?(?:\+\w+)?|unix)://[^`]+)`", PAGE)
    assert {parse(address).kind for address in addresses} == {"plain", "unix", "sentinel", "cluster"}
    for option in OPTIONS:
        assert option.replace("sentinel_ssl_", "ssl_") in PAGE
