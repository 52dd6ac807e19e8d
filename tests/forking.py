"""`audit-stream` in processes of their own, without Python's start in front of each.

Importing what a server needs takes a second of the processor, and the tests start hundreds. So one process
imports it all and waits; for each command it forks a child, and what the child runs from there on is the same.
`python -m tests.forking FD` is that process; FD is a socket on which it is asked.

    asked      JSON (arguments, environment), with descriptors: stdin, stdout, stderr, and where the status goes
    status     the process' pid, and when it has ended its exit code as subprocess has it, a line each
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parents[1]


class Forked:
    """What the tests use of subprocess.Popen."""

    def __init__(
        self, arguments: list[str], environ: dict[str, str], *, stdin: int = 0, stdout: int = -1, stderr: int = 2
    ) -> None:
        """Without a stdout, it is a pipe to read from."""
        self.args = ["audit-stream", *arguments]
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        status, child_status = os.pipe()
        theirs = [child_status]
        if stdout < 0:
            out, stdout = os.pipe()
            self.stdout = os.fdopen(out)
            theirs.append(stdout)
        request = json.dumps([arguments, environ]).encode()
        try:
            socket.send_fds(_origin(), [request], [stdin, stdout, stderr, child_status])
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self._status = os.fdopen(status)
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if (returncode := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return returncode

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _origin() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.forking", str(theirs.fileno())]
        environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        # Not waited for: it ends when the socket is closed, with this process.
        process = subprocess.Popen(command, env=environ, pass_fds=[theirs.fileno()], cwd=ROOT)
        process.returncode = 0
    return ours


def _serve(asked: socket.socket) -> list[str]:
    """Fork for each request; return, with its arguments, in the child that is to run it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(asked, 1 << 20, 4)
        if not request:
            sys.exit()
        if os.fork() == 0:
            asked.close()
            arguments, environ = json.loads(request)
            return _run(arguments, environ, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _run(arguments: list[str], environ: dict[str, str], in_: int, out: int, err: int, status: int) -> list[str]:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        _report(pid, status)
    for standard, descriptor in enumerate((in_, out, err)):
        os.dup2(descriptor, standard)
    for descriptor in (in_, out, err, status):
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environ)
    return arguments


def _report(pid: int, status: int) -> NoReturn:
    """Stay behind only to say how the process ends."""
    os.closerange(0, status)
    os.closerange(status + 1, 256)
    os.setsid()  # a Ctrl-C is for the process, and not for who tells of it
    os.write(status, b"%d\n" % pid)
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended
    code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    # Before it is reaped: who has not read this may still send a signal, and its pid must not be another's by then.
    os.write(status, b"%d\n" % code)
    os.waitpid(pid, 0)
    os._exit(0)


def _ended_at_once(command: Callable[[], None]) -> NoReturn:
    """Run the command and end as Python does, but for taking apart what was imported.

    Its memory is shared with the process that was forked from: to free it object by object would copy all of it.
    """
    code: object = 0
    try:
        command()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are not daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    import audit_stream
    from audit_stream.cli import main
    from audit_stream.server.app import create_app
    from audit_stream.settings import Settings

    for module in pkgutil.walk_packages(audit_stream.__path__, "audit_stream."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    create_app(Settings.from_env({}))  # what it imports and remembers
    gc.collect()
    gc.freeze()  # a collection in a child would copy the memory that it walks over
    sys.argv = ["audit-stream", *_serve(socket.socket(fileno=int(sys.argv[1])))]
    _ended_at_once(main)
