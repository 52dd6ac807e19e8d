"""Clients for the tests, and what is in the chain."""

from collections.abc import Mapping
from typing import Any

import httpx

from audit_stream.client import AuditClient, Event, Receipt, Spooled
from audit_stream.client.wire import AsyncioWire
from tests.harness import ServerProcess


class UnhurriedWire(AsyncioWire):
    """Notes the pauses instead of making them."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout: httpx.Timeout) -> None:
        super().__init__(url, headers, timeout)
        self.pauses_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)


def event(receipt: Receipt) -> Event:
    assert isinstance(receipt, Event), receipt
    return receipt


def spooled(receipt: Receipt) -> Spooled:
    assert isinstance(receipt, Spooled), receipt
    return receipt


def numbers_in(server: ServerProcess) -> list[Any]:
    """The `n` of every payload in the chain, in order."""
    events = server.get("/events?after=0&limit=100000").raise_for_status().json()
    return [event["payload"]["n"] for event in events]


def append_numbers(client: AuditClient, *numbers: int) -> list[Receipt]:
    return [client.append("other", "tests", {"n": number}) for number in numbers]
