"""Processes as the kernel sees them. Linux only: /proc and pidfds."""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from audit_stream.embedded import EmbeddedValkey

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, which only Linux has")


def children(pid: int, *, running: str = "") -> list[int]:
    """The pids of its child processes, or those whose program and arguments hold `running`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            # The program by its file: Valkey writes over its own arguments.
            command = f"{(entry / 'exe').readlink().name} {(entry / 'cmdline').read_text(errors='replace')}"
        except OSError:  # it ended meanwhile
            continue
        if int(status[1]) == pid and status[0] != "Z" and running in command:
            found.append(int(entry.name))
    return sorted(found)


def valkeys_of(pid: int) -> list[int]:
    return children(pid, running="-server ")


def workers_of(pid: int) -> list[int]:
    return children(pid, running="audit_stream.server.workers")


class Endings:
    """Waits for processes that are not ours to wait for."""

    def __init__(self, pids: Iterable[int], stack: ExitStack) -> None:
        self._fds = {pid: os.pidfd_open(pid) for pid in pids}
        for fd in self._fds.values():
            stack.callback(os.close, fd)

    def left_after(self, seconds: float) -> list[int]:
        """Those that still run after this time; returns at once when none does."""
        deadline = time.monotonic() + seconds
        left = dict(self._fds)
        while left:
            ended = select.select(list(left.values()), [], [], max(0, deadline - time.monotonic()))[0]
            if not ended:
                break
            left = {pid: fd for pid, fd in left.items() if fd not in ended}
        return sorted(left)


@contextmanager
def endings(pids: Iterable[int]) -> Iterator[Endings]:
    with ExitStack() as stack:
        yield Endings(pids, stack)


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """SIGSTOP: they hang, as on a frozen machine, until the block ends."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def kill_valkey(valkey: EmbeddedValkey) -> None:
    """SIGKILL, and wait until it is gone; `valkey.start()` brings it back on the same data."""
    os.kill(valkey.pid, signal.SIGKILL)
    os.waitid(os.P_PID, valkey.pid, os.WEXITED | os.WNOWAIT)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
