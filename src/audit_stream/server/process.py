"""One server process: uvicorn, made to stop while event streams are open."""

import asyncio
import gc
import logging
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, cast

import uvicorn
from litestar import Litestar
from litestar.types import ASGIApp

from audit_stream.errors import Misconfigured
from audit_stream.extras import install_extra
from audit_stream.server.answering import OneWrite
from audit_stream.server.app import create_app
from audit_stream.server.auth import Guard, Revoked
from audit_stream.server.cors import Cors
from audit_stream.server.door import Door
from audit_stream.server.express import Express
from audit_stream.server.requests import Requests
from audit_stream.server.stalled import STALLED_S
from audit_stream.settings import Settings
from audit_stream.tally import Board, Tally

if TYPE_CHECKING:
    from audit_stream.server.traces import Tracing

GRACE_S = 4
"""Open streams are told to end at once; requests in flight get this long."""
STARTUP_FAILURE = 3
"""uvicorn's exit code for an application that does not start."""


def load_tracing() -> "type[Tracing]":
    """Load what makes traces. Raises Misconfigured where it is not installed."""
    try:
        from audit_stream.server.traces import Tracing
    except ImportError as error:
        raise Misconfigured(
            f"AUDIT_STREAM_OTEL: traces need what is not installed ({error.name}): {install_extra('otel')}"
        ) from error
    return Tracing


def layered(app: Litestar, settings: Settings) -> ASGIApp:
    """Put the layers around the application; one that nothing is configured for is left out."""
    layers: ASGIApp = Express(app)
    if app.state.tokens is not None:
        layers = Guard(layers, app.state.tokens, app.state.sessions)
    if settings.cors:
        layers = Cors(layers, settings.cors)
    return Door(layers, settings)


def _not_revoked(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], Revoked))


class Server(uvicorn.Server):
    """uvicorn waits for open connections before it stops, and an event stream never ends by itself."""

    def __init__(
        self,
        settings: Settings,
        on_started: Callable[[], None],
        tally: Tally | None = None,
        *,
        stalled_s: float = STALLED_S,
    ) -> None:
        tally = tally or Tally(Board(settings.kinds))
        tracing = load_tracing().to_collector() if settings.otel else None
        self._app = create_app(settings, tally, tracing)
        served = layered(self._app, settings)
        self._on_started = on_started
        # uvicorn logs every exception as a fault of the application. This one is how an answer is cut off.
        logging.getLogger("uvicorn.error").addFilter(_not_revoked)
        super().__init__(
            uvicorn.Config(
                Requests(tracing.around(served) if tracing else served),
                interface="asgi3",  # a layer that hands on what the next one returns does not look like it
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nothing here depends on who asks, but the login, and that looks itself
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
                ws="none",
                http=cast("type[asyncio.Protocol]", partial(OneWrite, stalled_s=stalled_s, tally=tally)),
                lifespan="on",
                timeout_graceful_shutdown=GRACE_S,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What was made so far stays for good: no collection need walk over it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(20_000, 20, 20)
            self._loop = asyncio.get_running_loop()
            self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.started:
            self._loop.call_soon_threadsafe(self._app.state.spine.tail.close)
