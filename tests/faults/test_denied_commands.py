"""A Redis that denies this user a command of the script: a batch is on the chain whole or not at all."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest
import redis

from audit_stream.embedded import EmbeddedValkey
from tests.faults.commands import OF_THE_SCRIPT
from tests.faults.test_redis_away import append, check_pushback
from tests.harness import ServerProcess, running_server

CHAIN = "denied"
EVENTS = f"{{{CHAIN}}}:events"
SIZES = {"single": 1, "batch": 3}


class Site(NamedTuple):
    admin: Any
    server: ServerProcess
    """Its user has every right but those that a test takes away."""


@pytest.fixture(scope="module", params=["checked", "script"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        valkey = stack.enter_context(EmbeddedValkey(tmp_path_factory.mktemp("denied")))
        admin = stack.enter_context(redis.Redis.from_url(valkey.url))
        admin.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
        address = f"unix://app:secret@{valkey.url.removeprefix('unix://')}"
        settings = {"AUDIT_STREAM_HASHING": request.param, "AUDIT_STREAM_VERIFY_EVERY": "off"}
        server = running_server(AUDIT_STREAM_REDIS_URL=address, AUDIT_STREAM_CHAIN=CHAIN, **settings)
        yield Site(admin, stack.enter_context(server))


@contextmanager
def denied(site: Site, command: str) -> Iterator[None]:
    site.admin.execute_command("ACL", "SETUSER", "app", f"-{command.lower()}")
    try:
        yield
    finally:
        site.admin.execute_command("ACL", "SETUSER", "app", f"+{command.lower()}")


def test_the_matrix_names_every_command_of_the_script() -> None:
    assert set(OF_THE_SCRIPT) >= {"GET", "SET", "TIME", "XADD", "XRANGE", "XREVRANGE", "XINFO"}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("command", OF_THE_SCRIPT)
def test_a_denied_command_leaves_the_batch_whole_or_absent(site: Site, command: str, size: int) -> None:
    name, before = f"{command} {size}", site.admin.xlen(EVENTS)
    with denied(site, command):
        answers = [append(site.server, name, size) for _ in range(3)]
        refused = [answer for answer in answers if answer.status_code == 503]
        for answer in refused:
            check_pushback(answer, command.lower())
        taken = answers[0].status_code == 201
        assert taken or refused == answers
        assert site.admin.xlen(EVENTS) == before + (size if taken else 0)
        assert eventually_ready(site.server, not refused) == (not refused)
    assert append(site.server, name, size).status_code == (200 if taken else 201)
    assert append(site.server, name, size).status_code == 200
    assert site.admin.xlen(EVENTS) == before + size
    assert site.server.verify()["valid"]


def eventually_ready(server: ServerProcess, expected: bool) -> bool:
    """What /readyz says once it has had the time that it is allowed to take."""
    deadline = time.monotonic() + 10
    while (ready := server.get("/readyz").status_code == 200) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return ready
