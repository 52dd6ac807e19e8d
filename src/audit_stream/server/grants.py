"""What a token that is bound to sources may write and read. Without tokens, and for all others: everything."""

import logging
from collections.abc import Sequence
from typing import Any

from audit_stream.access.table import Grant
from audit_stream.errors import Forbidden, place_in_batch
from audit_stream.event import Draft

KEY = "grant"
"""Where the guard leaves it in the state of an ASGI scope; `.name` is what logs may call the token."""

log = logging.getLogger(__name__)


def grant_of(scope: Any) -> Grant | None:
    grant: Grant | None = scope.get("state", {}).get(KEY)  # the state is optional in ASGI
    return grant


def may_write(scope: Any, drafts: Sequence[Draft], *, batch: bool = False) -> None:
    """Raises Forbidden for the first event that is of another source."""
    grant = grant_of(scope)
    if grant is None or grant.sources is None:
        return
    for index, draft in enumerate(drafts):
        source = draft.source.decode()
        if source not in grant.sources:
            where = f"{place_in_batch(index)}: " if batch else ""
            detail = f"{where}source: the token {grant.name!r} may not write as {source!r}, only as {_named(grant)}"
            raise _refused(detail, index=index if batch else None)


def may_read(scope: Any, source: str | None) -> None:
    """Raises Forbidden unless one source is asked for, and allowed: an answer must not leave events out in silence."""
    grant = grant_of(scope)
    if grant is None or grant.sources is None or source in grant.sources:
        return
    if source is None:
        detail = f"source: the token {grant.name!r} reads only {_named(grant)}; ask with source=… for one of them"
    else:
        detail = f"source: the token {grant.name!r} may not read {source!r}, only {_named(grant)}"
    raise _refused(detail)


def may_see(scope: Any, event_id: int, source: bytes) -> None:
    """Raises Forbidden for an event of another source.

    Says that it is there, as every id up to the head is, and /stats tells the head to whoever may read.
    """
    grant = grant_of(scope)
    if grant is not None and grant.sources is not None and source.decode(errors="replace") not in grant.sources:
        raise _refused(f"event #{event_id} is of a source that the token {grant.name!r} may not read")


def may_know(scope: Any, reason: str | None) -> str | None:
    """Return why something disagrees, without the index of a source where the token is bound to sources."""
    grant = grant_of(scope)
    if reason is None or grant is None or grant.sources is None or "}:source:" not in reason:
        return reason
    return "the index of a source disagrees with the chain; which one is shown to tokens that read all sources"


def _refused(detail: str, index: int | None = None) -> Forbidden:
    log.info("refused: %s", detail)
    return Forbidden(detail, field="source", index=index)


def _named(grant: Grant) -> str:
    return ", ".join(map(repr, sorted(grant.sources or ())))
