"""GET /stream as other people's libraries read it: one event for each event, and none for anything else."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import httpx_sse
import pytest
import sseclient

from tests.harness import ServerProcess, running_server

Read = Callable[[httpx.Response], Iterator[Any]]
READERS: dict[str, Read] = {
    "httpx-sse": lambda answer: httpx_sse.EventSource(answer).iter_sse(),
    "sseclient-py": lambda answer: sseclient.SSEClient(answer.iter_bytes()).events(),
}


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[ServerProcess]:
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=f"sse.{os.urandom(4).hex()}") as started:
        yield started


@contextmanager
def stream(server: ServerProcess, **query: str) -> Iterator[httpx.Response]:
    with server.client.stream("GET", "/stream", params=query, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200
        yield answer


@pytest.mark.parametrize("library", READERS)
def test_a_library_hands_out_one_event_for_each(server: ServerProcess, library: str) -> None:
    first = server.post({"kind": "other", "source": "s"}).json()
    with stream(server, after=str(first["event_id"] - 1)) as answer:
        events = READERS[library](answer)
        frames = [next(events)]
        later = server.post_batch([{"kind": "flag_swapped", "source": "s"}, {"kind": "other", "source": "s"}]).json()
        frames += [next(events), next(events)]
    assert [frame.event for frame in frames] == ["other", "flag_swapped", "other"]
    assert [frame.id for frame in frames] == [str(event["event_id"]) for event in (first, *later)]
    assert all('"hash"' in frame.data for frame in frames)
    assert int(frames[0].retry) == 2000
