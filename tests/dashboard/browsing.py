"""Looking at the dashboard: opening it, and reading what it shows."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.harness import ROOT, ServerProcess, running_server

OTHER_HOST = "audit.test"
"""A host that is not this one, as far as the browser knows: plain http there is no secure context."""

WAIT_MS = 20_000
expect.set_options(timeout=WAIT_MS)


def open_dashboard(page: Page, server: ServerProcess) -> None:
    page.goto(f"{server.url}/dashboard")
    expect_connection(page, "live")


def expect_connection(page: Page, state: str) -> None:
    expect(page.locator("#connection")).to_have_attribute("data-state", state)


def rows(page: Page, view: str = "live") -> Locator:
    return page.locator(f"#{view}-list .row:visible")


def row(page: Page, event_id: int, view: str = "live") -> Locator:
    return page.locator(f"#{view}-{event_id}")


def checks(page: Page) -> Locator:
    """The two checks of the open event: its hash, then its link."""
    return page.locator("#detail .check")


def expect_checks(page: Page, hash_: str, link: str) -> None:
    expect(checks(page).nth(0)).to_have_attribute("data-state", hash_)
    expect(checks(page).nth(1)).to_have_attribute("data-state", link)


def verify(page: Page, state: str) -> Locator:
    """Press Verify and wait for the verdict of this colour: holds, broken or unknown."""
    page.get_by_role("button", name="Verify").click()
    verdict = page.locator("#verdict")
    expect(verdict).to_have_attribute("data-state", state)
    return verdict


def post(server: ServerProcess, count: int, **fields: Any) -> None:
    """Append `count` events that differ in their payload's n, in batches."""
    event = {"kind": "other", "source": "test", **fields}
    for start in range(0, count, 2000):
        batch = [event | {"payload": {"n": n}} for n in range(start, min(count, start + 2000))]
        server.post_batch(batch).raise_for_status()


@contextmanager
def in_its_place(server: ServerProcess, **settings: str) -> Iterator[ServerProcess]:
    """Another server at the address of one that was stopped."""
    with running_server(PORT=server.url.rpartition(":")[2], **settings) as other:
        yield other


def shot(page: Page, name: str) -> Path:
    """Keep a picture of the page as an artefact of the test run."""
    folder = Path(os.environ.get("AUDIT_STREAM_TEST_ARTEFACTS", ROOT / "dist" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    page.screenshot(path=path)
    return path
