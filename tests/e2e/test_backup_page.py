"""docs/operators/backup.md does what it says: its shell lines run, in their order, on a real Valkey."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from audit_stream.cli import root
from audit_stream.embedded import find_server_binary
from audit_stream.settings import VARIABLES
from tests.harness import ROOT, ServerProcess, clean_environ, running_server

PAGE = (ROOT / "docs" / "operators" / "backup.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.M | re.S)

REDIS_CLI = """#!{python} -ISs
import socket, sys
try:
    connection = socket.create_connection(("127.0.0.1", {port}))
    with connection, connection.makefile("rwb") as file:
        words = [word.encode() for word in sys.argv[1:]]
        file.write(b"*%d\\r\\n" % len(words) + b"".join(b"$%d\\r\\n%b\\r\\n" % (len(word), word) for word in words))
        file.flush()
        reply = file.readline().decode().strip()
        print(file.read(int(reply[1:])).decode() if reply[:1] == "$" else reply[1:])
except OSError as error:
    print(error)
"""
SYSTEMCTL = """#!/bin/bash
case $1 in
    start) redis-server /etc/redis/redis.conf > /dev/null 2>&1 & echo $! > "$PIDS/redis.pid"
           until redis-cli PING | grep -q PONG; do :; done ;;
    stop) kill "$(cat "$PIDS/redis.pid")"; while redis-cli PING | grep -q PONG; do :; done ;;
esac
"""


class Machine:
    """What the page speaks of: a Redis of its own, its folder, and commands by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}"
        self.data, self.backup = folder / "redis", folder / "backup"
        for made in (self.data, self.backup, folder / "bin"):
            made.mkdir()
        (folder / "redis.conf").write_text(
            f'bind 127.0.0.1\nport {self.port}\ndir {self.data}\nsave ""\nrepl-diskless-sync-delay 0\n'
            "appendonly yes\nappendfsync always\nmaxmemory-policy noeviction\n"
        )
        self._command("redis-cli", REDIS_CLI.format(python=sys.executable, port=self.port))
        self._command("systemctl", self._here(SYSTEMCTL))
        self._command("redis-server", f'#!/bin/sh\nexec {find_server_binary()} "$@"\n')
        self._command("audit-stream", f'#!/bin/sh\nexec {sys.executable} -m audit_stream "$@"\n')
        self._running: list[subprocess.Popen[str]] = []

    def _command(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def _here(self, text: str, head: str = "") -> str:
        for there, here in (
            ("/etc/redis/redis.conf", self.folder / "redis.conf"),
            ("/var/lib/redis", self.data),
            ("/srv/audit", self.folder),
            ("/backup/", f"{self.backup}/"),
            ("127.0.0.1:6379", f"127.0.0.1:{self.port}"),
            ("ID:HASH", head),
            ("sleep 1", "sleep 0.02"),
        ):
            text = text.replace(there, str(here))
        return text

    def run(self, block: str, *, head: str = "", url: str = "") -> str:
        """Run a block of the page; what it leaves running ends with this machine."""
        environ = clean_environ(PIDS=str(self.folder), **{"AUDIT_STREAM_URL": url} if url else {})
        environ["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{environ['PATH']}"
        bash = subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", self._here(block, head)],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._running.append(bash)
        said, _ = bash.communicate(timeout=60)
        assert bash.returncode == 0, said
        return said

    def empty(self) -> None:
        """A new disk: Redis starts with nothing on it."""
        self.run("systemctl stop redis")
        shutil.rmtree(self.data)
        self.data.mkdir()

    def length(self) -> int:
        with redis.Redis.from_url(self.url) as client:
            return int(client.xlen("{audit}:events"))

    def stop(self) -> None:
        for bash in self._running:
            with suppress(ProcessLookupError):
                os.killpg(bash.pid, signal.SIGKILL)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        made.stop()


def block_with(command: str) -> str:
    found: str
    (found,) = [block for block in BLOCKS if command in block]
    return found


def post(server: ServerProcess, count: int) -> None:
    server.post_batch(
        [{"kind": "other", "source": secrets.token_hex(2), "payload": {"n": n}} for n in range(count)]
    ).raise_for_status()


def test_each_way_on_the_page_brings_the_chain_back(machine: Machine) -> None:
    ran = []

    def do(command: str, *, head: str = "", url: str = "") -> None:
        ran.append(block_with(command))
        machine.run(ran[-1], head=head, url=url)

    machine.run("systemctl start redis")
    with running_server(AUDIT_STREAM_REDIS_URL=machine.url) as server:
        post(server, 5)
        do("audit-stream backup /backup/audit.jsonl.gz\n", url=server.url)
        head = server.verify()["head"]
        do("audit-stream verify /backup/audit.jsonl.gz --expect", head=f"{head['event_id']}:{head['hash']}")
        post(server, 3)
        do("--from", url=server.url)
        post(server, 2)
        do("cp -r /var/lib/redis/appendonlydir /backup")
        machine.run("redis-cli SAVE; cp /var/lib/redis/dump.rdb /backup/dump.rdb")
        head = server.verify()["head"]
    whole = f"{head['event_id']}:{head['hash']}"

    machine.empty()
    machine.run("systemctl start redis")
    do("cp -r /backup/appendonlydir", head=whole)
    assert machine.length() == 10

    # The trap: Redis ignores the file, and starts empty.
    machine.empty()
    machine.run("cp /backup/dump.rdb /var/lib/redis/dump.rdb; systemctl start redis")
    assert machine.length() == 0
    do("redis-server /etc/redis/redis.conf --appendonly no", head=whole)
    assert machine.length() == 10

    machine.empty()
    machine.run("systemctl start redis")
    do("for file in")
    assert machine.length() == 8

    do("--data-dir /srv/audit/restored")
    shutil.copytree(machine.folder / "restored", machine.folder / "data")
    do("--data-dir /srv/audit/data")
    assert (machine.backup / "stopped.jsonl.gz").read_bytes() == (machine.backup / "audit.jsonl.gz").read_bytes()
    assert sorted(ran) == sorted(BLOCKS)


def test_every_flag_setting_and_command_on_the_page_exists() -> None:
    named = set(re.findall(r"audit-stream ([a-z]+(?:-[a-z]+)*)", PAGE)) - {"needs", "holds"}
    assert named <= set(root.commands)
    assert set(re.findall(r"\bAUDIT_STREAM_[A-Z_]+\b", PAGE)) <= {*VARIABLES, "AUDIT_STREAM_URL"}
    flags = {flag for command in root.commands.values() for option in command.params for flag in option.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE)) <= flags | {"--appendonly"}
