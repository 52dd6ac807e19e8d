"""One server with tokens for all of these tests, and a log of everything it says."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.access.holders import Holder, write_tokens
from tests.harness import ServerProcess, logging_server

ORIGIN = "https://board.example.org"


class Guarded(NamedTuple):
    server: ServerProcess
    path: Path
    """Its token file."""
    log: Path
    holders: dict[str, Holder]

    def get(self, holder: str, path: str, **headers: str) -> httpx.Response:
        return self.server.client.get(path, headers={**self.holders[holder].header, **headers})

    def post(self, holder: str, path: str, body: object) -> httpx.Response:
        return self.server.client.post(path, json=body, headers=self.holders[holder].header)


@pytest.fixture(scope="package")
def guarded(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("access")
    holders = [
        Holder("everything", "append", "read", "metrics"),
        Holder("producer", "append"),
        Holder("reader", "read"),
        Holder("scraper", "metrics"),
        Holder("a-producer", "append", sources=("a",)),
        Holder("a-reader", "read", sources=("a", "é")),
        Holder("a-scraper", "metrics", sources=("a",)),
        Holder("slow", "append", "read", requests_per_second=0.01),
        Holder("thin", "append", "read", bytes_per_second=0.5),
    ]
    write_tokens(folder / "tokens.toml", *holders)
    settings = {
        "AUDIT_STREAM_REDIS_URL": redis_url,
        "AUDIT_STREAM_CHAIN": f"access.{secrets.token_hex(4)}",
        "AUDIT_STREAM_TOKENS": str(folder / "tokens.toml"),
        "AUDIT_STREAM_CORS": ORIGIN,
        "FORWARDED_ALLOW_IPS": "127.0.0.1",
        "HOST": "127.0.0.1",
    }
    with (
        (folder / "log").open("wb") as log,
        logging_server(log, "--log-level", "debug", **settings) as server,
    ):
        guarded = Guarded(server, folder / "tokens.toml", folder / "log", {holder.name: holder for holder in holders})
        for source in ("a", "b", "é"):
            guarded.post("everything", "/events", {"kind": "other", "source": source}).raise_for_status()
        yield guarded
