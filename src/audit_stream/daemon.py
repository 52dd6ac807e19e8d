"""What every daemon beside the server has: addresses and levels from the environment, a log, and GET /metrics."""

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from audit_stream.errors import Misconfigured

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class Variable(NamedTuple):
    """An environment variable, as the documentation shows it."""

    default: str
    help: str


class Listen(NamedTuple):
    host: str
    port: int


def spine_url(text: str) -> str:
    from audit_stream.client.arguments import address_of

    try:
        # Those before us were given the address of POST /events, and people have it in their deployments.
        return address_of(re.sub(r"/events/?$", "", text))
    except Misconfigured as error:
        raise Misconfigured(f"AUDIT_STREAM_URL: {error}") from error


def level(text: str) -> str:
    if text.upper() not in LEVELS:
        raise Misconfigured(f"LOG_LEVEL: {text!r} is not one of {', '.join(LEVELS)}")
    return text.upper()


def listen(text: str) -> Listen | None:
    """Where to listen; None for off."""
    if text.lower() == "off":
        return None
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise Misconfigured(f"METRICS_LISTEN: {text!r} is no address; write it like 127.0.0.1:8094, or off")
    return Listen(host.strip("[]") or "127.0.0.1", int(port))


def log_to_stderr(log_level: str) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=log_level)
    for library in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(library).setLevel(logging.WARNING)  # they tell of each request


@contextmanager
def served(
    registry: "CollectorRegistry", where: Listen | None, log: logging.Logger, *, asked_for: bool
) -> Iterator[None]:
    """Answer GET /metrics until the block ends.

    Raises Misconfigured when the address is not free and was `asked_for`; else that is only logged, for a second
    daemon on one machine is nothing to fail for.
    """
    from prometheus_client import start_http_server

    with ExitStack() as stack:
        if where is not None:
            try:
                server, thread = start_http_server(where.port, where.host, registry)
            except OSError as error:
                problem = (
                    f"METRICS_LISTEN: cannot listen on {where.host}:{where.port}: {error.strerror};"
                    " choose another address, 127.0.0.1:0 for any free port, or off"
                )
                if asked_for:
                    raise Misconfigured(problem) from error
                log.warning("no metrics: %s", problem)
            else:
                stack.callback(thread.join)
                stack.callback(server.server_close)
                stack.callback(server.shutdown)
                log.info("metrics at http://%s:%d/metrics", where.host, server.server_port)
        yield
