"""Server-sent events (WHATWG HTML §9.2), read from bytes that may be cut anywhere."""

from typing import NamedTuple

from audit_stream import __version__

AGENT = f"audit-stream/{__version__}"
"""Says to the server that blocks of nothing but an id are understood here."""


class Frame(NamedTuple):
    event_id: bytes
    """The last `id:` up to and with this frame."""
    data: bytes


class Parser:
    """Turns bytes into frames. One for each connection."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._id = b""
        self._first = True
        self.last_id = b""
        """What to send as Last-Event-ID. A frame of nothing but an id moves it along as well."""
        self.retry_ms: int | None = None

    def feed(self, chunk: bytes) -> list[Frame]:
        """Return the frames that end in this chunk."""
        text = self._rest + chunk
        if self._first:
            if len(text) < 3 and b"\xef\xbb\xbf".startswith(text):
                self._rest = text
                return []
            text, self._first = text.removeprefix(b"\xef\xbb\xbf"), False
        # A CR at the end may be half of a CRLF: it waits for what follows.
        held = b"\r" if text.endswith(b"\r") else b""
        text = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        return [frame for line in lines if (frame := self._line(line))]

    def _line(self, line: bytes) -> Frame | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"id" and b"\0" not in value:
            self._id = value
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> Frame | None:
        self.last_id = self._id
        data, self._data = b"\n".join(self._data), []
        return Frame(self.last_id, data) if data else None
