"""The last verdict on the page, and whether the chain is the one that it has followed."""

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browsing import expect_connection, in_its_place, open_dashboard, post, row, shot, verify
from tests.harness import ServerProcess, running_server
from tests.tamper.stored import Stored, link, put

BROKEN = re.compile("^⚠ BROKEN – audit-stream$")


def break_at(stored: Stored, event_id: int) -> None:
    stored.change(lambda entries: put(entries[event_id - 1], b"payload", b'{"n":99}'))


def test_what_a_verify_run_finds_is_shown_at_once_in_tile_banner_title_row_and_detail(
    page: Page, server: ServerProcess, stored: Stored
) -> None:
    post(server, 9)
    open_dashboard(page, server)
    expect(page.locator("#held")).to_have_text("never verified")
    expect(page.locator("#broken")).to_be_hidden()
    verify(page, "holds")
    expect(page.locator("#held")).to_have_text("intact up to #9, just now")
    break_at(stored, 5)
    verify(page, "broken")
    expect(page.locator("#held")).to_have_text("BROKEN at #5")
    expect(page.locator("#broken")).to_contain_text("The chain is BROKEN at #5. hash mismatch at event #5.")
    expect(page).to_have_title(BROKEN)
    expect(page.locator(".row.broken")).to_have_count(1)
    expect(row(page, 5)).to_have_class(re.compile("broken"))
    row(page, 5).click()
    expect(page.locator("#detail-break")).to_contain_text("The chain breaks at this event: hash mismatch at event #5.")
    page.get_by_role("button", name="Event after").click()
    expect(page.locator("#detail-title")).to_have_text("Event #6")
    expect(page.locator("#detail-break")).to_be_hidden()


def test_a_break_that_is_known_is_shown_on_opening_and_stays_until_a_whole_walk_holds(
    page: Page, server: ServerProcess, stored: Stored
) -> None:
    post(server, 9)
    break_at(stored, 5)
    server.verify()
    open_dashboard(page, server)
    banner = page.locator("#broken")
    expect(banner).to_be_visible()
    expect(page).to_have_title(BROKEN)
    page.get_by_role("button", name="Show the break").click()
    expect(page.locator(".at-break")).to_contain_text("#5")
    page.get_by_role("button", name="Fold the banner").first.click()
    expect(page.locator("#broken-text")).to_be_hidden()
    expect(banner).to_contain_text("The chain is BROKEN at #5")
    page.reload()
    expect(page.locator("#broken-text")).to_be_visible()
    page.get_by_role("tab", name="Search").click()
    page.locator("#search-form").get_by_role("button", name="Search").click()
    expect(row(page, 5, "search")).to_have_class(re.compile("broken"))
    stored.change(lambda entries: put(entries[4], b"payload", b'{"n":4}'))
    verify(page, "holds")
    expect(banner).to_be_hidden()
    expect(page).to_have_title("audit-stream")
    expect(page.locator("#held")).to_have_text("intact up to #9, just now")
    expect(page.locator(".row.broken")).to_have_count(0)


@pytest.mark.parametrize(
    ("last", "text", "state"),
    [
        (None, "never verified", "unknown"),
        ({"valid": True, "event_id": 4121}, "intact up to #4,121, 3 min ago", "holds"),
        ({"valid": True, "event_id": 0}, "intact while empty, 3 min ago", "holds"),
        ({"valid": None, "event_id": 4121}, "could not be checked; intact up to #4,121, 3 min ago", "unknown"),
        ({"valid": False, "event_id": 1499, "first_break_at": 1500, "reason": "r"}, "BROKEN at #1500", "broken"),
    ],
)
def test_the_tile_says_what_was_last_found_and_when(
    page: Page, server: ServerProcess, last: dict[str, Any] | None, text: str, state: str
) -> None:
    page.goto(f"{server.url}/dashboard")
    shown = """async (last) => {
      const { Chain } = await import("/dashboard/chain.js");
      const at = new Date(Date.now() - 185_000).toISOString();
      const chain = new Chain({ onBreak() {}, show() {} });
      chain.told(last && { first_break_at: null, reason: null, at, ...last });
      const tile = document.getElementById("held");
      return [tile.textContent, tile.dataset.state];
    }"""
    assert page.evaluate(shown, last) == [text, state]


