"""The session in the dashboard's cookie: who makes one, who knows it, and when it ends."""

import asyncio
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from time import time

import pytest

from audit_stream.access.session import LIFETIME_S, Sessions
from audit_stream.access.table import Tokens
from tests.access.holders import Holder, write_tokens
from tests.harness import ServerProcess, running_server

SECRET = secrets.token_bytes(32)


def sessions(tokens: Tokens, secret: bytes = SECRET) -> Sessions:
    async def given() -> bytes:
        return secret

    made = Sessions(tokens)
    asyncio.run(made.prepare(given))
    return made


@pytest.fixture
def holder() -> Holder:
    return Holder("reader", "read")


@pytest.fixture
def tokens(tmp_path: Path, holder: Holder) -> Tokens:
    write_tokens(tmp_path / "tokens.toml", holder, Holder("other", "read"))
    return Tokens(tmp_path / "tokens.toml")


def sealed(tokens: Tokens, holder: Holder) -> bytes:
    grant = tokens.find(holder.token.encode())
    assert grant
    return sessions(tokens).seal(grant, SECRET).encode()


def test_every_server_with_the_secret_and_the_token_knows_a_session(tokens: Tokens, holder: Holder) -> None:
    made = sealed(tokens, holder)
    grant, left_s = sessions(tokens).find(made) or (None, 0.0)
    assert grant is tokens.find(holder.token.encode())
    assert LIFETIME_S - 60 < left_s <= LIFETIME_S
    assert holder.token.encode() not in urlsafe_b64decode(made)
    assert made != sealed(tokens, holder)


def test_a_session_ends_with_its_time(tokens: Tokens, holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    made, now = sealed(tokens, holder), time()
    monkeypatch.setattr("audit_stream.access.session.time", lambda: now + LIFETIME_S - 1)
    assert sessions(tokens).find(made)
    monkeypatch.setattr("audit_stream.access.session.time", lambda: now + LIFETIME_S + 1)
    assert sessions(tokens).find(made) is None


def test_a_session_ends_with_its_token(tokens: Tokens, holder: Holder, tmp_path: Path) -> None:
    made = sealed(tokens, holder)
    write_tokens(tmp_path / "tokens.toml", Holder("reader", "read"))
    tokens.look()
    assert sessions(tokens).find(made) is None


def test_no_byte_of_it_can_be_changed_and_none_is_made_without_the_secret(tokens: Tokens, holder: Holder) -> None:
    text = urlsafe_b64decode(sealed(tokens, holder))
    for place in range(len(text)):
        changed = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
        assert sessions(tokens).find(urlsafe_b64encode(changed)) is None
    assert sessions(tokens, secrets.token_bytes(32)).find(urlsafe_b64encode(text)) is None
    assert Sessions(tokens).find(urlsafe_b64encode(text)) is None  # nothing is known before the secret is


@pytest.mark.parametrize(
    "text", [b"", b"=", b"x", b"nonsense", b"\xff\x00", b"A" * 96, b"A" * 10_000, b"audit_" + b"a" * 52]
)
def test_what_is_not_a_session_is_none(tokens: Tokens, text: bytes) -> None:
    assert sessions(tokens).find(text) is None


def test_a_replica_knows_the_session_that_another_one_made(redis_url: str, chain: str, tmp_path: Path) -> None:
    holder = Holder("reader", "read")
    write_tokens(tmp_path / "tokens.toml", holder)
    settings = {
        "AUDIT_STREAM_REDIS_URL": redis_url,
        "AUDIT_STREAM_CHAIN": chain,
        "AUDIT_STREAM_TOKENS": str(tmp_path / "tokens.toml"),
        "HOST": "127.0.0.1",
    }
    with running_server(**settings) as one, running_server(**settings) as other:
        cookie = log_in(one, holder)
        assert one.get("/stats", Cookie=cookie).status_code == 200
        assert other.get("/stats", Cookie=cookie).status_code == 200
        assert other.get("/dashboard/login", Cookie=cookie).json() == {"needed": True, "name": "reader"}


def log_in(server: ServerProcess, holder: Holder) -> str:
    answer = server.client.post("/dashboard/login", json={"token": holder.token})
    server.client.cookies.clear()
    return str(answer.raise_for_status().headers["set-cookie"]).partition(";")[0]
