"""One server that reaches its Redis through a proxy: where a single step of a write is made to fail."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from tests.faults.campaign.valkey import Valkey
from tests.faults.evidence import stored
from tests.faults.processes import free_port
from tests.faults.proxy import proxy_to
from tests.harness import ServerProcess, running_server

CHAIN = "steps"
PATIENCE_S = 30
APPENDS_TO_SETTLE = 20


class House:
    """A server that reaches its Redis through a proxy, and that Redis' replica where there is one."""

    def __init__(self, folder: Path, stack: ExitStack, *, replicas: int = 0) -> None:
        self._stack = stack
        self.ack = f"fsync,replicas={replicas}"
        self.primary = stack.enter_context(Valkey(folder / "primary"))
        self.replicas = [
            stack.enter_context(Valkey(folder / f"replica-{n}", replica_of=self.primary)) for n in range(replicas)
        ]
        self.proxy = stack.enter_context(proxy_to(self.primary.url))
        self._port = free_port()
        self.start_server()

    def start_server(self) -> None:
        self.server: ServerProcess = self._stack.enter_context(
            running_server(
                PORT=str(self._port),
                AUDIT_STREAM_REDIS_URL=self.proxy.url,
                AUDIT_STREAM_CHAIN=CHAIN,
                AUDIT_STREAM_ACK=self.ack,
                # Each request here has a source of its own. Looking it up is no part of the write.
                AUDIT_STREAM_MAX_SOURCES="off",
            )
        )

    def post(self, request: str) -> httpx.Response:
        return self.server.post(body(request), **key(request))

    def settle(self) -> None:
        """A server that was overtaken asks Redis first, before its next batches; appends of its own end that."""
        for n in range(APPENDS_TO_SETTLE):
            assert self.server.post(body(f"settling-{n}")).status_code == 201

    def posting(self, request: str) -> "Posting":
        return Posting(self, request)

    def count(self, request: str) -> int:
        return sum(json.loads(event.payload)["request"] == request for event in stored(self.primary.url, CHAIN))

    def until_stored(self, request: str) -> None:
        self.primary.until(lambda: self.count(request) > 0)


class Posting:
    """A POST under way; its answer is None when the connection breaks."""

    def __init__(self, house: House, request: str) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._answer = self._thread.submit(self._post, house.server.url, request)

    @staticmethod
    def _post(url: str, request: str) -> httpx.Response | None:
        try:
            return httpx.post(f"{url}/events", json=body(request), headers=key(request), timeout=PATIENCE_S)
        except httpx.TransportError:
            return None

    def answer(self) -> httpx.Response | None:
        with self._thread:
            return self._answer.result(PATIENCE_S)


def key(request: str) -> dict[str, str]:
    return {"Idempotency-Key": request}


def body(request: str) -> dict[str, Any]:
    # A source of its own, so that it has an index of its own.
    return {"kind": "other", "source": request, "payload": {"request": request}}
