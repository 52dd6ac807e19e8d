"""What the page of another site gets done on a server without tokens, in a real browser: nothing."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Page

from tests.dashboard.browsing import OTHER_HOST
from tests.harness import ServerProcess

FORGED = '{"kind":"attestation_verified","source":"ci","payload":{"forged":"by a web page"}}'
BODIES = {
    "an ArrayBuffer": "new TextEncoder().encode(body).buffer",
    "a view": "new TextEncoder().encode(body)",
    "a Blob without a type": "new Blob([body])",
    "a Blob of text": "new Blob([body], {type: 'text/plain'})",
    "text": "body",
    "a form": "new URLSearchParams({body})",
}
"""What fetch and sendBeacon send without asking first."""


class Foreign(BaseHTTPRequestHandler):
    """The page of another site, of any name."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def foreign() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_port}/"
        site.shutdown()


def count(server: ServerProcess) -> int:
    return int(server.get("/stats").raise_for_status().json()["count"])


@pytest.mark.parametrize("path", ["/events", "/events/batch"])
@pytest.mark.parametrize("site", ["127.0.0.1", OTHER_HOST])
def test_a_page_of_another_site_appends_nothing(
    page: Page, server: ServerProcess, foreign: str, path: str, site: str
) -> None:
    page.goto(foreign.replace("127.0.0.1", site))
    for name, body in BODIES.items():
        sent = page.evaluate(
            f"""async ([url, body]) => {{
                const answer = await fetch(url, {{method: 'POST', mode: 'no-cors', body: {body}}});
                return [answer.type, navigator.sendBeacon(url, {body})];
            }}""",
            [server.url + path, FORGED],
        )
        # It was answered, and the browser keeps the answer to itself. A beacon goes on the way that is used already.
        assert sent == ["opaque", True], name
    # A beacon says nothing of its answer. This one is asked for last, and on its way the others have passed.
    page.evaluate("url => fetch(url, {mode: 'no-cors'})", server.url + "/healthz")
    assert count(server) == 0


def test_a_page_whose_name_is_made_to_resolve_to_this_machine_reads_and_appends_nothing(
    page: Page, server: ServerProcess
) -> None:
    page.goto(f"{server.url.replace('127.0.0.1', OTHER_HOST)}/")
    statuses = page.evaluate(
        """async body => {
            const send = {method: 'POST', headers: {'Content-Type': 'application/json'}, body};
            const answers = [await fetch('/events?limit=1'), await fetch('/stats'), await fetch('/events', send)];
            return answers.map(answer => answer.status);
        }""",
        FORGED,
    )
    assert statuses == [421] * 3
    assert count(server) == 0
