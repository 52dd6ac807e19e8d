"""Projections: the chain, taken out into the forms that compliance teams load. See docs/projections.md.

    from audit_stream.sinks import running
    from audit_stream.sinks.settings import SinkSettings

    async with running(SinkSettings.from_env()) as projections:
        ...

Each sink has its own cursor and comes back on its own; what is here is what a daemon needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from audit_stream.sinks.projections import Projections
    from audit_stream.sinks.settings import SinkSettings


@asynccontextmanager
async def running(settings: SinkSettings, *, registry: CollectorRegistry | None = None) -> AsyncIterator[Projections]:
    """Run the chosen projections until the block is left; what is under way then is settled first.

    Nothing that goes wrong with a sink or the spine is raised here: it is logged, counted, and tried again.
    `registry` gets their metrics (prometheus_client).
    """
    from audit_stream.sinks.projections import Projections

    projections = Projections(settings)
    if registry is not None:
        projections.register(registry)
    work = asyncio.create_task(projections.run())
    try:
        yield projections
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
