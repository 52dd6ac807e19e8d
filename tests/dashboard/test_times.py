"""Times: one zone for the whole page, named where it applies; when it happened, and when it was recorded."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.dashboard.browsing import open_dashboard, post, row
from tests.harness import ServerProcess
from tests.tamper.stored import Stored

LONG_AGO = "2025-07-03T22:05:06.123456+00:00"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in Berlin, which is an hour ahead of UTC in winter and two in summer."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, timezone_id="Europe/Berlin")
    yield context.new_page()
    context.close()


def test_one_switch_sets_list_hover_and_detail_and_is_remembered(page: Page, server: ServerProcess) -> None:
    post(server, 1, timestamp=LONG_AGO)
    open_dashboard(page, server)
    head, time = page.locator("#view-live .head .time"), row(page, 1).locator(".time")
    expect(head).to_have_text("Happened, Europe/Berlin")
    expect(time).to_have_text("2025-07-04 00:05:06")
    expect(time).to_have_attribute("title", "2025-07-04 00:05:06.123 UTC+02:00")
    row(page, 1).click()
    expect(page.locator("#happened")).to_have_text("2025-07-04 00:05:06.123 UTC+02:00")
    page.get_by_label("Times in").select_option("UTC")
    expect(head).to_have_text("Happened, UTC")
    expect(time).to_have_text("2025-07-03 22:05:06")
    expect(page.locator("#happened")).to_have_text("2025-07-03 22:05:06.123 UTC")
    page.reload()
    expect(head).to_have_text("Happened, UTC")
    expect(time).to_have_text("2025-07-03 22:05:06")


def test_the_detail_shows_both_times_and_how_far_they_are_apart(page: Page, server: ServerProcess) -> None:
    post(server, 1, timestamp=LONG_AGO)
    post(server, 1)
    post(server, 1, timestamp="2999-01-01T00:00:00Z")
    open_dashboard(page, server)
    page.get_by_label("Times in").select_option("UTC")
    row(page, 1).click()
    detail = page.locator("#detail")
    expect(detail).to_contain_text(f"as its producer says: {LONG_AGO}")
    expect(page.locator("#recorded")).to_have_text(re.compile(rf"^{datetime.now(UTC):%Y}-\S+ \S+ UTC$"))
    expect(detail).to_contain_text(re.compile(r"\d+ days after it happened"))
    row(page, 2).click()
    expect(page.locator("#recorded")).to_have_text(re.compile("UTC$"))
    expect(detail).not_to_contain_text("it happened")
    row(page, 3).click()
    expect(detail).to_contain_text("days before it happened: the two clocks disagree")


def test_a_commit_time_that_the_index_lacks_is_said_to_be_unknown(
    page: Page, server: ServerProcess, stored: Stored
) -> None:
    post(server, 2)
    stored.client.delete(stored.key("time"))
    open_dashboard(page, server)
    row(page, 2).click()
    expect(page.locator("#recorded")).to_have_text("unknown: the index by commit time does not have this event")


def test_a_search_by_time_means_the_zone_that_is_chosen_and_keeps_its_moment(page: Page, server: ServerProcess) -> None:
    post(server, 1)
    open_dashboard(page, server)
    page.get_by_role("tab", name="Search").click()
    expect(page.locator("#search-zone")).to_have_text("Europe/Berlin")
    since = page.get_by_label("Recorded from")
    since.fill("2026-01-10T00:30:00")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for zone, shown in (("Europe/Berlin", "2026-01-10T00:30:00"), ("UTC", "2026-01-09T23:30:00")):
        page.get_by_label("Times in").select_option(label=zone)
        expect(since).to_have_value(re.compile(shown.removesuffix(":00")))
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.locator("#search-count")).to_contain_text("1 found")
    searches = [url for url in asked if "since=" in url]
    assert len(searches) == 2
    assert all("since=2026-01-09T23%3A30%3A00.000Z" in url for url in searches)


def test_what_is_no_date_time_stays_as_it_is(page: Page, server: ServerProcess) -> None:
    page.goto(f"{server.url}/dashboard")
    shown = page.evaluate("""async () => {
      const { inFull, inShort } = await import("/dashboard/times.js");
      return [inFull("2016-12-31T23:59:60Z"), inShort("yesterday")];
    }""")
    assert shown == ["2016-12-31T23:59:60Z", "yesterday"]
