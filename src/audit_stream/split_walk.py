"""Verifying the chain in several processes: each walks a part, and the parts must join up."""

import asyncio
from typing import NamedTuple

from audit_stream.chain import START, Head, Verdict
from audit_stream.comparing import Contents, Disagreement
from audit_stream.entries import Page
from audit_stream.errors import Refused
from audit_stream.parallel import Tell, in_processes, split, usable_cores
from audit_stream.stream import Stream
from audit_stream.verifier import Walk

WORTHWHILE = 60_000
"""So many events pay for a process: starting one takes as long as checking about as many."""


class Part(NamedTuple):
    url: str
    chain: str
    first: int
    last: int
    deep: bool


class Checked(NamedTuple):
    """What walking a part showed."""

    anchor: Head | None
    """The event before the first, which the part was found to be linked to; None when there was none."""
    verdict: Verdict
    contents: Contents
    found: Disagreement | None
    """What is wrong with the entries of an index, where those were compared."""
    error: str
    """Why they could not be."""


class SplitWalk(Walk):
    """The same pass over the chain, its links checked by `jobs` processes; by as many as pay when None.

    The words and numbers are those of one walk. The links are shared out, and with `deep` the entries of the indexes;
    the end and how much each index holds are checked here.
    """

    def __init__(
        self, url: str, stream: Stream, first: int, last: int | None, *, deep: bool = False, jobs: int | None = None
    ) -> None:
        super().__init__(stream, first, last, deep=deep and (first, last) == (1, None))
        self._url, self._jobs = url, jobs

    async def _walk(self, head: Head, upto: int) -> Verdict:
        jobs = self._jobs or min(usable_cores(), (upto - self.first + 1) // WORTHWHILE)
        ranges = split(self.first, upto, jobs)
        if len(ranges) < 2:
            return await super()._walk(head, upto)
        parts = [Part(self._url, self._stream.keys.chain, low, high, self._entries is not None) for low, high in ranges]
        checked = await in_processes(check_part, parts, self._so_far)
        self.checked = 0
        for part in checked:
            if part.anchor != head:
                break  # something is missing or was changed at the seam
            self.checked += part.verdict.checked
            self._contents.update(part.contents)
            if self._entries:
                self._entries.passed(part.verdict.head.event_id, part.found, part.error)
            head = part.verdict.head
            if not part.verdict.valid:
                # The verdict of one walk over all the parts: the first break of the first part that has one wins.
                return part.verdict._replace(checked=self.checked)
        # On from where the parts joined up to: what was appended meanwhile, or the break at a seam.
        return await super()._walk(head, upto)

    def _so_far(self, checked: int) -> None:
        self.checked = checked


# --- in a process of its own


def check_part(part: Part, tell: Tell) -> Checked:
    return asyncio.run(_check_part(part, tell))


async def _check_part(part: Part, tell: Tell) -> Checked:
    stream = Stream.at(part.url, part.chain)
    try:
        return await _PartWalk(stream, part, tell).whole()
    finally:
        await stream.close()


class _PartWalk(Walk):
    def __init__(self, stream: Stream, part: Part, tell: Tell) -> None:
        super().__init__(stream, part.first, part.last, deep=part.deep)
        self._tell = tell
        self._linked_to: Head | None = START if part.first == 1 else None

    async def whole(self) -> Checked:
        try:
            verdict = (await self.run()).verdict
        except Refused:
            # The chain got shorter since the parts were made. The walk behind the part before says where.
            verdict = Verdict(False, 0, self.first, None, START)
        found, error = (self._entries.found, self._entries.error) if self._entries else (None, "")
        return Checked(self._linked_to, verdict, self._contents, found, error)

    async def _anchor(self, written: int) -> Head | Verdict:
        anchor = await super()._anchor(written)
        if isinstance(anchor, Head):
            self._linked_to = anchor
        return anchor

    def _check(self, page: Page, head: Head) -> Verdict:
        verdict = super()._check(page, head)
        self._tell(self.checked)
        return verdict
