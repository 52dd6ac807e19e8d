"""Query parameters, checked: a filter that is misspelt must not select everything."""

from collections.abc import Collection
from difflib import get_close_matches

from audit_stream.errors import Refused
from audit_stream.kinds import unknown_kind
from audit_stream.server.problems import AnyRequest
from audit_stream.settings import Settings

MAX_ID = 2**63 - 1


_CACHE_BUSTER = "_"
"""What libraries add so that no cache answers. It selects nothing, so it is taken on every route and means nothing."""


def only(request: AnyRequest, known: Collection[str]) -> None:
    """Raises Refused for a parameter that the route does not have, or that comes twice."""
    names = [name for name, _ in request.query_params.multi_items() if name != _CACHE_BUSTER]
    for name in names:
        if name not in known:
            near = get_close_matches(name[:64], known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise Refused(f"{name}: no such parameter; {hint}there are {', '.join(known)}", field=name)
        if names.count(name) > 1:
            raise Refused(f"{name}: given more than once", field=name)


def known_kind(kind: str | None, settings: Settings) -> str | None:
    if kind is not None and kind not in settings.kind_set:
        raise Refused(unknown_kind(kind, settings.kinds), field="kind")
    return kind


def cursor(value: int | None, field: str) -> int | None:
    """An event_id to start from; one beyond any that can be is as good as the largest."""
    if value is not None and value < 0:
        raise Refused(f"{field}: {value} is no event_id", field=field)
    return None if value is None else min(value, MAX_ID)
