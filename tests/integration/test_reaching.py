"""What a server says of a Redis that it cannot use, or not yet: at its start, and in its answers."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from audit_stream import spine
from audit_stream.embedded import EmbeddedValkey
from audit_stream.errors import Denied, Misconfigured, Unreachable
from audit_stream.settings import Settings
from audit_stream.spine import check
from audit_stream.stream import Stream
from tests.e2e.terminal import run
from tests.faults.campaign.valkey import Valkey
from tests.faults.processes import free_port
from tests.harness import running_server

pytestmark = pytest.mark.anyio

ALL_BUT = {
    "INFO": "-info",
    "EVAL": "-eval",
    "XRANGE": "-xrange",
    "TYPE": "-type",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """Ours alone, so that it may have users."""
    with EmbeddedValkey(tmp_path_factory.mktemp("own")) as running:
        yield running


@pytest.fixture(scope="module")
def admin(valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        yield client


@asynccontextmanager
async def at(url: str, chain: str) -> AsyncIterator[Stream]:
    stream = Stream.at(url, chain)
    try:
        yield stream
    finally:
        await stream.close()


def as_user(valkey: EmbeddedValkey, user: str, password: str) -> str:
    return valkey.url.replace("unix://", f"unix://{quote(user)}:{quote(password)}@")


async def checked(url: str, chain: str) -> dict[str, str]:
    settings = Settings.from_env({"AUDIT_STREAM_REDIS_URL": url, "AUDIT_STREAM_CHAIN": chain})
    async with at(url, chain) as stream:
        return await check(stream, settings)


async def refusal_of(url: str, chain: str) -> str:
    """Of a start that is refused at once."""
    with pytest.raises(Misconfigured) as caught:
        await checked(url, chain)
    assert isinstance(caught.value.__cause__, Denied)
    return str(caught.value)


# --- refused at once


@pytest.mark.parametrize("command", ALL_BUT)
async def test_a_user_without_a_command_is_told_which_one_and_how_to_permit_it(
    valkey: EmbeddedValkey, admin: redis.Redis, chain: str, command: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">p@ss:word", "~*", "+@all", ALL_BUT[command])
    refusal = await refusal_of(as_user(valkey, "app", "p@ss:word"), chain)
    assert "Redis does not permit this user what audit-stream needs: " in refusal
    assert f"Permit it: ACL SETUSER app +{command.lower().replace(' ', '|')}" in refusal


async def test_a_user_without_the_chains_keys_is_told_so(
    valkey: EmbeddedValkey, admin: redis.Redis, chain: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", "~{other}:*", "+@all")
    assert "Permit the chain's keys: ACL SETUSER" in await refusal_of(as_user(valkey, "app", "secret"), chain)


@pytest.mark.parametrize(
    ("user", "password", "words"),
    [
        ("app", "wrong", "Redis refuses the user name or password of the address: invalid username-password pair"),
        ("nobody", "secret", "Redis refuses the user name or password of the address: invalid username-password pair"),
        ("", "secret", "Redis has no password, and the address has one: leave the password out of the address"),
    ],
)
async def test_a_wrong_login_is_refused_without_repeating_the_password(
    valkey: EmbeddedValkey, admin: redis.Redis, chain: str, user: str, password: str, words: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", "~*", "+@all")
    refusal = await refusal_of(as_user(valkey, user, password), chain)
    assert words in refusal
    assert password not in refusal.replace("username-password", "").replace("password", "")
    assert f"Redis at unix://{valkey.data_dir}" in refusal


async def test_a_missing_password_and_a_renamed_info_are_refused_at_once(tmp_path: Path, chain: str) -> None:
    with Valkey(tmp_path / "own", rename_command="INFO other") as own:
        refusal = await refusal_of(own.url, chain)
        assert "Redis does not know the command INFO: it was renamed or disabled" in refusal
        own.client.config_set("requirepass", "secret")
        assert "Redis wants a password, and the address has none" in await refusal_of(own.url, chain)
        own.client.execute_command("AUTH", "secret")


async def test_settings_that_may_not_be_read_are_named_at_once(
    valkey: EmbeddedValkey, admin: redis.Redis, chain: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", "~*", "+@all", "-config")
    with pytest.raises(Misconfigured, match="appendfsync is not readable") as caught:
        await checked(as_user(valkey, "app", "secret"), chain)
    assert "AUDIT_STREAM_TRUST_REDIS=fsync" in str(caught.value)


def test_an_operator_may_vouch_for_a_redis_that_hides_its_settings(
    valkey: EmbeddedValkey, admin: redis.Redis, chain: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", "~*", "+@all", "-config")
    url = as_user(valkey, "app", "secret")
    settings = {"AUDIT_STREAM_REDIS_URL": url, "AUDIT_STREAM_CHAIN": chain, "AUDIT_STREAM_TRUST_REDIS": "fsync"}
    with running_server(**settings) as server:
        assert server.post({"kind": "other", "source": "s", "payload": {}}).status_code == 201
        assert server.get("/readyz").status_code == 200
    doctor = ("doctor", "--json", "--redis-url", url)
    assert run(*doctor, AUDIT_STREAM_CHAIN=chain).returncode == 1
    assert run(*doctor, AUDIT_STREAM_CHAIN=chain, AUDIT_STREAM_TRUST_REDIS="fsync").returncode == 0


async def test_a_web_server_in_place_of_a_redis_is_refused_at_once(chain: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        assert "does not answer as a Redis does" in await refusal_of(f"redis://127.0.0.1:{port}", chain)


# --- waited for


async def test_a_redis_that_is_not_there_is_announced_once_without_its_password_and_given_up(
    chain: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spine, "REACHABLE_WITHIN_S", 0.5)
    port = free_port()
    with pytest.raises(Misconfigured, match="Check AUDIT_STREAM_REDIS_URL, that Redis is running there") as caught:
        await checked(f"redis://app:secret@127.0.0.1:{port}/0", chain)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    said = caplog.messages[0] + str(caught.value)
    assert said.startswith(f"waiting for Redis at redis://127.0.0.1:{port}/0 (0 s): Redis is away: ")
    assert "secret" not in said


async def test_a_redis_that_comes_up_while_it_is_waited_for_is_taken(
    tmp_path: Path, chain: str, caplog: pytest.LogCaptureFixture
) -> None:
    valkey = Valkey(tmp_path / "late")
    starting = asyncio.create_task(checked(valkey.url, chain))
    await until(lambda: caplog.messages != [])
    with valkey:
        assert (await starting)["tcp_port"] == str(valkey.port)


async def test_a_redis_that_loads_its_data_is_waited_for_without_a_limit(
    tmp_path: Path, chain: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spine, "REACHABLE_WITHIN_S", 0.5)
    with Valkey(tmp_path / "own") as own:
        own.client.mset({f"key-{n}": os.urandom(200) for n in range(1000)})
        own.client.bgrewriteaof()
        own.until(lambda: own.client.info("persistence")["aof_base_size"] > 100_000)
        own.kill()
        own.options = {"key_load_delay": "20000", "loading_process_events_interval_bytes": "1024"}
        own.start(wait=False)
        began = time.monotonic()
        starting = asyncio.create_task(checked(own.url, chain))
        await until(lambda: any("is loading its data" in message for message in caplog.messages))
        async with at(own.url, chain) as stream:
            with pytest.raises(Unreachable, match="Redis is loading its data and answers when it has it all"):
                await stream.head()
        await until(lambda: time.monotonic() > began + 2 * spine.REACHABLE_WITHIN_S)
        assert not starting.done()
        own.client.config_set("key-load-delay", "0")
        assert (await starting)["loading"] == "0"
    said = [message for message in caplog.messages if "is loading its data" in message]
    assert said == [f"Redis at {own.url} is loading its data; waiting until it has it all"]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 — the log has no event to wait for
            await asyncio.sleep(0.01)


# --- errors that a server meets while it runs


async def test_an_error_inside_a_transaction_is_said_as_redis_said_it(
    valkey: EmbeddedValkey, admin: redis.Redis, chain: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", "~*", "+@all", "-xlen")
    async with at(as_user(valkey, "app", "secret"), chain) as stream:
        with pytest.raises(Denied) as caught:
            await stream.indexes.lengths([stream.keys.time])
    assert "what audit-stream needs: User app has no permissions to run the 'xlen' command. Permit" in str(caught.value)
