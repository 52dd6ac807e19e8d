"""GET /stream as other people's libraries read it: one event for each event, and none for anything else."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import httpx_sse
import pytest
import sseclient

from audit_stream.appender import Appender
from audit_stream.event import PublishRequest, draft
from audit_stream.stream import Stream
from audit_stream.tail import Tail, View
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


def heard(library: str, stream: bytes) -> list[str]:
    request = httpx.Request("GET", "http://here/stream")
    answer = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=stream, request=request)
    return [event.id for event in READERS[library](answer)]


def test_no_library_takes_a_heartbeat_under_a_filter_for_an_event(redis_url: str, chain: str) -> None:
    async def test() -> tuple[bytes, bytes]:
        stream, kinds = Stream.at(redis_url, chain), frozenset({"other", "flag_swapped"})
        async with Appender(stream) as appender, Tail(stream, heartbeat_s=0.01) as tail:
            for kind in ("flag_swapped", "other", "other"):
                await appender.append([draft(PublishRequest(kind, "s"), kinds)])
            read = []
            for bare_ids in (False, True):
                following, chunks = tail.follow(0, View(kind="flag_swapped"), bare_ids=bare_ids), b""
                while not chunks.endswith(b"}\n\n"):
                    chunks += await anext(following)
                await appender.append([draft(PublishRequest("other", "s"), kinds)])
                while chunks.count(b": heartbeat\n") < 3:
                    chunks += await anext(following)
                await appender.append([draft(PublishRequest("flag_swapped", "s"), kinds)])
                while not chunks.endswith(b"}\n\n"):
                    chunks += await anext(following)
                await following.aclose()  # type: ignore[attr-defined]
                read.append(chunks)
        await stream.close()
        return read[0], read[1]

    for_all, by_the_standard = asyncio.run(asyncio.wait_for(test(), 60))
    assert heard("httpx-sse", for_all) == heard("sseclient-py", for_all) == ["1", "5"]
    assert b"\nid: 6\n\n" in by_the_standard
    assert heard("sseclient-py", by_the_standard) == ["1", "5", "7"]
    assert len(heard("httpx-sse", by_the_standard)) > 3  # why not everyone gets those
