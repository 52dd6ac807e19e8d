"""Several server processes on one listening socket, started again when they die."""

import asyncio
import logging
import os
import select
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping

from audit_stream.errors import Misconfigured
from audit_stream.server.process import STARTUP_FAILURE, Server
from audit_stream.settings import Settings

_STARTED = b"started\n"
RETRY_S = 1.0

log = logging.getLogger(__name__)


class Workers:
    """The parent of the workers. It owns what they share and serves nothing itself."""

    def __init__(self, environ: Mapping[str, str], sock: socket.socket, count: int) -> None:
        self._environ, self._socket, self._count = dict(environ), sock, count
        self._running: set[Process] = set()
        self._waiting = count
        self._stopping = False
        self._exit_code = 0

    def run(self, on_started: Callable[[], None]) -> int:
        """Run until SIGTERM or SIGINT, or until a worker cannot start; return the exit code."""
        self._on_started = on_started
        asyncio.run(self._run())
        return self._exit_code

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._stop)
        await asyncio.gather(*(self._keep_one() for _ in range(self._count)))

    def _stop(self) -> None:
        self._stopping = True
        for worker in self._running:
            worker.terminate()

    async def _keep_one(self) -> None:
        while not self._stopping:
            # Its standard input ends when this process does, however that happens, and then it stops too.
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__, str(self._socket.fileno())),
                stdin=PIPE,
                stdout=PIPE,
                env=self._environ,
                pass_fds=[self._socket.fileno()],
            )
            self._running.add(worker)
            assert worker.stdout
            if self._stopping:
                worker.terminate()
            started = await worker.stdout.readline() == _STARTED
            if started:
                self._waiting -= 1
                if self._waiting == 0:
                    self._on_started()
            exit_code = await worker.wait()
            self._running.discard(worker)
            if self._stopping:
                return
            if not started:
                # What keeps it from starting would keep the next one: its own log has said what it is.
                self._exit_code = exit_code or STARTUP_FAILURE
                self._stop()
                return
            log.error("worker %d ended with code %d; another one is started", worker.pid, exit_code)


def main() -> int:
    """Be one worker on the listening socket whose file descriptor is given."""
    logging.basicConfig(format="%(levelname)s %(name)s [%(process)d]: %(message)s", level=logging.WARNING)
    sock = socket.socket(fileno=int(sys.argv[1]))

    def started() -> None:
        os.write(sys.stdout.fileno(), _STARTED)
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), parent_is_gone)

    def parent_is_gone() -> None:
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        server.handle_exit(signal.SIGTERM, None)

    # The parent decides when to stop. A Ctrl-C reaches the whole group, and it passes that on.
    made = _made(Settings.from_env(), started)
    if made is None:
        return 0
    server = made
    server.run(sockets=[sock])
    return 0 if server.started else STARTUP_FAILURE


def _made(settings: Settings, on_started: Callable[[], None]) -> Server | None:
    """Wait for a token file that is not right just now; None when the parent is gone.

    The parent has read it before there was any worker. So this one takes the place of one that died, and to end
    with the mistake would take those along that still serve with what they have read.
    """
    said = ""
    while True:
        try:
            return Server(settings, on_started)
        except Misconfigured as error:
            if str(error) != said:
                said = str(error)
                log.error("%s. This worker waits until that is mended.", said)
        if select.select([sys.stdin], [], [], RETRY_S)[0]:
            return None


if __name__ == "__main__":
    sys.exit(main())
