"""uvicorn's protocol with one write for each answer.

uvicorn writes the head of an answer and its body one after the other. On the routes that every producer
waits for, the second system call is a tenth of what the server does in all.
"""

import asyncio
from typing import Any, cast

from audit_stream.server.bounded import Bounded
from audit_stream.server.stalled import DropsStalled


class OneWrite(Bounded, DropsStalled):
    """uvicorn's protocol, bounded; what it writes in one turn of the event loop leaves together."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", _Joining(cast("asyncio.Transport", transport))))


class _Joining:
    """A transport that holds a write until the next one, or until the turn of the loop ends.

    So what is held is a few frames at most, and pause_writing comes one turn later than it would.
    """

    __slots__ = ("_call_soon", "_held", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self._call_soon = asyncio.get_running_loop().call_soon
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held + data)
        elif data:
            self._held = data
            self._call_soon(self._flush)

    def _flush(self) -> None:
        held, self._held = self._held, b""
        # uvloop raises for a connection that was reset since the write.
        if held and not self.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._flush()
        self._transport.set_protocol(protocol)
