"""By keyboard, on a phone, in light and in dark; with pictures that are kept."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.dashboard.browsing import expect_checks, open_dashboard, post, row, rows, shot, verify
from tests.harness import ServerProcess

PHONE = {"width": 390, "height": 844}


def test_the_whole_round_is_made_by_keyboard(page: Page, server: ServerProcess) -> None:
    post(server, 5)
    open_dashboard(page, server)
    expect(rows(page)).to_have_count(5)
    keys = page.keyboard
    keys.press("ArrowDown")  # into the list
    expect(row(page, 5)).to_have_attribute("aria-selected", "true")
    keys.press("ArrowDown")
    expect(page.locator("#live-list")).to_have_attribute("aria-activedescendant", "live-4")
    keys.press("Enter")
    expect(page.locator("#detail-title")).to_be_focused()
    expect(page.locator("#detail-title")).to_have_text("Event #4")
    keys.press("Escape")
    expect(page.locator("#live-list")).to_be_focused()
    expect(page.locator("#detail-title")).to_have_text("Event")
    keys.press("End")
    keys.press("Enter")
    expect(page.locator("#detail-title")).to_have_text("Event #1")
    keys.press("Space")
    expect(page.locator("#pause")).to_contain_text("Resume")
    keys.press("Space")
    expect(page.locator("#pause")).to_have_text("Pause")
    keys.press("/")
    expect(page.locator("#search-source")).to_be_focused()
    keys.type("a / b")
    expect(page.locator("#search-source")).to_have_value("a / b")
    expect(page.locator("#pause")).to_have_text("Pause")


def test_tab_reaches_every_control_and_shows_where_it_is(page: Page, server: ServerProcess) -> None:
    open_dashboard(page, server)
    reached = []
    post(server, 1)
    expect(rows(page)).to_have_count(1)
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == [
        "verify", "tab-live", "zone", "live-kind", "live-source", "live-clear", "pause", "live-download", "live-list",
    ]  # fmt: skip
    page.locator("#tab-live").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-search")).to_be_focused()
    expect(page.locator("#view-search")).to_be_visible()


def test_every_control_has_a_name(page: Page, server: ServerProcess) -> None:
    open_dashboard(page, server)
    nameless = """[...document.querySelectorAll("button, input, select, [role=listbox], [role=region]")]
      .filter(it => !(it.textContent.trim() && it.matches("button")) && !it.labels?.length
                    && !it.getAttribute("aria-label") && !it.getAttribute("aria-labelledby"))
      .map(it => it.id || it.outerHTML)"""
    assert page.evaluate(nameless) == []
    outside = """[...document.body.children]
      .filter(it => !it.matches("header, main, footer, section, dialog, datalist, noscript"))
      .filter(it => !["alert", "status"].includes(it.getAttribute("role"))).map(it => it.outerHTML)"""
    assert page.evaluate(outside) == [], "a reader who walks from landmark to landmark passes these by"
    for role in ("#connection", "#news", "#search-count"):
        expect(page.locator(role)).to_have_attribute("role", "status")


def test_the_shortcuts_are_written_on_the_page(page: Page, server: ServerProcess) -> None:
    open_dashboard(page, server)
    assert set(page.locator("footer kbd").all_inner_texts()) >= {"Space", "/", "↑", "↓", "Enter", "Esc"}


def busy(server: ServerProcess) -> None:
    """Five minutes of governance, for the pictures."""
    kinds = {
        "request_allowed": 30,
        "tool_invocation_allowed": 22,
        "request_denied": 7,
        "decision_card_signed": 5,
        "watch_drifted": 4,
        "attestation_verified": 4,
        "incident_filed": 1,
    }
    sources = ["gateway", "policy-engine", "tool-broker", "review-desk"]
    chance, now = random.Random(7), datetime.now(UTC)
    offsets = sorted((300 * chance.random() ** 1.4 for _ in range(900)), reverse=True)
    events = [
        {
            "kind": chance.choices(list(kinds), list(kinds.values()))[0],
            "source": chance.choice(sources),
            "payload": {
                "decision_id": f"DEC-{chance.randrange(1000):03}",
                "subject": f"agent-{chance.randrange(40)}",
                "policy": {"bundle": "eu-ai-act", "version": 4, "rules": ["art-12", "art-14"]},
                "confidence": round(chance.random(), 3),
            },
            "timestamp": (now - timedelta(seconds=offset)).isoformat(timespec="milliseconds"),
        }
        for offset in offsets
    ]
    server.post_batch(events).raise_for_status()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_reader_s_light_or_dark(page: Page, server: ServerProcess, scheme: str) -> None:
    busy(server)
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    open_dashboard(page, server)
    verify(page, "holds")
    row(page, 897).click()
    expect_checks(page, "holds", "holds")
    expect(page.locator("#legend li")).to_have_count(7)
    light, dark = ("rgb(244, 245, 247)", "rgb(14, 18, 23)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (dark if scheme == "dark" else light)
    shot(page, f"dashboard-{scheme}")
    page.get_by_role("tab", name="Search").click()
    page.locator("#search-form").get_by_role("button", name="Search").click()
    expect(page.locator("#search-count")).to_contain_text("Page 1")
    shot(page, f"search-{scheme}")


def test_on_a_phone_nothing_is_cut_off_and_an_event_fills_the_screen(browser: Browser, server: ServerProcess) -> None:
    busy(server)
    context = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)  # type: ignore[arg-type]
    page = context.new_page()
    open_dashboard(page, server)
    expect(row(page, 900)).to_be_visible()
    verify(page, "holds")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    small = """[...document.querySelectorAll("button, input, select, .row")].filter(it => it.checkVisibility())
      .filter(it => it.getBoundingClientRect().height < 36).map(it => it.id)"""
    assert page.evaluate(small) == []
    shot(page, "phone")
    page.locator("#live-list").scroll_into_view_if_needed()
    row(page, 898).tap()
    expect_checks(page, "holds", "holds")
    box = page.locator("#detail").bounding_box()
    assert box
    assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, 390, 844)
    shot(page, "phone-event")
    page.get_by_role("button", name="Close the event").tap()
    expect(page.locator("#detail")).to_be_hidden()
    page.get_by_role("tab", name="Search").tap()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    context.close()
