"""The tokens in force: found by what a request presents, and read again when their file changes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from audit_stream.access.entry import Entry, read_entries
from audit_stream.access.limit import Limit
from audit_stream.errors import Misconfigured

LOOK_EVERY_S = 1.0
MAX_TOKEN_BYTES = 512

log = logging.getLogger(__name__)


class Grant:
    """What one token allows in this process."""

    __slots__ = ("bytes", "digest", "entry", "name", "requests", "revoked", "scopes", "sources")

    def __init__(self, entry: Entry, requests_per_second: int | None, bytes_per_second: int | None) -> None:
        self.entry, self.name, self.digest = entry, entry.name, entry.digest
        self.scopes = frozenset(entry.scopes)
        self.sources = None if entry.sources is None else frozenset(entry.sources)
        self.requests = _limit(entry.requests_per_second or requests_per_second)
        self.bytes = _limit(entry.bytes_per_second or bytes_per_second)
        self.revoked = asyncio.Event()
        """Set when the file no longer says this."""

    def __repr__(self) -> str:
        return f"Grant({self.name!r})"


def _limit(per_second: float | None) -> Limit | None:
    return None if per_second is None else Limit(per_second)


class Tokens:
    """The file's tokens. A change is seen within a second; one with a mistake changes nothing and is logged."""

    def __init__(
        self, path: Path, *, requests_per_second: int | None = None, bytes_per_second: int | None = None
    ) -> None:
        """The rates are for tokens that name none. Raises Misconfigured."""
        self._path = path
        self._rates = (requests_per_second, bytes_per_second)
        self._seen = _signature(path)
        self._grants: dict[bytes, Grant] = {}
        self._put_in_force(read_entries(path))

    def find(self, token: bytes) -> Grant | None:
        if len(token) > MAX_TOKEN_BYTES:
            return None
        digest = sha256(token).digest()
        # How long the first look takes depends on half a SHA-256, which says nothing about a token that is
        # nearly right; the comparison that decides takes the same time wherever the two differ.
        grant = self._grants.get(digest[:16])
        return grant if grant is not None and compare_digest(grant.digest, digest) else None

    def starting(self, digest: bytes) -> Grant | None:
        """Return the token whose SHA-256 starts with these 16 bytes. It was not presented: the caller needs a proof."""
        return self._grants.get(digest)

    def look(self) -> None:
        """Read the file again if it is another one than before. Whatever is wrong with it is logged once."""
        seen = _signature(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            entries = read_entries(self._path)
        except Misconfigured as error:
            log.error("%s. The tokens stay as they were.", error)
            return
        self._put_in_force(entries)
        log.info("%s was read again: %d tokens", self._path, len(self._grants))

    def _put_in_force(self, entries: Sequence[Entry]) -> None:
        # Whose entry is as it was keeps its grant: what is counted towards its limits, and its open streams.
        before = {grant.entry: grant for grant in self._grants.values()}
        grants = [before.pop(entry) if entry in before else Grant(entry, *self._rates) for entry in entries]
        self._grants = {grant.digest[:16]: grant for grant in grants}
        for grant in before.values():
            grant.revoked.set()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """See changes for as long as this is open."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()


def _signature(path: Path) -> tuple[int, ...]:
    """What changes with the file: also when it is renamed into place, or a link turns to another one."""
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
