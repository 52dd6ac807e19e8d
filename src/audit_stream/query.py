"""Finding events: filters become a short list of event_ids, read from the indexes alone."""

from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import NamedTuple

from audit_stream.chain import Event
from audit_stream.stream import Stream

INDEX_PAGE = 5_000
PICK_PAGE = 500
PAGE_BYTES = 256 * 1024
"""A page is cut here: a reader that does not read holds no more than that, or one event."""


class Filter(NamedTuple):
    """Which events to return; all parts must hold."""

    kind: str | None = None
    source: str | None = None
    since: datetime | None = None
    """Committed at or after this instant."""
    until: datetime | None = None
    """Committed before this instant."""
    after: int | None = None
    """A cursor. With it the oldest events behind it come first; without it, the newest."""
    before: int | None = None
    limit: int = 1000


class Selection(NamedTuple):
    event_ids: Sequence[int]
    """Ascending, at most `limit`."""
    more: bool
    """There are further ones, on the side the paging goes to."""


class Pace:
    """How many events to read at once, so that a page stays near `target_bytes` whatever the payloads weigh."""

    def __init__(self, *, target_bytes: int = 512 * 1024, most: int = 1000) -> None:
        self._target_bytes, self._most = target_bytes, most
        self.count = 4
        """The first page is small: nothing is known of the payloads yet."""

    def saw(self, events: Sequence[Event]) -> None:
        if events:
            mean = sum(len(event.payload) for event in events) / len(events) + 256
            self.count = max(1, min(self._most, int(self._target_bytes / mean)))


async def select(stream: Stream, filter_: Filter) -> Selection:
    """Find the event_ids. Raises Unreachable."""
    low, high = (filter_.after or 0) + 1, None if filter_.before is None else filter_.before - 1
    if filter_.since is not None:
        first = await stream.indexes.first_at(_ms(filter_.since))
        if first is None:
            return _NOTHING
        low = max(low, first)
    if filter_.until is not None:
        last = await stream.indexes.last_before(_ms(filter_.until))
        if last is None:
            return _NOTHING
        high = last if high is None else min(high, last)
    if high is not None and high < low:
        return _NOTHING
    newest_first = filter_.after is None
    indexes = []
    if filter_.kind is not None:
        indexes.append(stream.keys.kind(filter_.kind.encode()))
    if filter_.source is not None:
        indexes.append(stream.keys.source(filter_.source.encode()))
    if not indexes:
        return await _without_index(stream, low, high, filter_.limit, newest_first)
    if len(indexes) == 2:
        lengths = await stream.indexes.lengths(indexes)
        if lengths[1] < lengths[0]:
            indexes.reverse()
    found = await _from_indexes(stream, indexes, low, high, filter_.limit + 1, newest_first)
    ids = found[: filter_.limit]
    return Selection(ids[::-1] if newest_first else ids, len(found) > filter_.limit)


_NOTHING = Selection((), more=False)


def _ms(moment: datetime) -> int:
    return -int(-moment.timestamp() * 1000 // 1)


async def _without_index(stream: Stream, low: int, high: int | None, limit: int, newest_first: bool) -> Selection:
    head = (await stream.head()).event_id
    high = head if high is None else min(high, head)
    if newest_first:
        first = max(low, high - limit + 1)
        return Selection(range(first, high + 1), first > low)
    last = min(high, low + limit - 1)
    return Selection(range(low, last + 1), last < high)


async def _from_indexes(
    stream: Stream, indexes: list[bytes], low: int, high: int | None, wanted: int, newest_first: bool
) -> list[int]:
    """Walk the shorter index; keep what the other one, if any, holds as well."""
    found: list[int] = []
    while len(found) < wanted:
        count = min(INDEX_PAGE, wanted) if len(indexes) == 1 else PICK_PAGE
        ids = await stream.indexes.ids(indexes[0], low=low, high=high, count=count, newest_first=newest_first)
        for other in indexes[1:]:
            found += await stream.indexes.ids_among(other, ids)
        if len(indexes) == 1:
            found += ids
        if len(ids) < count:
            break
        if newest_first:
            high = ids[-1] - 1
        else:
            low = ids[-1] + 1
    return found[:wanted]


async def fetch(stream: Stream, event_ids: Sequence[int]) -> AsyncIterator[list[Event]]:
    """Yield the events of ascending ids, in pages of PAGE_BYTES at most. Raises Unreachable, ChainBroken.

    What was read beyond that is read again later, not kept: the next page may be asked for much later.
    """
    pace = Pace(target_bytes=PAGE_BYTES, most=PICK_PAGE)
    at = 0
    while at < len(event_ids):
        ids = event_ids[at : at + pace.count]
        span = ids[-1] - ids[0] + 1
        if span <= 2 * len(ids):
            page = (await stream.page(ids[0] - 1, upto=ids[-1], count=span)).unbroken()
            if span > len(ids):
                wanted = set(ids)
                page = [event for event in page if event.event_id in wanted]
        else:
            page = await stream.pick(ids)
        pace.saw(page)
        fitting = _fitting(page)
        if fitting < len(page):
            del page[fitting:]
            at += bisect_right(ids, page[-1].event_id)
        else:
            at += len(ids)
        if page:
            yield page


def _fitting(page: Sequence[Event]) -> int:
    """How many events of the page fit into PAGE_BYTES, one at least."""
    size_bytes = 0
    for number, event in enumerate(page):
        size_bytes += len(event.payload) + 256
        if number and size_bytes > PAGE_BYTES:
            return number
    return len(page)
