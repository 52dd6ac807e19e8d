"""docs/operators/lost-tail.md: its commands exist, and do what the page says on two primaries that have parted."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import redis

from audit_stream.cli import root
from audit_stream.embedded import find_server_binary
from audit_stream.loss import Incident
from tests.e2e.test_accept_loss import append, incidents, text_of
from tests.faults.campaign.valkey import PATIENCE_S, Valkey
from tests.faults.processes import free_port
from tests.harness import ROOT, clean_environ, running_server

PAGE = (ROOT / "docs" / "operators" / "lost-tail.md").read_text()


def section(number: int) -> str:
    return re.split(r"^## ", PAGE, flags=re.M)[number]


def blocks(text: str) -> list[str]:
    return [re.sub("^    ", "", block, flags=re.M) for block in re.findall(r"(?:^    .+\n)+", text, flags=re.M)]


class Operator:
    """Types what the page says, with this machine's names in place of the page's."""

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self._folder, self._names = folder, names

    def type(self, commands: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        for shown, real in self._names.items():
            commands = commands.replace(shown, real)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", commands],
            cwd=self._folder,
            env=clean_environ(PATH=path, **environ),
            capture_output=True,
            text=True,
            check=False,
        )


def test_the_page_names_commands_flags_and_fields_that_exist() -> None:
    used = [line for block in blocks(PAGE) for line in re.findall(r"audit-stream ([a-z].*)", block)]
    for line in used:
        command = root.commands[line.split()[0]]
        flags = {name for parameter in command.params for name in parameter.opts}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", line)) <= flags, line
    assert {line.split()[0] for line in used} == {"export", "verify", "append", "accept-loss"}
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section(4), flags=re.M)))
    assert named == list(Incident.__struct_fields__)


def test_the_runbook_finds_where_two_primaries_part_and_brings_the_events_back(tmp_path: Path) -> None:
    pin, rescue, rescue_port = tmp_path / "audit.pin", tmp_path / "rescue", free_port()
    with Valkey(tmp_path / "one") as one, Valkey(tmp_path / "two", replica_of=one) as two:
        with running_server(AUDIT_STREAM_REDIS_URL=one.url, AUDIT_STREAM_PIN=str(pin)) as server:
            kept = append(server, 1, 2, 3)
            two.until(lambda: two.client.xlen("{audit}:events") == len(kept))
            two.client.execute_command("REPLICAOF", "NO", "ONE")
            lost = append(server, 4, 5)
        one.kill()
        operator = Operator(
            tmp_path,
            {
                "/srv/rescue": str(rescue),
                "/var/lib/redis": str(one.data_dir),
                "/var/lib/audit-stream/audit.pin": str(pin),
                "redis-server ": f"{find_server_binary()} ",
                "6390": str(rescue_port),
                "redis://redis-2:6379": two.url,
                "+401": "+4",
            },
        )
        copying, comparing = blocks(section(2))
        copied = operator.type(f"{copying.rstrip()} >/dev/null 2>&1 & echo $!")
        try:
            until_it_answers(rescue_port)
            compared = operator.type(comparing)
            assert f'"event_id":5,"hash":"{lost[-1]["hash"]}","holds":true' in compared.stdout, compared
            assert re.search(r"EOF on new\.ndjson .*line 3\b", compared.stderr), compared
            with running_server(AUDIT_STREAM_REDIS_URL=two.url) as server:
                own = append(server, 6)[-1]  # and now both have events of their own
            assert re.search(r"differ: .*line 4\b", operator.type(comparing).stdout)
        finally:
            os.kill(int(copied.stdout), signal.SIGTERM)
        (accepting,) = [block for block in blocks(section(4)) if "accept-loss" in block]
        accepted = operator.type(f"{accepting.rstrip()} --yes".replace("400:9f2c…", text_of(own)))
        assert accepted.returncode == 0, accepted.stderr
        (appending,) = blocks(section(3))
        with running_server(AUDIT_STREAM_REDIS_URL=two.url, AUDIT_STREAM_PIN=str(pin)) as server:
            for _ in range(2):
                assert operator.type(appending, AUDIT_STREAM_URL=server.url).returncode == 0
            (incident,) = incidents(server)
            assert incident["payload"]["old_head"] == text_of(lost[-1])
            rescued = server.get("/events?after=0").json()[-2:]
            for was, now in zip(lost, rescued, strict=True):
                for name in ("kind", "source", "payload", "timestamp"):
                    assert now[name] == was[name]
            assert server.verify()["valid"]


def until_it_answers(port: int) -> None:
    with redis.Redis(port=port) as client:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if client.ping():
                    return
            except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
                assert time.monotonic() < deadline
            time.sleep(0.01)
