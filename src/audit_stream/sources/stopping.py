"""Ending in good order: what is under way is finished, what is only waited for is not."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """It was told to stop, and nothing is under way."""


class Stopping:
    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()

    async def pause(self, seconds: float) -> None:
        """Raises Stopped when told to stop before or meanwhile."""
        await self.unless(asyncio.sleep(seconds))

    async def unless(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what may as well not be done; raises Stopped when told to stop before or meanwhile."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped
        finally:
            await ended(task)
            await ended(stopped)


async def ended(task: "asyncio.Future[Any]") -> None:
    """Cancel it unless it is done, and wait until it is; what became of it was seen, or no longer matters."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
