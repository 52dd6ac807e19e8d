"""A chain as somebody with `redis-cli` sees it, and may change it behind the server's back."""

from collections.abc import Callable
from typing import Any

import redis

from audit_stream.chain import link_hash

Entry = tuple[bytes, list[bytes]]
"""Entry id, and its fields and values one after another, as they are stored."""

FIELDS = (b"timestamp", b"kind", b"source", b"payload", b"prev_hash", b"hash")


def _as_it_came(reply: Any, **_options: Any) -> Any:
    return reply


class Stored:
    """The keys of one chain. No entry of a Redis stream can be changed in place, so a change builds the key anew."""

    def __init__(self, url: str, chain: str) -> None:
        self.client: redis.Redis = redis.Redis.from_url(url, protocol=2)
        self.client.set_response_callback("XRANGE", _as_it_came)
        self.tag = b"{%b}:" % chain.encode()
        self.events = self.tag + b"events"

    def close(self) -> None:
        self.client.close()

    def key(self, name: str) -> bytes:
        """The key of `time`, `kind:…`, `source:…`."""
        return self.tag + name.encode()

    # --- all keys at once

    def all_keys(self) -> list[bytes]:
        return sorted(key for key in self.client.scan_iter(count=10_000) if key.startswith(self.tag))

    def dump(self) -> dict[bytes, bytes]:
        """A backup of the chain, what Redis knows about its streams included."""
        return {key: self.client.execute_command("DUMP", key) for key in self.all_keys()}

    def restore(self, dump: dict[bytes, bytes]) -> None:
        for key in self.all_keys():
            if key not in dump:
                self.client.delete(key)
        for key, value in dump.items():
            self.client.restore(key, 0, value, replace=True)

    # --- one stream

    def entries(self, key: bytes | None = None) -> list[Entry]:
        found: list[Entry] = self.client.execute_command("XRANGE", key or self.events, "-", "+")
        return found

    def rebuild(self, entries: list[Entry], key: bytes | None = None) -> None:
        key = key or self.events
        self.client.delete(key)
        for entry_id, fields in entries:
            self.client.execute_command("XADD", key, entry_id, *fields)

    def change(self, change: Callable[[list[Entry]], object], key: bytes | None = None) -> None:
        """Build the stream anew from its entries after `change` has worked on the list."""
        entries = self.entries(key)
        change(entries)
        self.rebuild(entries, key)

    def delete(self, *event_ids: int, key: bytes | None = None) -> None:
        assert self.client.xdel(key or self.events, *(b"%d-0" % event_id for event_id in event_ids)) == len(event_ids)


def value(entry: Entry, field: bytes) -> bytes:
    return entry[1][entry[1].index(field) + 1]


def put(entry: Entry, field: bytes, new: bytes) -> None:
    entry[1][entry[1].index(field) + 1] = new


def link(entries: list[Entry], start: int = 0) -> None:
    """Give the events from position `start` on the ids, links and hashes that their content asks for."""
    for place in range(start, len(entries)):
        entry_id = place + 1
        fields = list(entries[place][1])
        entries[place] = entry = (b"%d-0" % entry_id, fields)
        prev_hash = value(entries[place - 1], b"hash") if place else b"0" * 64
        put(entry, b"prev_hash", prev_hash)
        timestamp, kind, source, payload = (value(entry, name) for name in FIELDS[:4])
        put(entry, b"hash", link_hash(entry_id, timestamp, kind, source, payload, prev_hash))
