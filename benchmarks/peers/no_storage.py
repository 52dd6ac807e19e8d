"""The limit of our stack: a Litestar handler that validates the same struct and answers without storing."""

from litestar import Litestar, post

from audit_stream.event import PublishRequest
from audit_stream.server.bodies import EventBody


@post("/events", status_code=201)
async def append_event(data: PublishRequest) -> EventBody:
    return EventBody(1, "2026-05-15T03:14:15.123+00:00", data.kind, data.source, data.payload, "0" * 64, "f" * 64)


app = Litestar(route_handlers=[append_event], openapi_config=None, logging_config=None)
