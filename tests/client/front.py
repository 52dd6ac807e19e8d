"""An HTTP server in front of the real one, which misbehaves as it is told and notes what it was sent."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple

import httpx

# busy        503 with Retry-After, and nothing is passed on
# cut before  the connection is closed, and nothing is passed on
# cut after   the request is passed on, its answer thrown away and the connection closed
# 401, 403    the token is refused, and nothing is passed on
# portal      something that is not the server answers 200
# hang        as `cut after`, but only once `released` is set
Behaviour = Literal["pass", "busy", "cut before", "cut after", "401", "403", "portal", "hang"]
RETRY_AFTER_S = 7


class Seen(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


class Front:
    def __init__(self, behind: str) -> None:
        self.behind = behind
        self.next: deque[Behaviour] = deque()
        """What to do with the next requests; those after them are passed on."""
        self.seen: list[Seen] = []
        self.hanging, self.released = threading.Event(), threading.Event()
        self.url = ""

    def forward(self, method: str, seen: Seen) -> httpx.Response:
        kept = {name: value for name, value in seen.headers.items() if name in ("content-type", "accept")}
        with httpx.Client(base_url=self.behind, timeout=30) as client:
            return client.request(method, seen.path, content=seen.body, headers=kept)


@contextmanager
def front_of(behind: str, *behaviours: Behaviour) -> Iterator[Front]:
    front = Front(behind)
    front.next.extend(behaviours)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer("GET")

        def do_POST(self) -> None:
            self.answer("POST")

        def answer(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            seen = Seen(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            front.seen.append(seen)
            behaviour = front.next.popleft() if front.next else "pass"
            self.close_connection = True
            if behaviour == "busy":
                problem = b'{"title":"Service Unavailable","status":503,"detail":"Redis is away"}'
                headers = {"Retry-After": str(RETRY_AFTER_S), "Content-Type": "application/problem+json"}
                self.reply(503, headers, problem)
            if behaviour in ("401", "403"):
                problem = b'{"title":"Refused","status":%b,"detail":"this token is refused"}' % behaviour.encode()
                self.reply(int(behaviour), {"Content-Type": "application/problem+json"}, problem)
            if behaviour == "portal":
                self.reply(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")
            if behaviour in ("pass", "cut after", "hang"):
                forwarded = front.forward(method, seen)
            if behaviour == "hang":
                front.hanging.set()
                assert front.released.wait(60)
            if behaviour == "pass":
                passed = ("content-type", "link", "idempotent-replayed", "retry-after")
                headers = {name: value for name, value in forwarded.headers.items() if name in passed}
                self.reply(forwarded.status_code, headers, forwarded.content)

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    front.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield front
    finally:
        front.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
