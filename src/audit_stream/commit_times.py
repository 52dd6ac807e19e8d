"""When events were committed, looked up in the index by commit time."""

from collections.abc import Sequence

from audit_stream.entries import LAST_SEQUENCE
from audit_stream.errors import ChainBroken
from audit_stream.keys import Keys
from audit_stream.reader import Reader

RUN_GAP = 8
"""Commit times of events so near to each other are read in one go, those between included."""


class CommitTimeSearch:
    """Finds the commit times of one chain's events. Raises Unreachable when Redis is unavailable."""

    def __init__(self, reader: Reader, keys: Keys) -> None:
        self._reader, self._keys = reader, keys
        self._last_time = (0, b"0-0")
        """The event whose commit time was read last, and its entry: who reads on needs no search."""

    async def of(self, event_ids: Sequence[int]) -> list[int | None]:
        """Return when each of these events, ascending, was committed, as Unix time in milliseconds.

        None for an event that the index by commit time does not hold, or holds where a search does not come to.
        """
        runs: list[list[int]] = []
        for event_id in event_ids:
            if runs and event_id <= runs[-1][1] + RUN_GAP:
                runs[-1][1] = event_id
            else:
                runs.append([event_id, event_id])
        found: dict[int, int] = {}
        try:
            if len(runs) == 1 and runs[0][0] == self._last_time[0] + 1:
                found = await self._read_from({runs[0][0]: b"(" + self._last_time[1]}, runs)
            if event_ids and event_ids[0] not in found:
                found = await self._read_from(await self._search([first for first, _ in runs]), runs)
        except ChainBroken:
            pass  # the key is no stream: the events are the truth, and can be read without it
        return [found.get(event_id) for event_id in event_ids]

    async def _read_from(self, places: dict[int, bytes], runs: Sequence[Sequence[int]]) -> dict[int, int]:
        """Return the times in the index of each run of events, read from the place where its first is or would be."""
        found: dict[int, int] = {}
        there = [(places[first], last - first + 1) for first, last in runs if first in places]
        async with self._reader.asking() as redis, redis.pipeline(transaction=False) as pipeline:
            for place, count in there:
                pipeline.execute_command("XRANGE", self._keys.time, place, "+", "COUNT", count)
            for entries in await pipeline.execute():
                for entry_id, _ in entries:
                    ms, _, event_id = entry_id.partition(b"-")
                    found.setdefault(int(event_id), int(ms))
                if entries:
                    self._last_time = int(event_id), entry_id
        return found

    async def _search(self, event_ids: Sequence[int]) -> dict[int, bytes]:
        """Return where the time index holds each event, or the next one that it does: all in one search by halves.

        Along the index both the time and the event_id grow, and its entries can be asked for by time alone.
        """
        places: dict[int, bytes] = {}
        async with self._reader.asking() as redis, redis.pipeline(transaction=False) as pipeline:
            for command, bounds in (("XRANGE", ("-", "+")), ("XREVRANGE", ("+", "-"))):
                pipeline.execute_command(command, self._keys.time, *bounds, "COUNT", 1)
            ends = [int(entries[0][0].partition(b"-")[0]) for entries in await pipeline.execute() if entries]
        spans = dict.fromkeys(event_ids, (ends[0], ends[1])) if ends else {}
        while spans:
            async with self._reader.asking() as redis, redis.pipeline(transaction=False) as pipeline:
                for event_id, (low, high) in spans.items():
                    place = b"%d-%d" % ((low + high) // 2, event_id)
                    pipeline.execute_command("XRANGE", self._keys.time, place, "+", "COUNT", 1)
                replies = await pipeline.execute()
            for (event_id, (low, high)), entries in zip(list(spans.items()), replies, strict=True):
                ms, indexed = map(int, entries[0][0].split(b"-")) if entries else (0, LAST_SEQUENCE)
                if indexed < event_id:
                    low = ms
                else:
                    high = (low + high) // 2 - 1
                    if entries:
                        places[event_id] = entries[0][0]
                spans[event_id] = low, high
                if indexed == event_id or low > high:
                    del spans[event_id]
        return places
