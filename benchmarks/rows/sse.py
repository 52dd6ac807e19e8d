"""Following live: many subscribers, what reaches them and when, and what that costs the producers."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from benchmarks import workload
from benchmarks.envs import python_of
from benchmarks.load import Load, post_exactly
from benchmarks.processes import Child, a_child, a_valkey, asgi_server, our_server
from benchmarks.session import Session, busy, rates
from benchmarks.table import Line, Target

SAMPLED = 50
PATIENCE_S = 5.0
PACED_EVENTS = 20
PACE_S = 0.1
CONNECTIONS = 64


def against_reference(session: Session) -> list[Line]:
    scale = session.scale
    with ExitStack() as stack:
        ours = stack.enter_context(our_server(stack.enter_context(a_valkey()))).url
        unheard = stack.enter_context(our_server(stack.enter_context(a_valkey()))).url
        reference, _ = stack.enter_context(asgi_server(python_of("reference"), "audit_stream.app:app"))
        crowds = {
            "ours": stack.enter_context(a_crowd(ours, scale.subscribers)),
            "reference": stack.enter_context(a_crowd(reference, scale.subscribers)),
        }
        bursts = session.take_turns({name: partial(crowd.burst, scale.burst_events) for name, crowd in crowds.items()})
        delays = session.take_turns({name: crowd.delay_p99_ms for name, crowd in crowds.items()}, warm_up=False)
        appends = session.take_turns(
            {
                "alone": lambda: _flat_out(unheard, scale.flat_out_posts),
                "heard": lambda: crowds["ours"].flat_out(scale.flat_out_posts),
                "heard for long": lambda: crowds["ours"].flat_out(scale.sustained_posts),
            }
        )
        counted, theirs = crowds["ours"].counts, crowds["reference"]
        # Once, few and at the end: each takes it long, and behind a full queue its subscribers hear nothing more.
        in_reference = theirs.flat_out(scale.flat_out_posts // 10)
        lost = f"{theirs.counts['lost']:,} lost by the reference"
    row = f"SSE, {scale.subscribers:,} subscribers"
    return [
        Line(
            f"{row}: a burst of {scale.burst_events}",
            "deliveries/s",
            bursts["ours"],
            "reference",
            bursts["reference"],
            Target("≥", 3),
        ),
        Line(f"{row}: p99 from 201 to arrival", "ms", delays["ours"], "reference", delays["reference"]),
        Line(
            f"{row}: {scale.flat_out_posts:,} appends meanwhile",
            "requests/s",
            rates(appends["heard"]),
            "ours without subscribers",
            rates(appends["alone"]),
            Target("≥", 0.5),
            busy(appends["heard"]),
            f"{CONNECTIONS} connections, flat out; the reference meanwhile {in_reference.rate:,.0f}/s",
        ),
        Line(
            f"{row}: {scale.sustained_posts:,} appends meanwhile",
            "requests/s",
            rates(appends["heard for long"]),
            "ours without subscribers",
            rates(appends["alone"]),
            None,
            busy(appends["heard for long"]),
            "no more than the sockets take: every append is a thousand frames, half a megabyte",
        ),
        Line(
            f"{row}: lost or repeated",
            "frames",
            [counted["lost"] + counted["repeated"]],
            target=Target("=", 0, "value"),
            note=f"of {counted['frames']:,}; {counted['reconnects']:,} resumed by id; {lost}",
        ),
    ]


class Crowd:
    """All subscribers of one server, in a process of their own."""

    def __init__(self, url: str, child: Child, count: int) -> None:
        self._url, self._child, self._count = url, child, count
        self.counts: dict[str, Any] = {}

    def settle(self) -> None:
        """Append until every subscriber has heard something: only then are all of them subscribed."""
        for _ in range(10):
            post_exactly(f"{self._url}/events", workload.one(), 1, connections=1)
            if self._all_read(patience_s=1.0):
                return
        raise RuntimeError(f"some of the subscribers of {self._url} hear nothing: {self.counts}")

    def _all_read(self, patience_s: float = PATIENCE_S) -> bool:
        self.counts = self._child.ask(reach=last_event_id(self._url), patience=patience_s)
        return bool(self.counts["reached"] == self._count)

    def burst(self, events: int) -> float:
        """Deliveries a second, from the first POST to the last arrival."""
        load = post_exactly(f"{self._url}/events", workload.one(), events, connections=16)
        self._all_read()
        return float(events * self._count / (self.counts["last_frame"] - load.began))

    def delay_p99_ms(self) -> float:
        """From the 201 to the arrival, at ten events a second; an arrival before the 201 counts as 0.01 ms."""
        self._child.ask(arrivals=True)
        answered = dict(paced_posts(self._url))
        self._all_read()
        arrivals: list[tuple[int, float]] = self._child.ask(arrivals=True)
        delays = sorted(max(1e-5, at - answered[event_id]) for event_id, at in arrivals if event_id in answered)
        return delays[len(delays) * 99 // 100] * 1000

    def flat_out(self, events: int) -> Load:
        load = _flat_out(self._url, events)
        self._all_read()
        return load


@contextmanager
def a_crowd(url: str, count: int) -> Iterator[Crowd]:
    with a_child(sys.executable, "-m", "benchmarks.subscribers", url, str(count), str(SAMPLED)) as child:
        crowd = Crowd(url, child, count)
        crowd.settle()
        yield crowd


def _flat_out(url: str, events: int) -> Load:
    return post_exactly(f"{url}/events", workload.one(), events, connections=CONNECTIONS)


def paced_posts(url: str) -> Iterator[tuple[int, float]]:
    """Append slowly; yield each event_id and when its 201 was there, on time.monotonic()."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
    began = time.monotonic()
    for number in range(PACED_EVENTS):
        time.sleep(max(0.0, began + number * PACE_S - time.monotonic()))
        connection.request("POST", "/events", workload.one(), {"Content-Type": "application/json"})
        body = connection.getresponse().read()
        yield json.loads(body)["event_id"], time.monotonic()
    connection.close()


def last_event_id(url: str) -> int:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", "/stats")
    found: int = json.loads(connection.getresponse().read())["last_event_id"]
    connection.close()
    return found
