"""What a Redis says of itself: the fields of INFO, and the settings that durability depends on."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from redis.exceptions import ResponseError

Ask = Callable[[tuple[str, ...]], Awaitable[Any]]
"""Sends a command and returns its reply as it came."""

SETTINGS = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy")


async def facts_of(ask: Ask) -> dict[str, str]:
    """Return INFO's fields and `SETTINGS`, by their names; a setting that this user may not read is left out.

    Raises what redis-py raises, also when INFO itself is refused.
    """
    info: bytes = await ask(("INFO",))
    fields = (line.partition(":") for line in info.decode(errors="replace").splitlines() if not line.startswith("#"))
    facts = {name: value for name, colon, value in fields if colon}
    try:
        replies = [await ask(("CONFIG", "GET", *SETTINGS))]
    except ResponseError:
        replies = [await _one_by_one(ask, setting) for setting in SETTINGS]
    for reply in replies:
        texts = [text.decode(errors="replace") for text in reply]
        facts.update(zip(texts[::2], texts[1::2], strict=True))
    return facts


async def _one_by_one(ask: Ask, setting: str) -> list[bytes]:
    """Before Redis 7.0, CONFIG GET takes one setting; and a proxy may let some be read."""
    try:
        reply: list[bytes] = await ask(("CONFIG", "GET", setting))
    except ResponseError:
        return []
    return reply


def is_rewriting(facts: Mapping[str, str]) -> bool:
    """Return whether Redis writes its append-only file anew, or is about to."""
    return "1" in (facts.get("aof_rewrite_in_progress"), facts.get("aof_rewrite_scheduled"))


def version_of(facts: Mapping[str, str]) -> tuple[int, ...]:
    """Return major and minor of the Redis; for a Valkey, of the Redis that it is compatible with."""
    return tuple(int(part) for part in re.findall(r"\d+", facts.get("redis_version", "0.0"))[:2])
