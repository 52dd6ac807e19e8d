"""GET /verify: the verdict on the chain."""

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Receive, Scope, Send

from audit_stream.connection import end
from audit_stream.errors import AuditStreamError
from audit_stream.server.bodies import ProgressBody, VerdictBody
from audit_stream.server.grants import grant_of, may_know
from audit_stream.server.login import asker
from audit_stream.server.openapi import NDJSON, problems
from audit_stream.server.parameters import MAX_ID, only
from audit_stream.server.problems import NOT_SNIFFED, AnyRequest, OutOfRange, TooMany, of_ours
from audit_stream.spine import spine_of
from audit_stream.verifier import Report, Shared, TooManyWalks

PROGRESS_S = 0.2


@get(
    "/verify",
    operation_id="verifyChain",
    tags=["read"],
    summary="Recompute the hash chain",
    description=(
        "Checks every link on the stored bytes, that the end was not cut off, and that the indexes agree."
        " Whoever asks at the same time shares one walk. Accept: application/x-ndjson reports progress line by"
        " line; the last line is the verdict, or the problem that kept it from being reached. A walk over a part of"
        " the chain is one at a time for each token, or each address where there are no tokens, and two for each"
        " process. A walk ends when nobody waits for it any more."
    ),
    responses={
        200: ResponseSpec(VerdictBody, description="The verdict, intact or broken", generate_examples=False),
        **problems(400, 409, 422, 429, 503),
    },
)
async def verify_chain(
    request: AnyRequest,
    first: Annotated[int, QueryParameter(name="from", description="The event to begin at")] = 1,
    last: Annotated[int | None, QueryParameter(name="to", description="The event to end at; else the newest")] = None,
    deep: Annotated[
        bool, QueryParameter(name="deep", description="true: compare every index entry, not only their number")
    ] = False,
) -> ASGIApp:
    only(request, ("from", "to", "deep"))
    for name, value in (("from", first), ("to", last)):
        if value is not None and not 1 <= value <= MAX_ID:
            raise OutOfRange(f"{name} must be an event_id, 1 or more")
    spine = spine_of(request.app.state)
    who = _who(request)
    in_lines = NDJSON in request.headers.get("accept", "")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # On ASGI itself: the walk is left in the one place where it was joined, however the answer ends.
        try:
            async with spine.verifier.join(first, last, deep=deep, who=who) as shared:
                verifying = asyncio.create_task(_lines(request.scope, shared, send) if in_lines else shared.report())
                leaving = asyncio.create_task(_gone(receive))
                try:
                    await asyncio.wait({verifying, leaving}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    left = not verifying.done()
                    await end(verifying, leaving)
        except TooManyWalks as error:
            raise TooMany(str(error), retry_after=error.retry_after) from error
        if left:
            return
        if report := verifying.result():
            response = Response(_body(scope, report), media_type="application/json", headers=NOT_SNIFFED)
            await response.to_asgi_response(None, request)(scope, receive, send)

    return answer


def _who(request: AnyRequest) -> str:
    """Whose walks are counted together."""
    if grant := grant_of(request.scope):
        return f"token {grant.name}"
    return f"address {asker(request)[0]}"


async def _gone(receive: Receive) -> None:
    """Wait until the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lines(scope: Any, shared: Shared, send: Send) -> None:
    """Answer with the progress, and the verdict or the problem as the last line."""
    if await shared.ended(PROGRESS_S):
        await shared.report()  # what is wrong with the request is an answer of its own, not a line in a stream
    headers = [(name.encode(), value.encode()) for name, value in {"content-type": NDJSON, **NOT_SNIFFED}.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while not await shared.ended(PROGRESS_S):
        walk = shared.walk
        line = msgspec.json.encode(ProgressBody(walk.checked, max(walk.expected, walk.checked)))
        await send({"type": "http.response.body", "body": line + b"\n", "more_body": True})
    try:
        line = _body(scope, await shared.report())
    except AuditStreamError as error:
        line = of_ours(None, error).content
    await send({"type": "http.response.body", "body": line + b"\n", "more_body": False})


def _body(scope: Any, report: Report) -> bytes:
    verdict, first, indexes, took_s, unchecked = report
    verdict = verdict._replace(reason=may_know(scope, verdict.reason))
    return msgspec.json.encode(VerdictBody.of(verdict, first, indexes, took_s, unchecked))
