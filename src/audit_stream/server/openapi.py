"""What the OpenAPI document says beyond what the handlers' types do."""

from collections.abc import Sequence
from typing import Annotated, Any

from litestar import Litestar
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    OpenAPIFormat,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Reference,
    Schema,
    SecurityScheme,
)
from litestar.params import HeaderParameter, QueryParameter

from audit_stream.event import MAX_KEY_LENGTH
from audit_stream.exported import COMMITTED_AT
from audit_stream.server.auth import COOKIE
from audit_stream.server.bodies import EventBody, ProblemBody
from audit_stream.server.cloudevents_schema import describe_cloudevents
from audit_stream.server.problems import MEDIA_TYPE

JSON = "application/json"
NDJSON = "application/x-ndjson"
MAX_LIMIT = 100_000

_MEANINGS = {
    400: "Not JSON, or a number out of range",
    404: "No such event",
    406: "Accept takes no form of this answer",
    409: "The chain is damaged",
    413: "Over a limit",
    415: "A form, plain text, a body without a type, or CloudEvents data that are not JSON",
    422: "Breaks the schema, or has no canonical form",
    429: "As much as goes on at a time is under way already: see Retry-After",
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
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=MAX_KEY_LENGTH,
        description="The same key with the same content is appended once; with other content it is a 422.",
    ),
]
Kind = Annotated[str | None, QueryParameter(name="kind", description="Only events of this kind")]
Source = Annotated[str | None, QueryParameter(name="source", description="Only events of this source")]
After = Annotated[int | None, QueryParameter(name="after", description="A cursor: events behind this event_id")]


def complete(app: Litestar, kinds: Sequence[str]) -> None:
    """Add what the types cannot say: this deployment's kinds, NDJSON, and bounds that are checked elsewhere."""
    document: Any = app.openapi_schema
    schemas, paths = document.components.schemas, document.paths
    kind = Schema(type=OpenAPIType.STRING, enum=list(kinds))
    # In what is answered it is open: a client that was generated today reads the kinds of tomorrow.
    open_kind = Schema(type=OpenAPIType.STRING, examples=list(kinds[:3]))
    schemas["PublishRequest"].properties["kind"] = kind
    schemas["EventBody"].properties["kind"] = open_kind
    request = schemas["PublishRequest"]
    request.additional_properties = False
    request.properties["timestamp"].format = OpenAPIFormat.DATE_TIME
    request.properties["idempotency_key"].min_length = 1
    request.properties["idempotency_key"].max_length = MAX_KEY_LENGTH
    for operation, line in ((paths["/events"].get, "EventBody"), (paths["/verify"].get, "ProgressBody")):
        operation.responses["200"].content[NDJSON] = _lines(line, "One object a line")
    listed = paths["/events"].get.responses["200"].content[JSON].schema
    listed.items = Schema(all_of=[listed.items, Schema(type=OpenAPIType.OBJECT, properties={COMMITTED_AT: _COMMITTED})])
    describe_cloudevents(schemas, paths, kind, open_kind)
    for path in ("/events", "/stream", "/verify"):
        for parameter in paths[path].get.parameters:
            if parameter.name in _BOUNDS:
                parameter.schema.minimum, parameter.schema.maximum = _BOUNDS[parameter.name]
            elif parameter.name == "kind":
                parameter.schema = kind
            elif parameter.name in ("since", "until"):
                parameter.schema.format = OpenAPIFormat.DATE_TIME


_OPEN = ("/healthz", "/readyz")


def secured(app: Litestar) -> None:
    """Add what the guard asks for and answers, where there are tokens."""
    document: Any = app.openapi_schema
    document.components.security_schemes = {
        "token": SecurityScheme(
            type="http", scheme="bearer", description="A token, as `audit-stream token new` prints it"
        ),
        "cookie": SecurityScheme(
            type="apiKey", name=COOKIE, security_scheme_in="cookie", description="The dashboard's, for GET alone"
        ),
    }
    content = {MEDIA_TYPE: OpenAPIMediaType(schema=Reference(ref="#/components/schemas/ProblemBody"))}
    seconds = OpenAPIHeader(description="Seconds to wait", schema=Schema(type=OpenAPIType.INTEGER))
    challenge = OpenAPIHeader(description="RFC 6750", schema=Schema(type=OpenAPIType.STRING))
    refusals = {
        "401": OpenAPIResponse(
            "No token, or none that is known", headers={"WWW-Authenticate": challenge}, content=content
        ),
        "403": OpenAPIResponse("The token does not allow it", content=content),
        "429": OpenAPIResponse("The token is over a limit", headers={"Retry-After": seconds}, content=content),
    }
    for path, item in document.paths.items():
        for method in ("get", "post"):
            if (operation := getattr(item, method)) and path not in _OPEN:
                operation.security = [{"token": []}] + ([{"cookie": []}] if method == "get" else [])
                operation.responses.update(refusals)


_BOUNDS = {"limit": (1, MAX_LIMIT), "after": (0, None), "before": (0, None), "from": (1, None), "to": (1, None)}


_COMMITTED = Schema(
    type=OpenAPIType.STRING,
    format=OpenAPIFormat.DATE_TIME,
    description="Only with `committed=true`: UTC in milliseconds, by the index and not hashed",
)


def _lines(name: str, description: str) -> OpenAPIMediaType:
    return OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, description=f"{description}: {name}"))
