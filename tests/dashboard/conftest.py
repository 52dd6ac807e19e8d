"""A real Chromium that looks at real servers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.dashboard.browsing import OTHER_HOST
from tests.harness import ServerProcess
from tests.tamper.stored import Stored

CHROMIUM = Path("/usr/bin/chromium")


# Of the module, not of the session: while Playwright runs, no test in the same thread could start an event loop.
@pytest.fixture(scope="module")
def browser(redis_url: str) -> Iterator[Browser]:
    if not CHROMIUM.exists():
        reason = f"no {CHROMIUM}: install Debian's package chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[f"--host-resolver-rules=MAP {OTHER_HOST} 127.0.0.1"]
        )
        yield started
        started.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    opened.set_default_timeout(20_000)
    yield opened
    opened.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained about. A test that provokes complaints looks at them and clears the list."""
    return []


@pytest.fixture
def page(context: BrowserContext, complaints: list[str]) -> Iterator[Page]:
    def on_console(message: ConsoleMessage) -> None:
        # A request that fails is what several tests are about; the page has to show it.
        if message.type == "error" and "Failed to load resource" not in message.text and "ERR_" not in message.text:
            complaints.append(message.text)

    opened = context.new_page()
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", on_console)
    yield opened
    assert complaints == []


@pytest.fixture
def stored(redis_url: str, chain: str, server: ServerProcess) -> Iterator[Stored]:
    """The server's chain, as somebody with redis-cli sees it."""
    opened = Stored(redis_url, chain)
    yield opened
    opened.close()
