"""SSE readers in processes of their own, and what they saw.

Run as `python -m tests.faults.campaign.readers URL...`, this follows the stream from event 1 until it is ended,
as a browser does: when its stream ends it comes back by its last id, at the next of the servers. Each event is
printed as its id and its hash. It asks nobody what was missed: that is for `Reader.check` to find.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Self

from audit_stream.chain import Event
from tests.harness import ROOT, clean_environ
from tests.integration.sse_client import open_stream

PATIENCE_S = 60


async def read(urls: Sequence[str]) -> None:
    last = 0
    for url in itertools.cycle(urls):
        try:
            async with open_stream(url, last_event_id=last) as stream:
                if stream.status == 503:
                    raise ConnectionError(f"{url} has no Redis")
                # 409 is a cursor ahead of the chain. A browser gives up there, and so does this: check will tell.
                assert stream.status == 200, f"{url} answers {stream.status} behind {last}"
                async for frame in stream.events():
                    assert frame.id is not None
                    assert frame.data is not None
                    last = frame.id
                    print(last, json.loads(frame.data)["hash"], flush=True)
        except (OSError, asyncio.IncompleteReadError):
            pass  # nobody listens there at the moment
        await asyncio.sleep(0.05)


class Reader:
    """Such a process, started with the block and killed with it."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._seen: list[tuple[int, bytes]] = []
        self._news = threading.Condition()
        self._checked = 0

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.campaign.readers", *self._urls],
            cwd=ROOT,
            env=clean_environ(PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{ROOT}"),
            stdout=subprocess.PIPE,
            text=True,
        )
        self._collector = threading.Thread(target=self._collect)
        self._collector.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._collector.join()
        assert self.process.stdout
        self.process.stdout.close()

    def _collect(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.note(line)

    def note(self, line: str) -> None:
        """It saw an event: its id and its hash."""
        number, _, hash_ = line.strip().partition(" ")
        with self._news:
            self._seen.append((int(number), hash_.encode()))
            self._news.notify_all()

    @property
    def last_seen(self) -> int:
        with self._news:
            return self._seen[-1][0] if self._seen else 0

    def shown_in_vain(self, events: Sequence[Event]) -> set[bytes]:
        """The hashes that it saw in place of these events: those of a primary that is no more."""
        with self._news:
            pairs = zip(events, self._seen, strict=False)
            return {found[1] for event, found in pairs if found != (event.event_id, event.hash)}

    def gave_up(self) -> bool:
        """Whether it came back with the id of an event that the chain does not have."""
        return self.process.poll() is not None

    def check(self, events: Sequence[Event], *, from_the_start: bool = False) -> None:
        """Wait until it has come to the end of these events: it saw each of them once, in order."""
        with self._news:
            self._news.wait_for(lambda: len(self._seen) >= len(events), PATIENCE_S)
            begin = 0 if from_the_start else self._checked
            seen = self._seen[begin : len(events)]
            for event, found in zip(events[begin:], seen, strict=False):
                wanted = (event.event_id, event.hash)
                assert found == wanted, f"the reader of {self._urls} saw {found} where {wanted} is stored"
            assert len(self._seen) >= len(events), (
                f"the reader of {self._urls} saw {len(self._seen)} of {len(events)} events within {PATIENCE_S} s"
            )
            self._checked = len(events)


if __name__ == "__main__":
    asyncio.run(read(sys.argv[1:]))
