"""Several server processes on one listening socket, started again when they die."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping

from audit_stream.errors import Misconfigured
from audit_stream.server.logs import set_up_logs
from audit_stream.server.process import STARTUP_FAILURE, Server
from audit_stream.settings import Settings
from audit_stream.tally import Board, Tally

_STARTED = b"started\n"
RETRY_S = 1.0

log = logging.getLogger(__name__)


class Workers:
    """The parent of the workers. It owns what they share and serves nothing itself."""

    def __init__(self, environ: Mapping[str, str], sock: socket.socket, count: int) -> None:
        self._environ, self._socket, self._count = dict(environ), sock, count
        self._running: set[Process] = set()
        self._waiting = count
        self._stopped = asyncio.Event()
        self._exit_code = 0

    def run(self, on_started: Callable[[], None]) -> int:
        """Run until SIGTERM or SIGINT, or until one of the first workers cannot start; return the exit code."""
        self._on_started = on_started
        with Board.shared(Settings.from_env(self._environ).kinds, self._count) as board:
            asyncio.run(self._run(board))
        return self._exit_code

    async def _run(self, board: Board) -> None:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._stop)
        await asyncio.gather(*(self._keep_one(board, place) for place in range(self._count)))

    def _stop(self) -> None:
        self._stopped.set()
        for worker in self._running:
            worker.terminate()

    async def _keep_one(self, board: Board, place: int) -> None:
        shared = [self._socket.fileno(), board.fd]
        ever_started = False
        while not self._stopped.is_set():
            # Its standard input ends when this process does, however that happens, and then it stops too.
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__, *map(str, [*shared, self._count, place])),
                stdin=PIPE,
                stdout=PIPE,
                env=self._environ,
                pass_fds=shared,
            )
            self._running.add(worker)
            assert worker.stdout
            if self._stopped.is_set():
                worker.terminate()
            started = await worker.stdout.readline() == _STARTED
            if started and not ever_started:
                self._waiting -= 1
                if self._waiting == 0:
                    self._on_started()
            exit_code = await worker.wait()
            self._running.discard(worker)
            board.clear_gauges(place)
            if self._stopped.is_set():
                return
            if started:
                ever_started = True
                log.error("worker %d ended with code %d; another one is started", worker.pid, exit_code)
            elif ever_started:
                # The other workers serve on. What keeps this one from starting may pass: its own log names it.
                log.error("the replacement of a worker did not start; the next attempt follows in %g s", RETRY_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await self._stopped.wait()
            else:
                # The first workers fail for a reason that the next ones would share.
                self._exit_code = exit_code or STARTUP_FAILURE
                self._stop()


def main() -> int:
    """Be one worker. Given: the descriptors of the listening socket and the board, how many workers, which one."""
    sock_fd, board_fd, workers, place = map(int, sys.argv[1:])
    sock, settings = socket.socket(fileno=sock_fd), Settings.from_env()
    set_up_logs(settings.log, settings.log_level)
    tally = Tally(Board(settings.kinds, workers=workers, fd=board_fd), place)

    def started() -> None:
        os.write(sys.stdout.fileno(), _STARTED)
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), parent_is_gone)

    def parent_is_gone() -> None:
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        server.handle_exit(signal.SIGTERM, None)

    # The parent decides when to stop. A Ctrl-C reaches the whole group, and it passes that on.
    try:
        server = Server(settings, started, tally)
    except Misconfigured as error:
        log.error("%s", error)
        return STARTUP_FAILURE
    server.run(sockets=[sock])
    return 0 if server.started else STARTUP_FAILURE


if __name__ == "__main__":
    sys.exit(main())
