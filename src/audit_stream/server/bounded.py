"""What a connection may cost before anyone knows whose it is: bounds on the head of a request and on time.

uvicorn has bounds of this kind for h11, which takes three times as long for a request as httptools does. With
httptools it collects header lines without end and waits for them for ever.

Nothing here happens once a header: a read costs a few comparisons, and only a read that leaves a request unfinished
starts a timer.
"""

import asyncio
import logging
from http import HTTPStatus
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from audit_stream.server.problems import MEDIA_TYPE, problem

HEAD_BYTES = 64 * 1024
MOST = 50_000
"""Connections, where the system allows more: what they take by then is memory."""
SPARE = 200
"""Descriptors for everything else: Redis, files, and connections that are being refused."""

log = logging.getLogger(__name__)


def most_connections() -> int:
    """How many connections one process takes. Out of descriptors, it could not reach Redis either."""
    soft = getrlimit(RLIMIT_NOFILE)[0]
    return MOST if soft == RLIM_INFINITY else min(MOST, max(soft - SPARE, soft // 2))


class Bounded(HttpToolsProtocol):
    """Refuses, and closes: 431 a head that is too large, 408 one that is too slow or a body that stopped coming, 503
    one connection too many.

    A head is refused when HEAD_BYTES of it have come and its end has not. Of a head that begins in the same read as
    another request ends, the bytes of that read are not counted.
    """

    head_s: ClassVar[float] = 10.0
    """For a whole head, and for a new connection to begin one."""
    body_s: ClassVar[float] = 60.0
    """Without a byte of a body that is not whole yet."""
    linger_s: ClassVar[float] = 2.0
    """For the client to read why it was refused, while what it still sends is dropped."""
    most: ClassVar[int] = most_connections()

    _head_bytes = 0
    _since = 0.0
    """When the unfinished head began, or when the last part of the unfinished body came."""
    _refused = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        taken = len(self.connections)
        if taken <= self.most:
            self._since = self.loop.time()
            self._wait(self.head_s)
        elif taken <= self.most + SPARE // 2:
            log.warning("a connection was refused: %d are open", taken - 1)
            self._refuse(503, f"this server has {self.most} connections open, which is all that it takes")
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if len(data) > HEAD_BYTES:
            for start in range(0, len(data), HEAD_BYTES):
                self.data_received(data[start : start + HEAD_BYTES])
            return
        if self._refused or self.transport.is_closing():
            return
        scope_before, in_body = self.scope, self._in_body()
        super().data_received(data)
        if self._in_head():
            begun = self.scope is not scope_before
            if begun:
                self._head_bytes = 0 if in_body else len(data)
                self._since = self.loop.time()
                self._wait(self.head_s)
            else:
                self._head_bytes += len(data)
            if self._head_bytes >= HEAD_BYTES:
                self._refuse(431, f"the head of the request is over {HEAD_BYTES} bytes: send fewer or shorter headers")
        elif self._in_body():
            self._since = self.loop.time()
            self._wait(self.body_s)

    def _in_head(self) -> bool:
        # uvicorn makes the scope when a request begins, and puts the method in when its head is whole.
        return self.scope is not None and "method" not in self.scope

    def _in_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body and self.cycle.scope is self.scope

    # --- time

    def _wait(self, seconds: float) -> None:
        """Look again by then. A timer that is due earlier stays: it finds out how long there is left to wait."""
        due = self.loop.time() + seconds
        if self._timer:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self.loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._refused:
            self.transport.close()
            return
        if self.scope is None or self._in_head():
            limit_s, what = self.head_s, "the head of the request"
        elif self._in_body():
            limit_s, what = self.body_s, "the body of the request"
        else:
            return
        # While the application has not taken what came so far, it is the server that is slow.
        waited_s = 0.0 if self.flow.read_paused else self.loop.time() - self._since
        if waited_s < limit_s:
            self._wait(limit_s - waited_s)
        elif self.scope is None:
            self.transport.close()  # opened and never used, as browsers do to be quick later
        else:
            self._refuse(408, f"{what} did not come within {limit_s:g} s")

    # --- refusing

    def _refuse(self, status: int, detail: str) -> None:
        """Answer and close, unless an answer is on its way: then only close, as nothing fits in between."""
        self._refused = True
        if not self._may_answer():
            self.transport.close()
            return
        if self._in_body():
            # The application reads that the client is gone, and writes nothing.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(_answer(status, detail))
        # Closed at once, with bytes still coming in, the client might never see the answer.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._wait(self.linger_s)

    def _may_answer(self) -> bool:
        """Whether nothing of an earlier answer, or of an early one to this request, was written or is still to be."""
        if self.cycle is None:
            return True
        if self._in_body():
            return not (self.pipeline or self.cycle.response_started)
        return self.cycle.response_complete


def _answer(status: int, detail: str) -> bytes:
    content = problem(status, detail).content
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(content)}",
        "connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content
