"""The way past Litestar for the routes that every producer waits on.

Litestar's dispatch costs a quarter of an append. These two routes need none of what it does; they stay
routes of the application all the same, described in its OpenAPI and answered there when a path is spelt
otherwise (`/events/`).
"""

import logging

from litestar import Litestar
from litestar.types import Receive, Scope, Send

from audit_stream.errors import AuditStreamError
from audit_stream.server.append import append_batch, append_one
from audit_stream.server.problems import failure, of_ours, problem, send_answer

_ANSWERS = {"/events": append_one, "/events/batch": append_batch}

log = logging.getLogger(__name__)


class Express:
    """The ASGI application that uvicorn serves."""

    def __init__(self, app: Litestar) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _ANSWERS.get(scope["path"]) if scope.get("method") == "POST" else None
        if answer is None:
            await self._app(scope, receive, send)
            return
        scope["litestar_app"] = self._app
        try:
            await answer(scope, receive, send)
            return
        except AuditStreamError as error:
            self._app.state.spine.tally.failed(failure(error))
            response = of_ours(None, error)
        except Exception as error:
            self._app.state.spine.tally.failed(failure(error))
            log.exception("POST %s failed, and the fault is ours", scope["path"])
            response = problem(500, "the server failed to answer; its log says why")
        await send_answer(response, send)
