"""Chains of a known length, filled through the API."""

from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import urlsplit

from benchmarks import workload

A_CALL = 2_000
RARE_EVENTS = 50


def fill(url: str, events: int) -> None:
    """Append that many events, 50 of them of the rare kind and spread evenly."""
    calls = max(1, events // A_CALL)
    common = workload.batch(min(A_CALL, events))
    with_rare = {rare: workload.batch(min(A_CALL, events), rare=rare) for rare in _rare_in(calls) if rare}
    bodies = [with_rare.get(rare, common) for rare in _rare_in(calls)]
    post_all(url, bodies)


def post_all(url: str, bodies: list[bytes]) -> None:
    """Append these batches, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda share: _post(url, share), (bodies[0::2], bodies[1::2])))


def _rare_in(calls: int) -> list[int]:
    """How many rare events go into each call."""
    upto = [RARE_EVENTS * (call + 1) // calls for call in range(calls)]
    return [now - before for before, now in zip([0, *upto], upto, strict=False)]


def _post(url: str, bodies: list[bytes]) -> None:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    for body in bodies:
        connection.request("POST", "/events/batch", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 201:
            raise RuntimeError(f"filling the chain: {answer.status} {said[:200]!r}")
    connection.close()