def test_a_head_that_cannot_be_read_hides_no_break(page: Page, server: ServerProcess, stored: Stored) -> None:
    post(server, 3)
    stored.change(lambda entries: entries.__setitem__(2, (entries[2][0], [b"surprise", b"1"])))
    server.verify()
    page.goto(f"{server.url}/dashboard")
    expect(page.locator("#held")).to_have_text("BROKEN at #3")
    expect(page).to_have_title(BROKEN)


def test_while_the_server_is_away_the_page_says_since_when_and_greys_what_is_of_before(
    page: Page, server: ServerProcess, redis_url: str, chain: str
) -> None:
    post(server, 3)
    open_dashboard(page, server)
    expect(page.locator("#away")).to_be_hidden()
    server.stop()
    expect(page.locator("#away")).to_have_text(
        re.compile(r"^Not connected since \d\d:\d\d:\d\d, showing what was received until then\.$")
    )
    expect(page.locator("body")).to_have_class(re.compile("away"))
    expect(page.locator("#axis-end")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))  # the chart stands still
    assert page.locator("#rate").evaluate("rate => getComputedStyle(rate).opacity") < "1"
    shot(page, "away")
    with in_its_place(server, AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain):
        expect_connection(page, "live")
        expect(page.locator("#away")).to_be_hidden()
        expect(page.locator("body")).not_to_have_class(re.compile("away"))
        expect(page.locator("#other")).to_be_hidden()


@pytest.mark.parametrize(("kept", "more"), [(3, 0), (3, 4), (5, 0)], ids=["shorter", "longer", "as long"])
def test_a_chain_whose_end_was_cut_and_written_anew_is_not_followed(
    page: Page, server: ServerProcess, stored: Stored, redis_url: str, chain: str, kept: int, more: int
) -> None:
    post(server, 5)
    open_dashboard(page, server)
    expect(row(page, 5)).to_be_visible()
    was = server.get("/events/5").json()["hash"]
    server.stop()

    def rewrite(entries: list[Any]) -> None:
        del entries[kept:]
        put(entries[2], b"payload", b'{"n":"another"}')
        link(entries, 2)

    stored.change(rewrite)
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain}
    if more:
        with running_server(**settings) as elsewhere:
            post(elsewhere, more)
    with in_its_place(server, **settings) as other:
        length = kept + more
        expect(page.locator("#other")).to_contain_text("This is not the chain that the page has followed")
        now = other.get("/events/5").json()["hash"] if length >= 5 else None
        expect(page.locator("#other-text")).to_contain_text(
            f"Event #5 was {was}, and is {now}" if now else f"Event #5 was {was}, and does not exist any more"
        )
        expect_connection(page, "stopped")
        # Nothing of the other chain is mixed into the list.
        expect(row(page, 6)).to_have_count(0)
        page.get_by_role("button", name="Reload").click()
        expect_connection(page, "live")
        expect(row(page, length)).to_be_visible()
        expect(page.locator("#other")).to_be_hidden()


def test_a_chain_that_is_exchanged_under_a_server_that_stays_is_noticed(
    page: Page, server: ServerProcess, stored: Stored
) -> None:
    post(server, 5)
    open_dashboard(page, server)

    def rewrite(entries: list[Any]) -> None:
        put(entries[2], b"payload", b'{"n":"another"}')
        link(entries, 2)

    stored.change(rewrite)
    expect(page.locator("#other")).to_contain_text("Event #5 was")
    expect_connection(page, "stopped")
