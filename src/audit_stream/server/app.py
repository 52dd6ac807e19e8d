"""The application: wiring only."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from litestar import Litestar, MediaType, Router
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from audit_stream import __version__
from audit_stream.access.session import Sessions
from audit_stream.access.table import Tokens
from audit_stream.errors import AuditStreamError, Misconfigured
from audit_stream.server.dashboard.page import dashboard_file
from audit_stream.server.docs.page import docs_file
from audit_stream.server.login import Attempts
from audit_stream.server.openapi import complete, secured
from audit_stream.server.problems import HANDLERS, in_json, not_sniffed
from audit_stream.server.routes import ROUTES
from audit_stream.settings import Settings
from audit_stream.spine import open_spine
from audit_stream.tally import Tally

if TYPE_CHECKING:
    from audit_stream.server.traces import Tracing


def create_app(settings: Settings, tally: Tally | None = None, tracing: "Tracing | None" = None) -> Litestar:
    """Make the ASGI application for a given Redis; `audit-stream serve` finds or starts one first."""

    @asynccontextmanager
    async def spine(app: Litestar) -> AsyncIterator[None]:
        if settings.redis_url is None:
            raise Misconfigured("AUDIT_STREAM_REDIS_URL is not set; `audit-stream serve` starts an embedded Valkey")
        parts = tracing.parts if tracing else None
        try:
            async with open_spine(settings, settings.redis_url, tally, parts) as opened:
                app.state.spine = opened
                if app.state.sessions:
                    with suppress(AuditStreamError):  # at the next login then
                        await app.state.sessions.prepare(opened.stream.session_key.secret)
                yield
        finally:
            if tracing:
                await tracing.close()

    app = Litestar(
        route_handlers=[*ROUTES, dashboard_file, docs_file],
        lifespan=[spine],
        exception_handlers=HANDLERS,
        after_request=not_sniffed,
        openapi_config=OpenAPIConfig(
            title="audit-stream",
            version=__version__,
            description="The shared, append-only, hash-chained spine of governance events.",
            openapi_router=Router("/schema", route_handlers=[], include_in_schema=False, after_request=in_json),
            render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"], media_type=MediaType.JSON)],
        ),
        logging_config=None,
    )
    complete(app, settings.kinds)
    app.state.tokens, app.state.sessions, app.state.attempts = None, None, Attempts()
    if settings.tokens:
        app.state.tokens = Tokens(
            settings.tokens,
            requests_per_second=settings.requests_per_second,
            bytes_per_second=settings.bytes_per_second,
        )
        app.state.sessions = Sessions(app.state.tokens)
        secured(app)
    return app
