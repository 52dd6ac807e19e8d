"""Logging in: nothing is shown before, and the token is kept where no script reads it."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from audit_stream.access.entry import Entry, digest_of, new_token, to_toml
from tests.dashboard.browsing import expect_connection, row, rows, shot
from tests.harness import ServerProcess, running_server

READER = new_token()
PRODUCER = new_token()
PHONE = {"width": 390, "height": 844}


def write(path: Path, **tokens: tuple[str, tuple[str, ...]]) -> None:
    entries = [Entry(name=name, sha256=digest_of(t.encode()).hex(), scopes=s) for name, (t, s) in tokens.items()]  # type: ignore[arg-type]
    path.write_text("".join(map(to_toml, entries)))


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    write(path, reader=(READER, ("read",)), producer=(PRODUCER, ("append",)))
    return path


@pytest.fixture
def server(redis_url: str, tokens: Path) -> Iterator[ServerProcess]:
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": f"login.{secrets.token_hex(4)}"}
    with running_server(HOST="127.0.0.1", AUDIT_STREAM_TOKENS=str(tokens), **settings) as started:
        event = {"kind": "other", "source": "test"}
        started.post(event, Authorization=f"Bearer {PRODUCER}").raise_for_status()
        yield started


def log_in(page: Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_label("Token").press("Enter")


def test_a_reader_logs_in_by_keyboard_sees_the_chain_and_logs_out(page: Page, server: ServerProcess) -> None:
    page.goto(f"{server.url}/dashboard")
    expect(page.get_by_label("Token")).to_be_focused()
    expect(rows(page)).to_have_count(0)
    # A password manager files the token under a name.
    expect(page.locator("#login-form [autocomplete=username]")).to_have_value("audit-stream")
    for _ in range(3):
        page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.type(READER)
    page.keyboard.press("Enter")
    expect_connection(page, "live")
    expect(row(page, 1)).to_be_visible()
    expect(page.get_by_role("dialog")).to_be_hidden()
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert READER not in page.evaluate("document.cookie + JSON.stringify([localStorage, sessionStorage])")
    page.reload()
    expect_connection(page, "live")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(rows(page)).to_have_count(0)
    assert page.context.cookies() == []


def test_a_token_that_will_not_do_is_told_why_and_may_be_mended(page: Page, server: ServerProcess) -> None:
    page.goto(f"{server.url}/dashboard")
    log_in(page, "nonsense")
    expect(page.get_by_role("alert").filter(has_text="not known here")).to_be_visible()
    log_in(page, PRODUCER)
    expect(page.locator("#login-error")).to_have_text(
        "the dashboard needs the scope read; the token 'producer' does not have it"
    )
    log_in(page, READER)
    expect_connection(page, "live")


def test_a_token_that_is_taken_away_closes_the_page(page: Page, server: ServerProcess, tokens: Path) -> None:
    page.goto(f"{server.url}/dashboard")
    log_in(page, READER)
    expect_connection(page, "live")
    write(tokens, producer=(PRODUCER, ("append",)))
    expect(page.get_by_role("dialog")).to_contain_text("holds no longer")
    expect_connection(page, "stopped")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_login_fits_a_phone_in_light_and_dark(browser: Browser, server: ServerProcess, scheme: str) -> None:
    look: Any = {"viewport": PHONE, "color_scheme": scheme}
    context = browser.new_context(is_mobile=True, has_touch=True, device_scale_factor=2, **look)
    page = context.new_page()
    page.goto(f"{server.url}/dashboard")
    log_in(page, "nonsense")
    expect(page.locator("#login-error")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    shot(page, f"login-{scheme}")
    page.get_by_label("Token").fill(READER)
    page.get_by_role("button", name="Log in").tap()
    expect_connection(page, "live")
    context.close()
