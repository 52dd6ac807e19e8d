"""Group commit: many waiting producers, one script call.

One batch is in flight; whoever arrives meanwhile is in the next one. So the fsync that Redis makes
before it answers is shared by the batch, and every producer waits for exactly one. Only when many events
wait does a second batch follow at once, hashed onto the head that the first will leave: so Redis works
while this process does. When the first turns out otherwise, nothing of the second is written either.

Where a batch can stand, and who repairs it:

    not sent, or refused by Redis   nothing is written; the producers are told so
    sent, no reply                  in doubt; the same offer is made again until the answer is definite
    in doubt at the deadline        the producers get 503; a retry under their idempotency key is safe
    the head has moved              nothing is written; hashed again onto the real head
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextvars import Context
from datetime import timedelta

from audit_stream.chain import START, Event, Head
from audit_stream.errors import AuditStreamError, ChainBroken, Pushback, Refused, Unreachable
from audit_stream.event import Draft
from audit_stream.scripts import Appended, Landed, Moved, Seen
from audit_stream.settings import FSYNC, Ack, Hashing
from audit_stream.stream import NOTHING, Stream
from audit_stream.submission import Batch, Receipt, Submission, as_hashed, key_conflict, link
from audit_stream.tally import Tally
from audit_stream.waiting import Waiting

WORTH_FOLLOWING = 128
"""So many waiting events are worth a batch of their own behind the one in flight. Fewer gather until it is back:
two small batches cost more than one."""
LOST_RACES = 8
"""After these the script hashes. It cannot lose a race, but holds up Redis 50 times as long as losing one does."""
ASKED_FIRST = 16
"""For so many batches after a lost race: others write too, so what was the head a batch ago no longer is."""
DEADLINE_S = 1.5
"""So that a producer hears within 2 s that Redis is away."""
SCRIPT_S_PER_BYTE = 2e-6
"""Allowed on top for what the script hashes; measured 0.5e-6."""
RETRY_S = 0.02

log = logging.getLogger(__name__)


class Appender:
    """Appends events; keeps the head that this replica believes in.

    Any number of replicas may run one on the same chain. Start it with `async with`; leaving the block
    answers everything that was accepted and then stops.
    """

    submission = Submission

    def __init__(
        self,
        stream: Stream,
        *,
        hashing: Hashing = "checked",
        ack: Ack = FSYNC,
        idempotency_ttl: timedelta = timedelta(hours=24),
        promised: Head = NOTHING,
        tally: Tally | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """`promised` is the newest event that an earlier run told a producer is on disk, where that is known.

        `deadline_s` is for those who would rather wait for a slow Redis than hear of it: DEADLINE_S without it.
        """
        self._stream = stream
        self._tally = tally or Tally()
        self._hashing = hashing
        self._ack = ack
        self._deadline_s = deadline_s
        self._ttl_ms = int(idempotency_ttl.total_seconds() * 1000)
        self._waiting = Waiting(self._tally)
        self._flights: list[asyncio.Task[None]] = []
        """The batches in flight, two at most, in order."""
        self._leaving: Head | None = None
        """The head that the newest of them leaves if all goes well; None when that is not known."""
        self._closing = False
        self._head = START
        self.promised = promised
        """The newest event that a producer was told is on disk. A chain without it has lost it."""
        self._to_ask_first = 0
        self.refusing = ""
        """Why no append is taken now; empty when they are. Set by who watches over the server's readiness."""
        self.failed = asyncio.Event()
        """Set when a batch fails for a reason that concerns the next one as well."""
        # Read by /stats and /readyz.
        self.batches = 0
        self.lost_races = 0
        self.index_trouble = ""

    async def __aenter__(self) -> "Appender":
        self._head = await self._stream.head()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        while self._flights:
            await asyncio.wait(self._flights)

    async def append(self, drafts: Sequence[Draft], *, committed: Sequence[int] = ()) -> list[Receipt]:
        """Append the drafts as one unit; return their receipts in order.

        `committed` are commit times to restore, in Unix milliseconds, one per draft and none before another's.
        Raises Refused (an idempotency key was used for other content), Pushback, Unreachable,
        ChainBroken, HashMismatch. Cancelling the caller does not take back what was handed in.
        """
        submission = self.submission(drafts)
        submission.committed = committed
        if self._closing:
            raise Pushback("the server is stopping; nothing was written")
        if self.refusing:
            raise Unreachable(f"{self.refusing}; nothing was written")
        self._waiting.put(submission)
        self._send_off()
        return await submission.settled

    def promise(self, head: Head) -> None:
        """Append to no chain without this event, which is on disk. Does nothing for one older than the newest."""
        if head.event_id > self.promised.event_id:
            self.promised = head

    def give_up(self, lost: Head, head: Head) -> None:
        """Expect `head` where events up to `lost` were expected: a person has given them up."""
        if self.promised.event_id <= lost.event_id:
            self.promised = head

    # --- batches

    def _send_off(self) -> None:
        """Begin the next batch if it is time. It is made when its task runs, of all that arrived until then."""
        ahead = self._flights[0] if self._flights else None
        if ahead is None and self._waiting:
            self._leaving = None
        elif len(self._flights) != 1 or self._leaving is None or self._waiting.events < WORTH_FOLLOWING:
            return
        # In a context of its own: a batch is its producers' together, and no request's whose id the log would show.
        self._flights.append(asyncio.create_task(self._fly(ahead), name="append", context=Context()))

    async def _fly(self, ahead: "asyncio.Task[None] | None") -> None:
        await self._write(ahead)
        self._flights = [flight for flight in self._flights if flight is not asyncio.current_task()]
        self._send_off()

    async def _write(self, ahead: "asyncio.Task[None] | None") -> None:
        batch: Batch | None = None
        try:
            if self._to_ask_first and not ahead:
                # Hashing onto a head of long ago would be work for nothing; and more producers join meanwhile.
                self._to_ask_first -= 1
                self._head = await self._stream.head()
            batch = self._waiting.next_batch()
            self.batches += 1
            await self._append(batch, ahead)
        except AuditStreamError as error:
            self._fail(batch, error)
        except Exception as error:
            log.exception("a batch failed, and the fault is ours")
            self._fail(batch, error)

    def _fail(self, batch: Batch | None, error: Exception) -> None:
        self._leaving = None
        if batch:
            batch.fail(error)
        if isinstance(error, Unreachable):
            # The same would happen to those that wait: they get the reason now. Nothing of theirs was sent.
            self._waiting.fail(Unreachable(f"{error.reason}; nothing was written"))
        elif batch is None:
            self._waiting.fail(error)
        if not isinstance(error, Refused):
            self.failed.set()

    # --- one batch

    async def _append(self, batch: Batch, ahead: "asyncio.Task[None] | None") -> None:
        if ahead and self._leaving is None:
            await ahead  # it did not go as it was offered; where it leads is known when it is settled
            ahead = None
        head = (ahead and self._leaving) or self._head
        races = 0
        while pending := batch.pending():
            if self._hashing == "script" or races == LOST_RACES:
                for part in batch.slices():
                    await self._let_script_hash(part)
                return
            drafts = [submission.drafts[place] for submission, place in pending]
            events = link(head, drafts)
            # When one follows already, its offer was made for another head than this one will leave.
            newest = self._flights[-1] is asyncio.current_task()
            self._leaving = Head(events[-1].event_id, events[-1].hash) if newest else None
            reply = await self._call(drafts, events, batch.committed)
            if not isinstance(reply, Appended):
                self._leaving = None
            if ahead:
                await ahead
                ahead = None
            match reply:
                case Appended() | Landed():
                    await self._commit(pending, events, reply)
                case Seen(event_ids):
                    await self._replay(batch, pending, event_ids)
                case Moved(moved_to):
                    self._head = moved_to
                    races += 1
                    self.lost_races += 1
                    self._tally.count("lost_races")
                    self._to_ask_first = ASKED_FIRST
            head = self._head
        batch.answer()

    async def _let_script_hash(self, batch: Batch) -> None:
        while pending := batch.pending():
            drafts = [submission.drafts[place] for submission, place in pending]
            match await self._call(drafts, None, batch.committed):
                case Appended() as reply:
                    events = as_hashed(drafts, reply)
                    await self._commit(pending, events, reply)
                case Landed(first_id) as reply:
                    page = await self._stream.page(first_id - 1, count=len(drafts))
                    await self._commit(pending, page.unbroken(), reply)
                case Seen(event_ids):
                    await self._replay(batch, pending, event_ids)
        batch.answer()

    async def _call(
        self, drafts: list[Draft], offer: list[Event] | None, committed: Sequence[int]
    ) -> Appended | Moved | Seen | Landed:
        """Call the script until its answer is definite; raises Unreachable at the deadline."""
        hashes = None if offer is None else [event.hash for event in offer]
        token = secrets.token_hex(8).encode()
        budget_s = self._deadline_s or DEADLINE_S
        if offer is None:
            budget_s += SCRIPT_S_PER_BYTE * sum(draft.size_bytes for draft in drafts)
        doubt: Unreachable | None = None
        try:
            async with asyncio.timeout(budget_s) as budget:
                while True:
                    try:
                        reply = await self._stream.append(
                            drafts,
                            hashes,
                            believed=Head(offer[0].event_id - 1, offer[0].prev_hash) if offer else NOTHING,
                            promised=self.promised,
                            token=token,
                            ttl_ms=self._ttl_ms,
                            committed=committed,
                            ack=self._ack,
                        )
                        if doubt and offer and isinstance(reply, Moved):
                            # Whose event moved the head? Ours, exactly when it carries our first offer's hash.
                            after = await self._stream.get(offer[0].event_id)
                            if after and after.hash == offer[0].hash:
                                return Landed(after.event_id)
                        return reply
                    except Unreachable as error:
                        if error.settles or not (error.in_doubt or doubt):
                            raise
                        # The batch may have landed, now or when a stalled Redis wakes. The very same
                        # offer can only land once, so making it again settles which.
                        doubt = error
                        await asyncio.sleep(RETRY_S)
                        if (budget.when() or 0.0) < asyncio.get_running_loop().time():
                            raise TimeoutError from error  # its cancellation was lost on the way (see connection.end)
        except TimeoutError:
            reason = doubt.reason if doubt else "Redis does not answer"
            raise Unreachable(
                f"{reason}; whether the event was written is not known yet:"
                " send it again under the same idempotency key",
                in_doubt=True,
                reason=reason,
            ) from doubt

    async def _commit(
        self, pending: list[tuple[Submission, int]], events: list[Event], reply: Appended | Landed
    ) -> None:
        """The events are on the chain. Keep them as receipts when the promise is kept too."""
        self._head = Head(events[-1].event_id, events[-1].hash)
        self._tally.batch_events.observe(len(events))
        for event in events:
            self._tally.event(event.kind, event.source)
        if isinstance(reply, Appended) and reply.refused != self.index_trouble:
            self.index_trouble = reply.refused
            if reply.refused:
                log.error(
                    "the chain is intact, but an index of it is not: %s; run audit-stream reindex",
                    reply.refused,
                )
        await self._check_replicas(reply.replicas if isinstance(reply, Appended) else None)
        if self._ack.fsync:
            self.promise(self._head)
        for (submission, place), event in zip(pending, events, strict=True):
            submission.receipts[place] = Receipt(event, replayed=False)

    async def _replay(self, batch: Batch, pending: list[tuple[Submission, int]], event_ids: dict[int, int]) -> None:
        """These were appended before: the same content gets the first receipt, other content is refused."""
        await self._check_replicas(None)
        for position, event_id in event_ids.items():
            submission, place = pending[position]
            draft = submission.drafts[place]
            event = await self._stream.get(event_id)
            if event is None:
                raise ChainBroken(
                    f"idempotency key {draft.once.decode()!r} stands for event #{event_id}, which is not there",
                    at=event_id,
                )
            if draft.says_the_same_as(event):
                submission.receipts[place] = Receipt(event, replayed=True)
                self._tally.count("replays")
            elif submission in batch.submissions:
                batch.drop(submission, key_conflict(draft))

    async def _check_replicas(self, held: int | None) -> None:
        if not self._ack.replicas:
            return
        if held is None:
            held = await self._stream.replicas_hold(self._ack)
        if held < self._ack.replicas:
            raise Unreachable(
                f"written, but only {held} of the promised {self._ack.replicas} replicas hold it so far:"
                " send it again under the same idempotency key",
                in_doubt=True,
                reason=f"only {held} of the {self._ack.replicas} replicas that AUDIT_STREAM_ACK asks for keep up",
            )
