"""Work in processes of its own: real processes, that answer, fail, die and are interrupted."""

import asyncio
import os
import signal
import subprocess
import sys
from itertools import pairwise
from threading import Timer
from time import sleep

import pytest

from audit_stream.errors import AuditStreamError, Unreachable
from audit_stream.parallel import Tell, in_processes, split
from tests.harness import ROOT, clean_environ, with_ctrl_c

TIMEOUT_S = 60


def double(part: int, tell: Tell) -> tuple[int, int]:
    return 2 * part, os.getpid()


def unreachable_for_two(part: int, tell: Tell) -> int:
    if part == 2:
        raise Unreachable("Redis is away: refused")
    return part


def die_at_two(part: int, tell: Tell) -> int:
    if part == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return part


def fail_with_our_own_fault(part: int, tell: Tell) -> int:
    return part // 0


def count_for_ever(part: int, tell: Tell) -> int:
    os.write(1, b"%d\n" % os.getpid())  # in one piece: several write here
    while True:
        sleep(0.01)
        tell(part)


def nothing(done: int) -> None:
    pass


@pytest.mark.parametrize(("first", "last", "parts"), [(1, 12, 3), (1, 2, 5), (7, 7, 2), (5, 104, 7), (1, 1, 1)])
def test_parts_cover_the_range_without_gap_or_overlap(first: int, last: int, parts: int) -> None:
    ranges = split(first, last, parts)
    assert (ranges[0][0], ranges[-1][1]) == (first, last)
    assert all(end + 1 == begin for (_, end), (begin, _) in pairwise(ranges))
    lengths = [high - low + 1 for low, high in ranges]
    assert max(lengths) - min(lengths) <= 1
    assert len(ranges) == min(parts, last - first + 1)


@pytest.mark.parametrize(("last", "parts"), [(0, 3), (9, 0)])
def test_nothing_to_share_out_makes_no_parts(last: int, parts: int) -> None:
    assert split(1, last, parts) == []


def test_answers_come_in_the_order_of_the_parts_from_other_processes() -> None:
    answers = asyncio.run(in_processes(double, [1, 2, 3], nothing))
    assert [answer for answer, _ in answers] == [2, 4, 6]
    assert len({os.getpid(), *(pid for _, pid in answers)}) == 4


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (unreachable_for_two, "Redis is away: refused"),
        (die_at_two, "ended without an answer, with code -9"),
        (fail_with_our_own_fault, "ZeroDivisionError"),
    ],
)
def test_without_all_answers_there_is_none(work: object, says: str) -> None:
    with pytest.raises(AuditStreamError, match=says):
        asyncio.run(in_processes(work, [1, 2], nothing))  # type: ignore[arg-type]


def test_progress_is_the_sum_of_all_parts() -> None:
    async def first_sum_of_both() -> int:
        both: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def tell(done: int) -> None:
            if done > 4 and not both.done():
                both.set_result(done)

        counting = asyncio.create_task(in_processes(count_for_ever, [3, 4], tell))
        try:
            return await both
        finally:
            counting.cancel()
            await asyncio.wait({counting})

    assert asyncio.run(first_sum_of_both()) == 7


COUNTING = """
import asyncio, sys
from audit_stream.parallel import in_processes
from tests.unit.test_parallel import count_for_ever
if __name__ == "__main__":
    try:
        asyncio.run(in_processes(count_for_ever, [1, 2], lambda done: None))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_process_outlives_its_caller(sent: signal.Signals, code: int) -> None:
    environ = clean_environ()
    environ["PYTHONPATH"] += f":{ROOT}"
    with subprocess.Popen(
        [sys.executable, "-c", COUNTING],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=with_ctrl_c,
    ) as process:
        assert process.stdout
        assert process.stderr
        watchdog = Timer(TIMEOUT_S, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        pids = {int(process.stdout.readline()) for _ in range(2)}
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as the terminal does: to all of them
        else:
            process.send_signal(sent)
        assert process.wait() == code
        # They hold the other end of our pipe: it is closed when the last of them is gone.
        assert process.stdout.read() == b""
        if sent == signal.SIGINT:
            assert b"Traceback" not in process.stderr.read()
        watchdog.cancel()
    assert len(pids) == 2
