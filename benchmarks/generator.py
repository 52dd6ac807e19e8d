"""The bundled load generator: as little work a request as asyncio allows. A process of its own.

    python generator.py URL BODY-FILE CONNECTIONS SECONDS REQUESTS

Sends the same POST again on each kept connection as soon as its answer is there, for that many seconds
or, when REQUESTS is not 0, that many times in all. Prints the same line of JSON as wrk.lua.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from uvloop import run

PATIENCE_S = 120


class Budget:
    """What all connections share."""

    def __init__(self, connections: int, seconds: float, requests: int) -> None:
        self.to_send = requests or sys.maxsize
        self.open = connections
        self.failed = 0
        self.took: list[float] = []
        self.began = time.monotonic()
        self.until = self.began + seconds if not requests else float("inf")
        self.finished = asyncio.Event()


class Connection(asyncio.Protocol):
    def __init__(self, request: bytes, budget: Budget) -> None:
        self._request, self._budget = request, budget
        self._missing = 0
        self._head = b""
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        if self._sent >= self._budget.until or not self._budget.to_send:
            self._transport.close()
            return
        self._budget.to_send -= 1
        self._waiting = True
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 2"):
                self._budget.failed += 1
            self._missing = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]) - len(body)
            self._head = b""
        else:
            self._missing -= len(data)
        if not self._missing:
            self._waiting = False
            self._budget.took.append(time.monotonic() - self._sent)
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._budget.failed += self._waiting
        self._budget.open -= 1
        if not self._budget.open:
            self._budget.finished.set()


async def main(url: str, body: bytes, connections: int, seconds: float, requests: int) -> None:
    target = urlsplit(url)
    head = f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    budget = Budget(connections, seconds, requests)
    for _ in range(connections):
        await asyncio.get_running_loop().create_connection(
            lambda: Connection(request, budget), target.hostname or "", target.port or 80
        )
    async with asyncio.timeout(seconds + PATIENCE_S):
        await budget.finished.wait()
    took = sorted(budget.took)
    found = {
        "requests": len(took),
        "seconds": time.monotonic() - budget.began,
        "p99_ms": took[len(took) * 99 // 100] * 1000 if took else 0,
        "failed": budget.failed,
        "began": budget.began,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    file, *numbers = sys.argv[2:]
    run(main(sys.argv[1], Path(file).read_bytes(), int(numbers[0]), float(numbers[1]), int(numbers[2])))
