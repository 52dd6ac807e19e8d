"""docs/operators/acl.md: the user it makes can do all that audit-stream does, and has no command to spare."""

import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from audit_stream.embedded import EmbeddedValkey
from tests.harness import ROOT, ServerProcess, clean_environ, running_server

PAGE = (ROOT / "docs/operators/acl.md").read_text()
USER, PASSWORD = "audit-stream", "secret"
SELDOM = {
    "cluster|slots": ("CLUSTER", "SLOTS"),  # with a cluster
    "pexpire": ("PEXPIRE", "{audit}:verifier", 1),  # ten seconds after the lease was taken
    "wait": ("WAIT", 1, 1),  # with replicas, and so is the next
    "waitaof": ("WAITAOF", 1, 1, 1),
}
"""What a short run without faults and replicas does not come to."""


def documented() -> list[list[str]]:
    return [line.split() for line in re.findall(r"^    (ACL SETUSER .*)$", PAGE, flags=re.M)]


def commands() -> set[str]:
    return {word[1:] for line in documented() for word in line if word.startswith("+")}


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A Valkey of its own: what it has been asked for is counted."""
    with EmbeddedValkey(tmp_path_factory.mktemp("acl")) as started:
        yield started


@pytest.fixture(scope="module")
def admin(valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url) as client:
        for line in documented():
            client.execute_command(*" ".join(line).replace("PASSWORD", PASSWORD).split())
        yield client


@pytest.fixture(scope="module")
def url(valkey: EmbeddedValkey, admin: redis.Redis) -> str:
    return f"{valkey.url}?username={USER}&password={PASSWORD}"


def run(url: str, *words: str) -> None:
    command = [sys.executable, "-m", "audit_stream", *words, "--redis-url", url]
    done = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def exercise(server: ServerProcess) -> None:
    event = {"kind": "other", "source": "s", "payload": {}}
    assert server.post(event).status_code == 201
    key = {"Idempotency-Key": secrets.token_hex(4)}
    assert [server.post(event, **key).status_code for _ in range(2)] == [201, 200]
    assert server.post_batch([event] * 30).status_code == 201
    assert len(server.get("/events?kind=other&source=s&since=2020-01-01T00:00:00Z&until=2999-01-01T00:00:00Z").json())
    assert len(server.get("/events?kind=other&limit=5").json()) == 5
    assert server.get("/events/3").status_code == 200
    with server.client.stream("GET", "/stream?after=0") as stream:
        assert next(line for line in stream.iter_lines() if line.startswith("data:"))
    assert server.get("/verify?deep=true").json()["valid"]
    for path in ("/stats", "/metrics", "/readyz"):
        assert server.get(path).status_code == 200, path


@pytest.fixture(scope="module")
def served(url: str, admin: redis.Redis) -> None:
    """A chain that servers of both kinds have worked on, as the documented user."""
    admin.execute_command("ACL", "LOG", "RESET")
    admin.config_resetstat()
    for hashing in ("checked", "script"):
        with running_server(
            AUDIT_STREAM_REDIS_URL=url, AUDIT_STREAM_HASHING=hashing, AUDIT_STREAM_VERIFY_EVERY="1s"
        ) as server:
            exercise(server)


@pytest.mark.usefixtures("served")
def test_the_documented_user_can_do_everything_and_needs_every_command(url: str, admin: redis.Redis) -> None:
    run(url, "doctor")
    run(url, "verify")
    run(url, "reindex", "--yes")
    denied = [entry for entry in admin.acl_log() if not str(entry["object"]).startswith("client")]
    assert denied == []
    used = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    assert commands() - used <= set(SELDOM)


@pytest.mark.parametrize("name", sorted(commands() & set(SELDOM)))
@pytest.mark.usefixtures("url")
def test_the_documented_user_may_do_what_is_seldom_done(admin: redis.Redis, name: str) -> None:
    assert admin.execute_command("ACL", "DRYRUN", USER, *SELDOM[name]) == b"OK"


def test_the_documented_user_reaches_no_other_key_and_no_dangerous_command(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        for refused in (("GET", "other"), ("SET", "{other}:events", "x"), ("FLUSHALL",), ("CONFIG", "SET", "save", "")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*refused)


@pytest.mark.usefixtures("served")
def test_an_auditor_who_can_write_nothing_can_verify_and_export(
    valkey: EmbeddedValkey, admin: redis.Redis, tmp_path: Path
) -> None:
    (rules,) = re.findall(r"^  `(%R~\{audit\}:\* .*)` \(Redis 7", PAGE, flags=re.M)
    admin.execute_command("ACL", "SETUSER", "auditor", "on", ">look", *rules.split())
    auditor = f"{valkey.url}?username=auditor&password=look"
    run(auditor, "verify")
    run(auditor, "export", "--out", str(tmp_path / "events.jsonl"))
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 64
