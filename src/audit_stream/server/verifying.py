"""GET /verify: the verdict on the chain."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter
from litestar.response import Stream

from audit_stream.errors import AuditStreamError
from audit_stream.server.bodies import ProgressBody, VerdictBody
from audit_stream.server.grants import may_know
from audit_stream.server.openapi import NDJSON, problems
from audit_stream.server.parameters import MAX_ID, only
from audit_stream.server.problems import AnyRequest, OutOfRange, of_ours
from audit_stream.spine import spine_of
from audit_stream.verifier import Report, Walk

PROGRESS_S = 0.2


@get(
    "/verify",
    operation_id="verifyChain",
    tags=["read"],
    summary="Recompute the hash chain",
    description=(
        "Checks every link on the stored bytes, that the end was not cut off, and that the indexes agree."
        " Whoever asks at the same time shares one walk. Accept: application/x-ndjson reports progress line by"
        " line; the last line is the verdict, or the problem that kept it from being reached."
    ),
    responses={
        200: ResponseSpec(VerdictBody, description="The verdict, intact or broken", generate_examples=False),
        **problems(400, 409, 422, 503),
    },
)
async def verify_chain(
    request: AnyRequest,
    first: Annotated[int, QueryParameter(name="from", description="The event to begin at")] = 1,
    last: Annotated[int | None, QueryParameter(name="to", description="The event to end at; else the newest")] = None,
    deep: Annotated[
        bool, QueryParameter(name="deep", description="true: compare every index entry, not only their number")
    ] = False,
) -> Response[bytes] | Stream:
    only(request, ("from", "to", "deep"))
    for name, value in (("from", first), ("to", last)):
        if value is not None and not 1 <= value <= MAX_ID:
            raise OutOfRange(f"{name} must be an event_id, 1 or more")
    walk, task = spine_of(request.app.state).verifier.start(first, last, deep=deep)
    if NDJSON in request.headers.get("accept", ""):
        done, _ = await asyncio.wait({task}, timeout=PROGRESS_S)
        for early in done:
            early.result()  # what is wrong with the request is an answer of its own, not a line in a stream
        return Stream(_progress(request.scope, walk, task), media_type=NDJSON)
    # Shielded: whoever else waits for this walk is not cancelled with this request.
    return Response(
        msgspec.json.encode(_body(request.scope, await asyncio.shield(task))), media_type="application/json"
    )


async def _progress(scope: Any, walk: Walk, task: "asyncio.Task[Report]") -> AsyncIterator[bytes]:
    while not (await asyncio.wait({task}, timeout=PROGRESS_S))[0]:
        yield msgspec.json.encode(ProgressBody(walk.checked, max(walk.expected, walk.checked))) + b"\n"
    try:
        last = msgspec.json.encode(_body(scope, task.result()))
    except AuditStreamError as error:
        last = of_ours(None, error).content
    yield last + b"\n"


def _body(scope: Any, report: Report) -> VerdictBody:
    verdict = report.verdict._replace(reason=may_know(scope, report.verdict.reason))
    return VerdictBody.of(verdict, report.first, report.indexes, report.took_s)
