"""The routes, all of them, and what each is for."""

from litestar import Response, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Redirect

from audit_stream import __version__
from audit_stream.event import PublishRequest
from audit_stream.promise import connected_replicas, describe
from audit_stream.server.append import answered_by, append_batch, append_one
from audit_stream.server.bodies import (
    CapacityBody,
    ChainBody,
    InfoBody,
    LastVerdictBody,
    PinBody,
    ReadyBody,
    StatsBody,
    StatusBody,
)
from audit_stream.server.dashboard.page import dashboard
from audit_stream.server.docs.page import docs, openapi_json
from audit_stream.server.grants import may_know
from audit_stream.server.login import log_in, log_out, login_state
from audit_stream.server.metrics import metrics
from audit_stream.server.openapi import IdempotencyHeader, an_event, events, problems
from audit_stream.server.problems import AnyRequest, problem
from audit_stream.server.reading import get_event, query_events
from audit_stream.server.sse import stream_events
from audit_stream.server.verifying import verify_chain
from audit_stream.spine import spine_of

ENDPOINTS = {
    "GET /": "this page",
    "GET /healthz": "this process lives",
    "GET /readyz": "an append would succeed now; else why not",
    "POST /events": "append one event",
    "POST /events/batch": "append many events, all or nothing",
    "GET /events": "query by kind, source, time and id",
    "GET /events/{event_id}": "one event",
    "GET /stream": "follow live as server-sent events",
    "GET /verify": "recompute the hash chain",
    "GET /stats": "count, head and promise",
    "GET /metrics": "numbers for Prometheus",
    "GET /dashboard": "the page for people",
    "GET /dashboard/login": "whether it takes a token to see the page, and who is logged in",
    "POST /dashboard/login": "trade a token for the page's cookie",
    "POST /dashboard/logout": "give the cookie up",
    "GET /schema": "OpenAPI 3.1",
    "GET /openapi.json": "the same, where most tools look for it",
    "GET /docs": "the same, for people",
}


@get(
    "/",
    operation_id="info",
    tags=["meta"],
    summary="Service info and endpoints",
    responses={
        200: ResponseSpec(InfoBody, description="Service info", generate_examples=False),
        303: ResponseSpec(None, description="A browser is sent to the dashboard"),
    },
)
async def info(request: AnyRequest) -> Response[InfoBody] | Redirect:
    varies = {"Vary": "Accept"}
    if "text/html" in request.headers.get("accept", ""):
        return Redirect("/dashboard", status_code=303, headers=varies)
    body = InfoBody(
        name="audit-stream",
        version=__version__,
        description="Append-only, hash-chained governance events.",
        kinds=list(spine_of(request.app.state).settings.kinds),
        endpoints=ENDPOINTS,
    )
    return Response(body, headers=varies)


@get("/healthz", operation_id="health", tags=["meta"], summary="Liveness: this process answers")
async def healthz() -> StatusBody:
    return StatusBody("ok")


@get(
    "/readyz",
    operation_id="ready",
    tags=["meta"],
    summary="Readiness: an append would succeed now",
    description=(
        "Checked by a dry run over the way that appends take. A broken chain is reported in `chain` and leaves the"
        " server ready: what happens after a break is evidence as well, and refusing it would lose it."
    ),
    responses={200: ResponseSpec(ReadyBody, description="Ready", generate_examples=False), **problems(503)},
)
async def readyz(request: AnyRequest) -> Response[ReadyBody] | Response[bytes]:
    spine = spine_of(request.app.state)
    chain = ChainBody.of(spine.verdicts.last)
    reasons = await spine.readiness.now()
    if reasons:
        return problem(503, reasons[0], {"Retry-After": "5"}, reasons=reasons, chain=chain)
    return Response(ReadyBody("ready", chain))


@get("/stats", operation_id="stats", tags=["read"], summary="Count, head and promise", responses=problems(409, 503))
async def stats(request: AnyRequest) -> StatsBody:
    spine = spine_of(request.app.state)
    head, (count,) = await spine.stream.head(), await spine.stream.indexes.lengths([spine.stream.keys.events])
    facts, capacity = await spine.stream.facts(), await spine.capacity.now()
    last = LastVerdictBody.of(spine.verdicts.last) if spine.verdicts.last else None
    if last:
        last.reason = may_know(request.scope, last.reason)
    return StatsBody(
        count=count,
        last_event_id=head.event_id,
        latest_hash=head.hash.decode() if head.event_id else None,
        chain=spine.settings.chain,
        ack=str(spine.settings.ack),
        hashing=spine.settings.hashing,
        redis=describe(facts),
        replicas=connected_replicas(facts),
        capacity=CapacityBody.of(capacity) if capacity else None,
        pin=PinBody.of(spine.keeper) if spine.keeper else None,
        subscribers=spine.tail.subscribers,
        batches=spine.appender.batches,
        lost_races=spine.appender.lost_races,
        index_trouble=may_know(request.scope, spine.appender.index_trouble) or "",
        last_verdict=last,
    )


# The next two only describe their routes; `answered_by` says who answers, and why.


@post(
    "/events",
    operation_id="appendEvent",
    tags=["append"],
    summary="Append one event; the answer is its receipt",
    description=(
        "JSON, or CloudEvents 1.0: structured, or binary, which is JSON data under the headers ce-specversion, ce-type,"
        " ce-source and ce-id. Accept: application/cloudevents+json gives the receipt as a CloudEvent. A batch of"
        " CloudEvents (application/cloudevents-batch+json) is taken here as well, and answered as POST /events/batch"
        " does. A 422 names every mistake of the event in `errors`."
    ),
    status_code=201,
    middleware=[answered_by(append_one)],
    responses={
        201: an_event("Appended, and what the server promises (stats: ack) is kept"),
        200: an_event("Appended before under this idempotency key: the first receipt (Idempotent-Replayed: true)"),
        **problems(400, 409, 413, 415, 422, 503),
    },
)
async def append_event(data: JSONBody[PublishRequest], idempotency_key: IdempotencyHeader = None) -> None: ...


@post(
    "/events/batch",
    operation_id="appendEvents",
    tags=["append"],
    summary="Append many events, all or nothing",
    description=(
        "A JSON array; or, in words alone, as few generators of clients take a body of two forms: NDJSON, one event a"
        " line, as application/x-ndjson, and a JSON array of CloudEvents as application/cloudevents-batch+json. 2,000"
        " events and 4 MiB at most. One CloudEvent, structured or binary, is a batch of one. Accept:"
        " application/cloudevents-batch+json gives the receipts as CloudEvents."
    ),
    status_code=201,
    middleware=[answered_by(append_batch)],
    responses={
        201: events("Appended, in order"),
        200: events("All of them were appended before under their idempotency keys"),
        **problems(400, 409, 413, 415, 422, 503),
    },
)
async def append_events(data: JSONBody[list[PublishRequest]], idempotency_key: IdempotencyHeader = None) -> None: ...


ROUTES = [
    info,
    healthz,
    readyz,
    append_event,
    append_events,
    query_events,
    get_event,
    stream_events,
    verify_chain,
    stats,
    metrics,
    dashboard,
    login_state,
    log_in,
    log_out,
    openapi_json,
    docs,
]
