"""Running the server: one process or several, over a given Redis or an embedded Valkey."""

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from ipaddress import ip_address

from audit_stream import __version__
from audit_stream.access.entry import read_entries
from audit_stream.embedded import EmbeddedValkey
from audit_stream.errors import Misconfigured
from audit_stream.keeper import check_pin
from audit_stream.promise import describe
from audit_stream.server.logs import is_text, json_line, set_up_logs
from audit_stream.server.process import STARTUP_FAILURE, Server, load_tracing
from audit_stream.server.workers import Workers
from audit_stream.settings import Settings
from audit_stream.spine import check, findings_on
from audit_stream.stream import Stream

log = logging.getLogger(__name__)


def serve(environ: Mapping[str, str], *, workers: int = 1, say: Callable[[str], None] = print) -> int:
    """Run until SIGTERM or SIGINT; return the exit code. A line on standard output says when the server takes requests.

    `say` prints that line for a person. Where the log is JSON, the line is JSON too and has the address as `url`.
    Raises Misconfigured before anything listens when a setting, the port or Redis is not right.
    """
    settings = Settings.from_env(environ)
    set_up_logs(settings.log, settings.log_level)
    if settings.otel:
        load_tracing()  # here, where it can still be said what is not installed
    if settings.tokens:
        read_entries(settings.tokens)
    _check_tls(settings)
    with ExitStack() as stack:
        sock = stack.enter_context(_listen(settings))
        _warn_if_open(settings, sock)
        where = "as given"
        if settings.redis_url is None:
            valkey = stack.enter_context(EmbeddedValkey(settings.data_dir))
            pin = str(settings.pin or "off")
            environ = {**environ, "AUDIT_STREAM_REDIS_URL": valkey.url, "AUDIT_STREAM_PIN": pin}
            settings = Settings.from_env(environ)
            where = f"embedded, data in {settings.data_dir}"
        elif settings.pin is None and settings.ack.fsync and not environ.get("AUDIT_STREAM_PIN", "").strip():
            log.warning(
                "no pin: acknowledged events that Redis loses would go unnoticed after a restart of this server."
                " Set AUDIT_STREAM_PIN to a file, or to off"
            )
        facts = asyncio.run(_check(settings))
        host, port = sock.getsockname()[:2]
        scheme = "https" if settings.tls_cert else "http"
        url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        ready = (
            f"audit-stream {__version__} on {url}"
            f" · chain {settings.chain!r} on {describe(facts)} ({where}) · a 201 means: {settings.ack}"
        )

        def announce() -> None:
            text = ready if workers == 1 else f"{ready} · {workers} workers"
            if is_text(settings.log, sys.stdout):
                say(text)
            else:
                print(json_line(log, text, url=url), flush=True)

        if workers == 1:
            server = Server(settings, on_started=announce)
            server.run(sockets=[sock])
            return 0 if server.started else STARTUP_FAILURE
        return Workers(environ, sock, workers).run(announce)


def _check_tls(settings: Settings) -> None:
    if settings.tls_cert is None:
        if settings.tls_key:
            raise Misconfigured(
                "AUDIT_STREAM_TLS_KEY: there is a key but no certificate; set AUDIT_STREAM_TLS_CERT too"
            )
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # An encrypted key would make OpenSSL ask on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: b"")
    except (OSError, ValueError) as error:
        key = f" with the key {settings.tls_key}" if settings.tls_key else " (and AUDIT_STREAM_TLS_KEY is not set)"
        why = getattr(error, "strerror", None) or error
        raise Misconfigured(f"AUDIT_STREAM_TLS_CERT: {settings.tls_cert}{key} cannot be used: {why}") from error


def _warn_if_open(settings: Settings, sock: socket.socket) -> None:
    if ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback:
        return
    where = f"{settings.bind_host}:{sock.getsockname()[1]}"
    if not settings.tokens:
        log.warning("whoever reaches %s may append and read: AUDIT_STREAM_TOKENS is not set", where)
    elif not settings.tls_cert and not settings.forwarded_allow_ips:
        log.warning(
            "tokens travel to %s unencrypted: set AUDIT_STREAM_TLS_CERT, or put a proxy with TLS in front"
            " and name it in FORWARDED_ALLOW_IPS",
            where,
        )


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
        for finding in findings_on(facts, settings):
            log.warning("%s", finding)
        await check_pin(stream, settings)
        return facts
    finally:
        await stream.close()
