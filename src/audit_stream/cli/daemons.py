"""What the commands that run until they are told to stop have in common."""

import asyncio
import signal
from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol

from audit_stream.errors import Misconfigured
from audit_stream.extras import install_extra


class Daemon(Protocol):
    def stop(self) -> None: ...
    async def run(self) -> None: ...


def run_until_told(made: Callable[[], Daemon]) -> None:
    """Run what `made` returns, on an event loop, until it ends; SIGTERM and SIGINT stop it in good order."""

    async def run() -> None:
        daemon = made()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, daemon.stop)
        await daemon.run()

    asyncio.run(run())


def need(extra: str, *modules: str) -> None:
    """Raises Misconfigured naming the extra when it is not installed."""
    missing = [module for module in modules if not find_spec(module)]
    if missing:
        raise Misconfigured(f"this needs {' and '.join(missing)}: {install_extra(extra)}")
