"""Clients with a spool, and what is in it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audit_stream.client import AuditClient
from tests.client.clients import append_numbers, spooled

NOWHERE = "http://127.0.0.1:1"


@contextmanager
def client_of(url: str, path: Path, patience_s: float = 0) -> Iterator[AuditClient]:
    with AuditClient(url, spool=path, patience_s=patience_s) as client:
        yield client


def fill(path: Path, *numbers: int) -> None:
    with client_of(NOWHERE, path) as client:
        for receipt in append_numbers(client, *numbers):
            spooled(receipt)


def refused_in(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(f"{path}.refused").read_text().splitlines()]
