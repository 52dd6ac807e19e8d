"""GET /stream: server-sent events (WHATWG HTML §9.2)."""

import re
from typing import Annotated

from litestar import get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, QueryParameter
from litestar.response import Stream

from audit_stream.errors import Refused, Unreachable
from audit_stream.server.grants import may_read
from audit_stream.server.openapi import After, Kind, Source, problems
from audit_stream.server.parameters import cursor, known_kind, only
from audit_stream.server.problems import AnyRequest, CursorAhead
from audit_stream.spine import Spine, spine_of
from audit_stream.tail import View

_PARAMETERS = ("kind", "source", "after", "named")
OURS = "audit-stream/"
"""How the User-Agent of our own clients begins."""
# A proxy that buffers (nginx asks this header) or a cache would hold events back.
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@get(
    "/stream",
    operation_id="streamEvents",
    tags=["read"],
    summary="Follow live as server-sent events",
    description=(
        "Frames carry `event: <kind>`, `id: <event_id>` and the event as `data`. A client that comes back with"
        " Last-Event-ID, or asks for `after`, first gets all it has missed; Last-Event-ID wins."
    ),
    responses={
        200: ResponseSpec(str, description="A stream of events", media_type="text/event-stream"),
        **problems(400, 409, 422, 503),
    },
)
async def stream_events(
    request: AnyRequest,
    kind: Kind = None,
    source: Source = None,
    after: After = None,
    named: Annotated[
        bool, QueryParameter(name="named", description="false: no `event:` line, so that `onmessage` gets the frames")
    ] = True,
    last_event_id: Annotated[
        str | None, HeaderParameter(name="Last-Event-ID", description="The last id a client has seen")
    ] = None,
) -> Stream:
    spine = spine_of(request.app.state)
    only(request, _PARAMETERS)
    may_read(request.scope, source)
    view = View(known_kind(kind, spine.settings), source, named)
    start = _last_seen(last_event_id) if last_event_id else cursor(after, "after")
    start = await _start(spine, start)
    frames = spine.tail.follow(start, view, bare_ids=_reads_by_the_standard(request))
    return Stream(frames, media_type="text/event-stream", headers=_HEADERS)


def _reads_by_the_standard(request: AnyRequest) -> bool:
    """Whether a block of nothing but an id is safe: for browsers, and for our own clients.

    Others (httpx-sse) hand out an empty event for each blank line.
    """
    headers = request.headers
    # What a page does by fetch() may be read by anything; of EventSource, the standard says that it has `no-cache`.
    event_source = "sec-fetch-mode" in headers and headers.get("cache-control") == "no-cache"
    return event_source or headers.get("user-agent", "").startswith(OURS)


def _last_seen(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        raise Refused(f"Last-Event-ID: {text[:40]!r} is no event_id", field="Last-Event-ID")
    return cursor(int(text), "Last-Event-ID") or 0


async def _start(spine: Spine, start: int | None) -> int:
    """Where to begin. A cursor ahead of the chain is not from this chain: waiting there would miss events."""
    if start is not None and start <= spine.tail.newest:
        return start
    try:
        head = (await spine.stream.head()).event_id
    except Unreachable:
        if start is None:
            raise
        return start  # it may well be right; the stream waits for Redis
    if start is not None and start > head:
        raise CursorAhead(
            f"the cursor #{start} is ahead of the chain, which ends at #{head}: it comes from another chain,"
            " or events were lost"
        )
    return head if start is None else start
