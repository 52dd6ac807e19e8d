"""CloudEvents in the OpenAPI document: what is taken, and what is answered."""

from typing import Any

from litestar.openapi.spec import OpenAPIFormat, OpenAPIMediaType, OpenAPIType, Reference, Schema

from audit_stream.cloudevents import NAME, SPECVERSION, URI_REFERENCE
from audit_stream.event import MAX_SOURCE_LENGTH
from audit_stream.server.cloudevents import BATCH, STRUCTURED

_TEXT = Schema(type=OpenAPIType.STRING, min_length=1)
_TIME = Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME)
_HASH = Schema(type=OpenAPIType.STRING, pattern="^[0-9a-f]{64}$")
_EXTENSION = Schema(type=[OpenAPIType.STRING, OpenAPIType.INTEGER, OpenAPIType.BOOLEAN, OpenAPIType.NULL])


def describe_cloudevents(schemas: dict[str, Any], paths: Any, kind: Schema, open_kind: Schema) -> None:
    """Add both schemas, and the media types to the bodies and answers that have them.

    A body in batched mode is described in words alone, where the route is. Generators of clients choose among the
    types of a body by its class, and two kinds of lists have the same one: openapi-python-client's code then fails.
    """
    required = {
        "specversion": Schema(type=OpenAPIType.STRING, enum=[SPECVERSION]),
        "id": _TEXT,
        "source": Schema(
            type=OpenAPIType.STRING,
            min_length=1,
            max_length=MAX_SOURCE_LENGTH,
            pattern=f"^{URI_REFERENCE}$",
            description="URI-reference (RFC 3986)",
        ),
        "type": kind,
    }
    data = Schema(type=OpenAPIType.OBJECT, description="Any JSON object, nested 64 deep at most.")
    schemas["CloudEvent"] = Schema(
        title="CloudEvent",
        description="CloudEvents 1.0. source and id are the idempotency key; other attributes are kept in the payload.",
        type=OpenAPIType.OBJECT,
        properties={**required, "time": _or_unset(_TIME), "data": data},
        required=[*required],
        property_names=Schema(pattern=f"^{NAME}$"),
        additional_properties=_EXTENSION,
    )
    schemas["ChainedCloudEvent"] = Schema(
        title="ChainedCloudEvent",
        description="An event of the chain as a CloudEvent: id is the event_id, prevhash and hash are the link.",
        type=OpenAPIType.OBJECT,
        properties={
            **required,
            "type": open_kind,
            "id": Schema(type=OpenAPIType.STRING, pattern="^[1-9][0-9]*$"),
            "source": Schema(type=OpenAPIType.STRING, min_length=1),
            "time": _TIME,
            "datacontenttype": _TEXT,
            "prevhash": _HASH,
            "hash": _HASH,
            "data": data,
        },
        required=[*required, "time", "datacontenttype", "prevhash", "hash", "data"],
        additional_properties=_EXTENSION,
    )
    paths["/events"].post.request_body.content[STRUCTURED] = _one("CloudEvent")
    one, many = _one("ChainedCloudEvent"), _many("ChainedCloudEvent")
    for operation, answered in (
        (paths["/events/{event_id}"].get, {STRUCTURED: one}),
        (paths["/events"].post, {STRUCTURED: one}),
        (paths["/events"].get, {BATCH: many}),
        (paths["/events/batch"].post, {BATCH: many}),
    ):
        for status in {"200", "201"} & operation.responses.keys():
            operation.responses[status].content |= answered


def _or_unset(schema: Schema) -> Schema:
    return Schema(one_of=[schema, Schema(type=OpenAPIType.NULL)])


def _reference(name: str) -> Reference:
    return Reference(ref=f"#/components/schemas/{name}")


def _one(name: str) -> OpenAPIMediaType:
    return OpenAPIMediaType(schema=_reference(name))


def _many(name: str) -> OpenAPIMediaType:
    return OpenAPIMediaType(schema=Schema(type=OpenAPIType.ARRAY, items=_reference(name)))
