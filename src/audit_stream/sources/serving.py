"""GET /metrics of a process that has no other HTTP, in Prometheus' format."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from audit_stream.errors import Misconfigured
from audit_stream.sources.settings import Listen


@contextmanager
def served(
    registry: CollectorRegistry, listen: Listen | None, log: logging.Logger, *, asked_for: bool
) -> Iterator[None]:
    """Answer until the block ends. Raises Misconfigured when the address is not free and was `asked_for`."""
    if listen is None:
        yield
        return
    try:
        server, thread = start_http_server(listen.port, listen.host, registry)
    except OSError as error:
        problem = (
            f"METRICS_LISTEN: cannot listen on {listen.host}:{listen.port}: {error.strerror};"
            " choose another address, 127.0.0.1:0 for any free port, or off"
        )
        if asked_for:
            raise Misconfigured(problem) from error
        # A second one on this machine is nothing to fail for.
        log.warning("no metrics: %s", problem)
        yield
        return
    log.info("metrics at http://%s:%d/metrics", listen.host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
