"""A limit on distinct sources: each costs Redis an index of its own, for as long as the chain exists.

A source that this process has seen costs an append one look into a set. Any other is looked up in Redis once, in the
set that all replicas share (`known_sources`). Two replicas that look at the same moment may each let a source in, so
the limit can be exceeded by a few.

Where the limit cannot be kept, who repairs it:

    Redis is unavailable                the append is refused, as it would be without a limit
    Redis does not permit the commands  appends go on without the limit, and the log says so once: it guards memory,
    or the key is not a set             and a full stop costs more than that
    the server dies before it appends   the source counts although it has no event, until `reindex` drops the set
"""

import asyncio
import logging
from collections.abc import Sequence

from audit_stream.connection import end
from audit_stream.errors import AuditStreamError, ChainBroken, Denied, Refused, Unreachable
from audit_stream.event import Draft
from audit_stream.known_sources import COMPLETE
from audit_stream.stream import Stream

REMEMBERED = 100_000
"""So many sources a process remembers; then it begins anew, and looks them up in Redis again."""
PAGE = 1_000

log = logging.getLogger(__name__)


class SourceLimit:
    """Lets a new source in while there are fewer than `most`. Start it with `async with`."""

    def __init__(self, stream: Stream, most: int) -> None:
        self._stream, self._most = stream, most
        self._seen: set[bytes] = set()
        self._completing: asyncio.Task[None] | None = None
        self._error = ""
        """Why the limit is not kept; empty when it is."""

    async def __aenter__(self) -> "SourceLimit":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._completing:
            await end(self._completing)

    def unseen(self, drafts: Sequence[Draft]) -> list[bytes]:
        """Return the sources to be let in first, each once and in order. Without any, nothing more needs to be done."""
        seen = self._seen
        return list(dict.fromkeys([draft.source for draft in drafts if draft.source not in seen]))

    async def admit(self, sources: Sequence[bytes], drafts: Sequence[Draft], *, batch: bool = False) -> None:
        """Raise Refused for the first draft whose source is one too many. Raises Unreachable."""
        try:
            new, size, complete = await self._stream.known_sources.look(sources)
            if new:
                # A source of the time before the set, or of an import, goes on whatever the limit is.
                old = await self._stream.known_sources.indexed(new)
                added = [source for source in new if source not in old]
                room = max(0, self._most - size)
                if len(added) > room:
                    raise self._refusal(added[room], drafts, batch=batch)
                if not complete and size == 0 and (await self._stream.head()).event_id == 0:
                    # An empty chain has no older sources: nothing has to be looked for among all of Redis' keys.
                    new, complete = [*new, COMPLETE], True
                await self._stream.known_sources.add(new)
        except (Denied, ChainBroken) as error:
            self._report(error)
            return
        except Unreachable as error:
            raise Unreachable(f"{error.reason}; nothing was written", reason=error.reason) from error
        self._error = ""
        if not complete and (self._completing is None or self._completing.done()):
            self._completing = asyncio.create_task(self._complete(), name="sources")
        if len(self._seen) + len(sources) > REMEMBERED:
            self._seen.clear()
        self._seen.update(sources)

    def _refusal(self, source: bytes, drafts: Sequence[Draft], *, batch: bool) -> Refused:
        refused = Refused(
            f"source: {source.decode()!r} is new, and this chain has as many distinct sources as"
            f" AUDIT_STREAM_MAX_SOURCES={self._most} allows; nothing was written. Send the event under a source that"
            " the chain knows and put what varies into the payload, or raise the limit",
            field="source",
        )
        if not batch:
            return refused
        return refused.within_batch(next(index for index, draft in enumerate(drafts) if draft.source == source))

    async def _complete(self) -> None:
        """Add the sources whose events are older than the set."""
        try:
            prefix = self._stream.keys.source(b"")
            keys = await self._stream.indexes.find_keys()
            sources = [key[len(prefix) :] for key in keys if key.startswith(prefix)]
            for start in range(0, len(sources), PAGE):
                await self._stream.known_sources.add(sources[start : start + PAGE])
            await self._stream.known_sources.add([COMPLETE])
        except AuditStreamError as error:
            self._report(error)  # the next new source begins it again

    def _report(self, error: AuditStreamError) -> None:
        if str(error) != self._error:
            self._error = str(error)
            log.error("AUDIT_STREAM_MAX_SOURCES=%d is not kept: %s", self._most, error)
