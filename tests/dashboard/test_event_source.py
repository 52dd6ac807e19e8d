"""What the server takes from a browser's EventSource, and what it may send to one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from playwright.sync_api import Page

from audit_stream.tail import RETRY_MS

OPENING = b"retry: %d\n: audit-stream\n" % RETRY_MS


@contextmanager
def answering(*streams: bytes) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers /stream with one of these after the other; yields its URL and the headers it was sent."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream" if self.path == "/stream" else "text/html")
            self.end_headers()
            if self.path == "/stream":
                asked.append({name.lower(): value for name, value in self.headers.items()})
                self.wfile.write(streams[min(len(asked), len(streams)) - 1])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            serving.join()


def test_a_browser_is_known_by_its_headers_moves_along_by_a_bare_id_and_sees_no_event_in_it(page: Page) -> None:
    first = OPENING.replace(b"2000", b"50") + b"id: 3\ndata: x\n\n: heartbeat\nid: 7\n\n"
    with answering(first, OPENING + b"id: 9\ndata: y\n\n") as (url, asked):
        page.goto(url)
        seen = page.evaluate(
            """() => new Promise((resolve) => {
                const seen = [], source = new EventSource("/stream");
                source.onmessage = ({ data, lastEventId }) => {
                    seen.push([data, lastEventId]);
                    if (data === "y") { source.close(); resolve(seen); }
                };
            })"""
        )
    assert seen == [["x", "3"], ["y", "9"]]
    assert [headers.get("last-event-id") for headers in asked] == [None, "7"]
    assert all("sec-fetch-mode" in headers and headers["cache-control"] == "no-cache" for headers in asked)
