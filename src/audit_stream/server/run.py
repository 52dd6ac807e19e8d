"""Running the server: one process or several, over a given Redis or an embedded Valkey."""

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from audit_stream import __version__
from audit_stream.embedded import EmbeddedValkey
from audit_stream.errors import Misconfigured
from audit_stream.keeper import check_pin
from audit_stream.promise import describe
from audit_stream.server.logs import set_up_logs
from audit_stream.server.process import STARTUP_FAILURE, Server, load_tracing
from audit_stream.server.workers import Workers
from audit_stream.settings import Settings
from audit_stream.spine import check
from audit_stream.stream import Stream


def serve(environ: Mapping[str, str], *, workers: int = 1, say: Callable[[str], None] = print) -> int:
    """Run until SIGTERM or SIGINT; return the exit code. `say` is told when the server takes requests.

    Raises Misconfigured before anything listens when a setting, the port or Redis is not right.
    """
    settings = Settings.from_env(environ)
    set_up_logs(settings.log, settings.log_level)
    if settings.otel:
        load_tracing()  # here, where it can still be said what is not installed
    with ExitStack() as stack:
        sock = stack.enter_context(_listen(settings))
        where = "as given"
        if settings.redis_url is None:
            valkey = stack.enter_context(EmbeddedValkey(settings.data_dir))
            environ = {**environ, "AUDIT_STREAM_REDIS_URL": valkey.url}
            settings = Settings.from_env(environ)
            where = f"embedded, data in {settings.data_dir}"
        facts = asyncio.run(_check(settings))
        host, port = sock.getsockname()[:2]
        ready = (
            f"audit-stream {__version__} on http://{f'[{host}]' if ':' in host else host}:{port}"
            f" · chain {settings.chain!r} on {describe(facts)} ({where}) · a 201 means: {settings.ack}"
        )
        if workers == 1:
            server = Server(settings, on_started=lambda: say(ready))
            server.run(sockets=[sock])
            return 0 if server.started else STARTUP_FAILURE
        return Workers(environ, sock, workers).run(lambda: say(f"{ready} · {workers} workers"))


def _listen(settings: Settings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.bind_host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Misconfigured(f"HOST: {settings.bind_host!r} is no address of this machine: {error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen()  # now, so that of two servers on one port the later one is told
    except OSError as error:
        sock.close()
        raise Misconfigured(
            f"cannot listen on {settings.bind_host}:{settings.port}: {error.strerror}."
            " Choose another one with --port or PORT."
        ) from error
    return sock


async def _check(settings: Settings) -> dict[str, str]:
    assert settings.redis_url
    stream = Stream.at(settings.redis_url, settings.chain)
    try:
        facts = await check(stream, settings)
        await check_pin(stream, settings)
        return facts
    finally:
        await stream.close()
