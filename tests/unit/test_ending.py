"""Ending a task that takes a cancellation for nothing, as one does that waits in Python 3.11's `wait_for`."""

import asyncio

import pytest

from audit_stream.connection import end

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def deaf(times: int) -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if not times:
                raise
            times -= 1


@pytest.mark.parametrize("times", [0, 1, 3])
async def test_a_task_is_cancelled_until_it_has_ended(times: int) -> None:
    task = asyncio.create_task(deaf(times))
    await asyncio.sleep(0)
    await end(task)
    assert task.cancelled()


async def test_what_a_task_ended_with_is_left_to_it() -> None:
    async def failing() -> None:
        raise ValueError("its own")

    failed, done = asyncio.create_task(failing()), asyncio.create_task(asyncio.sleep(0))
    await asyncio.sleep(0.01)
    await end(failed, done)
    assert isinstance(failed.exception(), ValueError)
    assert not done.cancelled()


async def test_who_ends_a_task_can_be_cancelled_while_at_it() -> None:
    task = asyncio.create_task(deaf(1_000))
    ending = asyncio.create_task(end(task))
    await asyncio.sleep(0.01)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    await end(asyncio.create_task(deaf(0)))
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
