"""The read side: GET /events and GET /events/{event_id}."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated
from urllib.parse import urlencode

from litestar import Response, get
from litestar.params import PathParameter, QueryParameter
from litestar.response import Stream

from audit_stream.chain import Event
from audit_stream.cloudevents import to_json as to_cloudevent
from audit_stream.errors import Refused
from audit_stream.event import to_json
from audit_stream.exported import to_line
from audit_stream.query import Filter, Selection, fetch, select
from audit_stream.server.accept import negotiated
from audit_stream.server.cloudevents import BATCH, STRUCTURED
from audit_stream.server.grants import may_read, may_see
from audit_stream.server.openapi import JSON, MAX_LIMIT, NDJSON, After, Kind, Source, an_event, events, problems
from audit_stream.server.parameters import MAX_ID, cursor, known_kind, only
from audit_stream.server.problems import AnyRequest, NotFound, OutOfRange
from audit_stream.spine import spine_of
from audit_stream.stream import Stream as Chain
from audit_stream.timestamps import instant

WHOLE_BYTES = 64 * 1024
"""Up to here an answer is made whole, with its length in front; a longer one is sent as it is read."""

_PARAMETERS = ("kind", "source", "since", "until", "after", "before", "limit", "committed")


@get(
    "/events",
    operation_id="queryEvents",
    tags=["read"],
    summary="Query events",
    description=(
        "Filters must all hold. Without `after` the newest `limit` events are returned, with it the oldest behind"
        " that cursor; always in ascending order. The Link header names the next page. Accept:"
        " application/x-ndjson streams one event a line, application/cloudevents-batch+json gives CloudEvents. With"
        " `committed=true` each event carries the time of its commit as well, `committed_at`: it is what the index by"
        " commit time says, outside the hash, and left out where the index lacks the event."
    ),
    responses={200: events("The events, ascending"), **problems(400, 406, 409, 422, 503)},
)
async def query_events(
    request: AnyRequest,
    kind: Kind = None,
    source: Source = None,
    since: Annotated[
        str | None, QueryParameter(name="since", description="Committed at or after this RFC 3339 instant")
    ] = None,
    until: Annotated[
        str | None, QueryParameter(name="until", description="Committed before this RFC 3339 instant")
    ] = None,
    after: After = None,
    before: Annotated[int | None, QueryParameter(name="before", description="Events before this event_id")] = None,
    limit: Annotated[int, QueryParameter(name="limit", description=f"1 to {MAX_LIMIT}")] = 1000,
    committed: Annotated[
        bool, QueryParameter(name="committed", description="true: each event with its `committed_at`")
    ] = False,
) -> Response[bytes] | Stream:
    spine = spine_of(request.app.state)
    only(request, _PARAMETERS)
    may_read(request.scope, source)
    form = negotiated(request, (JSON, NDJSON, BATCH))
    if committed and form == BATCH:
        raise Refused(f"committed: CloudEvents have no commit time; ask for {JSON} or {NDJSON}", field="committed")
    if not 1 <= limit <= MAX_LIMIT:
        raise OutOfRange(f"limit must be in 1..{MAX_LIMIT}")
    wanted = Filter(
        known_kind(kind, spine.settings),
        source,
        None if since is None else instant(since, field="since"),
        None if until is None else instant(until, field="until"),
        cursor(after, "after"),
        cursor(before, "before"),
        limit,
    )
    selection = await select(spine.stream, wanted)
    headers = {"Vary": "Accept"}
    if selection.more:
        headers["Link"] = f'<{_next(request, selection, wanted)}>; rel="next"'
    events_read = fetch(spine.stream, selection.event_ids)
    if committed:
        pages = _with_times(spine.stream, events_read)
    else:
        pages = _rendered(events_read, to_cloudevent if form == BATCH else to_json)
    # The first pages are read before the answer begins: what can go wrong mostly does by then.
    first: list[bytes] = []
    while len(first) < len(selection.event_ids) and sum(map(len, first)) < WHOLE_BYTES:
        page = await anext(pages, None)
        if page is None:
            break
        first += page
    if form == NDJSON:
        return Stream(_lines(first, pages), media_type=form, headers=headers)
    if len(first) == len(selection.event_ids):
        return Response(b"[%b]" % b",".join(first), media_type=form, headers=headers)
    return Stream(_array(first, pages), media_type=form, headers=headers)


def _next(request: AnyRequest, selection: Selection, wanted: Filter) -> str:
    ids = selection.event_ids
    turned = {"after": ids[-1]} if wanted.after is not None else {"before": ids[0]}
    kept = {name: value for name, value in request.query_params.items() if name not in turned}
    return f"/events?{urlencode(kept | turned)}"


async def _rendered(pages: AsyncIterator[list[Event]], render: Callable[[Event], bytes]) -> AsyncIterator[list[bytes]]:
    async for page in pages:
        yield [render(event) for event in page]


async def _with_times(stream: Chain, pages: AsyncIterator[list[Event]]) -> AsyncIterator[list[bytes]]:
    async for page in pages:
        times = await stream.commit_times.of([event.event_id for event in page])
        yield list(map(to_line, page, times))


async def _lines(first: list[bytes], pages: AsyncIterator[list[bytes]]) -> AsyncIterator[bytes]:
    yield b"".join(b"%b\n" % text for text in first)
    async for page in pages:
        yield b"".join(b"%b\n" % text for text in page)


async def _array(first: list[bytes], pages: AsyncIterator[list[bytes]]) -> AsyncIterator[bytes]:
    yield b"[" + b",".join(first)
    async for page in pages:
        yield b"".join(b",%b" % text for text in page)
    yield b"]"


@get(
    "/events/{event_id:str}",
    operation_id="getEvent",
    tags=["read"],
    summary="One event",
    responses={200: an_event("The event as it is stored"), **problems(400, 404, 406, 409, 422, 503)},
)
async def get_event(
    request: AnyRequest, event_id: Annotated[str, PathParameter(description="1, 2, 3, …", pattern="^[0-9]+$")]
) -> Response[bytes]:
    if not re.fullmatch(r"[0-9]+", event_id):
        raise Refused(f"event_id: {event_id!r} is not a whole number", field="event_id")
    number = min(int(event_id), MAX_ID) if len(event_id) < 100 else MAX_ID
    event = await spine_of(request.app.state).stream.get(number) if number else None
    if event is None:
        raise NotFound(f"there is no event #{event_id[:30]}")
    may_see(request.scope, number, event.source)
    form = negotiated(request, (JSON, STRUCTURED))
    render = to_cloudevent if form == STRUCTURED else to_json
    return Response(render(event), media_type=form, headers={"Vary": "Accept"})
