"""The rows of the table, by name: a part of it is run with `--row NAME`."""

from collections.abc import Callable

from benchmarks.rows import batch, bus, kafka, long_chain, post, postgres, projection, replicas, sse, verify
from benchmarks.session import Session
from benchmarks.table import Line

ROWS: dict[str, Callable[[Session], list[Line]]] = {
    "post": post.against_reference,
    "postgres": post.against_postgres,
    "no-storage": post.against_no_storage,
    "batch": batch.against_bare_xadd,
    "kafka": kafka.to_the_chain,
    "verify": verify.against_reference_and_bare_xrange,
    "jobs": verify.on_several_cores,
    "sse": sse.against_reference,
    "replicas": replicas.against_one,
    "bus": bus.against_published,
    "outbox": postgres.watched_against_unwatched,
    "relay": postgres.end_to_end,
    "projection": projection.each_sink,
    "long-chain": long_chain.all_on_one_chain,
}
