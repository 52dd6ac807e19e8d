"""One request after the other over raw sockets, to see what a single lookup takes."""

import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit


def p99_ms(work: Callable[[], Any], times: int) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return sorted(took)[times * 99 // 100] * 1000


class Getter:
    """A kept connection that only reads as much of an answer as tells where it ends."""

    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        self._address = (target.hostname or "", target.port or 80)
        self._socket = socket.create_connection(self._address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def get(self, path: str) -> bytes:
        """Return the body. Raises RuntimeError for any answer but 200."""
        self._socket.sendall(_request(path))
        answer = self._socket.recv(65536)
        while b"\r\n\r\n" not in answer:
            answer += self._socket.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {answer[:300]!r}")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._socket.recv(65536)
        return body

    def read_frames(self, path: str, count: int) -> None:
        """Open an event stream on a connection of its own and read that many frames."""
        with socket.create_connection(self._address) as stream:
            stream.sendall(_request(path))
            seen = b""
            while seen.count(b"\nid: ") < count:
                received = stream.recv(65536)
                if not received:
                    raise RuntimeError(f"{path}: ended after {seen[-300:]!r}")
                seen += received


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
