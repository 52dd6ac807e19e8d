"""What the OpenAPI document says beyond what the handlers' types do."""

from typing import Annotated

from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Parameter

from audit_stream.event import MAX_KEY_LENGTH
from audit_stream.server.bodies import EventBody, ProblemBody
from audit_stream.server.problems import MEDIA_TYPE

NDJSON = "application/x-ndjson"
MAX_LIMIT = 100_000

_MEANINGS = {
    400: "Not JSON, or a number out of range",
    404: "No such event",
    409: "The chain is damaged",
    413: "Over a limit",
    415: "A form or plain text, not JSON",
    422: "Breaks the schema, or has no canonical form",
    503: "Redis is away or takes no writes, or the queue is full: see Retry-After",
}


def problems(*statuses: int) -> dict[int, ResponseSpec]:
    return {
        status: ResponseSpec(ProblemBody, description=_MEANINGS[status], media_type=MEDIA_TYPE, generate_examples=False)
        for status in statuses
    }


def an_event(description: str) -> ResponseSpec:
    return ResponseSpec(EventBody, description=description, generate_examples=False)


def events(description: str) -> ResponseSpec:
    return ResponseSpec(list[EventBody], description=description, generate_examples=False)


IdempotencyHeader = Annotated[
    str | None,
    Parameter(
        header="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY_LENGTH,
        description="The same key with the same content is appended once; with other content it is a 422.",
    ),
]
Kind = Annotated[str | None, Parameter(query="kind", description="Only events of this kind")]
Source = Annotated[str | None, Parameter(query="source", description="Only events of this source")]
After = Annotated[int | None, Parameter(query="after", description="A cursor: events behind this event_id")]
