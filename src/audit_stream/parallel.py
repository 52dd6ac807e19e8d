"""Work shared among processes: one part each, and none of them outlives the caller."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from audit_stream.errors import AuditStreamError

TELL_EVERY_S = 0.1

Part = TypeVar("Part")
Answer = TypeVar("Answer")
Tell = Callable[[int], None]
Work = Callable[[Part, Tell], Answer]


def usable_cores() -> int:
    """How many cores this process may use; a container may be given fewer than the machine has."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def split(first: int, last: int, parts: int) -> list[tuple[int, int]]:
    """Cut first..last, both included, into at most so many contiguous parts of nearly the same length."""
    total = last - first + 1
    parts = min(parts, total)
    bounds = [first + total * place // parts for place in range(parts + 1)] if parts > 0 else []
    return [(low, behind - 1) for low, behind in pairwise(bounds)]


async def in_processes(work: Work[Part, Answer], parts: Sequence[Part], tell: Tell) -> list[Answer]:
    """Call `work` on each part, in a process of its own; return the answers in the order of the parts.

    `work` is a function of a module; parts and answers can be pickled. It is given the part and a function
    to say how far it is; `tell` hears the sum of that. Raises AuditStreamError when one part fails, or its
    process ends without an answer: without all answers there is none.
    """
    done = [0] * len(parts)

    def tell_of(place: int) -> Tell:
        def tell_sum(there: int) -> None:
            done[place] = there
            tell(sum(done))

        return tell_sum

    with _started(work, parts) as workers:
        waiting = [asyncio.create_task(_answer(worker, tell_of(place))) for place, worker in enumerate(workers)]
        try:
            return list(await asyncio.gather(*waiting))
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: "Connection[Any, Any]"


@contextmanager
def _started(work: Work[Part, Answer], parts: Sequence[Part]) -> Iterator[list[_Worker]]:
    # Not forked: a copy of a process with an event loop and threads in it may hang.
    context = get_context("spawn")
    workers: list[_Worker] = []
    try:
        with _interrupts_are_ours():
            for part in parts:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(work, part, theirs), daemon=True)
                process.start()
                theirs.close()  # or its end would not be seen
                workers.append(_Worker(process, ours))
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()  # it only reads
        for worker in workers:
            worker.process.join()
            worker.pipe.close()


@contextmanager
def _interrupts_are_ours() -> Iterator[None]:
    """Keep Ctrl-C, which the terminal sends to all of us, from the processes started meanwhile: we end them."""
    resource_tracker.ensure_running()  # when it starts, it lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _answer(worker: _Worker, tell: Tell) -> Any:
    readable, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(worker.pipe.fileno(), readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            if not worker.pipe.poll():
                continue
            what, value = worker.pipe.recv()
            if what == "at":
                tell(value)
            elif what == "answer":
                return value
            else:
                raise AuditStreamError(value)
    except (EOFError, OSError) as error:
        worker.process.join()
        code = worker.process.exitcode
        raise AuditStreamError(f"a process that checked a part ended without an answer, with code {code}") from error
    finally:
        loop.remove_reader(worker.pipe.fileno())


# --- in the process of a part


def _run(work: Work[Part, Answer], part: Part, pipe: "Connection[Any, Any]") -> None:
    told_at = monotonic()

    def tell(done: int) -> None:
        nonlocal told_at
        if monotonic() - told_at >= TELL_EVERY_S:
            told_at = monotonic()
            pipe.send(("at", done))

    try:
        try:
            message: tuple[str, Any] = ("answer", work(part, tell))
        except AuditStreamError as error:
            message = ("failed", str(error))
        except BrokenPipeError:
            raise
        except Exception as error:
            message = ("failed", f"{type(error).__name__}: {error}")
        pipe.send(message)
    except BrokenPipeError:
        sys.exit(1)  # whoever asked is gone, and nobody is left to be told
