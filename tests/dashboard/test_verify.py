"""The Verify button: green, red with the break in its context, or grey."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browsing import expect_connection, in_its_place, open_dashboard, post, shot, verify
from tests.harness import ServerProcess
from tests.tamper.stored import Stored, put

READ = """async (text) => {
  const { readVerdict } = await import("/dashboard/verify.js");
  const progress = [];
  try {
    return [progress, await readVerdict(new Response(text), (...step) => progress.push(step))];
  } catch (error) {
    return [progress, error.message];
  }
}"""


def test_an_intact_chain_is_green_and_names_its_head(page: Page, server: ServerProcess) -> None:
    post(server, 40)
    open_dashboard(page, server)
    verdict = verify(page, "holds")
    expect(verdict).to_contain_text("Intact")
    expect(verdict).to_contain_text("40 events hold up to #40")
    expect(verdict).to_contain_text("Indexes agree")
    expect(page.locator("#verify-progress")).to_be_hidden()


def test_an_empty_chain_is_green(page: Page, server: ServerProcess) -> None:
    open_dashboard(page, server)
    expect(verify(page, "holds")).to_contain_text("0 events hold")


def test_a_changed_event_is_red_and_shown_among_its_neighbours(
    page: Page, server: ServerProcess, stored: Stored
) -> None:
    post(server, 9)
    open_dashboard(page, server)
    stored.change(lambda entries: put(entries[4], b"payload", b'{"n":99}'))
    verdict = verify(page, "broken")
    expect(verdict).to_contain_text("Broken at #5")
    expect(verdict).to_contain_text("hash mismatch at event #5")
    shown = page.locator("#break tbody tr")
    expect(shown).to_have_count(5)
    assert [shown.nth(place).locator("th").inner_text().split()[0] for place in range(5)] == [
        "#3", "#4", "#5", "#6", "#7",
    ]  # fmt: skip
    states = [[check.get_attribute("data-state") for check in line.locator(".check").all()] for line in shown.all()]
    assert states == [["holds", "holds"]] * 2 + [["holds", "broken"]] + [["holds", "holds"]] * 2
    expect(page.locator(".at-break")).to_contain_text("#5")
    shot(page, "broken")
    page.get_by_role("button", name="#5 ◀ break").click()
    expect(page.locator("#detail-title")).to_have_text("Event #5")


def test_an_event_that_is_gone_is_red_and_its_place_is_shown(page: Page, server: ServerProcess, stored: Stored) -> None:
    post(server, 6)
    open_dashboard(page, server)
    stored.delete(4)
    expect(verify(page, "broken")).to_contain_text("event_id should be 4, got 5")
    expect(page.locator(".at-break")).to_contain_text("there is no event #4")


def test_a_chain_that_was_exchanged_for_another_intact_one_is_red(
    page: Page, server: ServerProcess, stored: Stored, redis_url: str, chain: str
) -> None:
    post(server, 3, source="first")
    open_dashboard(page, server)
    server.stop()
    stored.restore({})
    with in_its_place(server, AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as other:
        post(other, 4, source="second")
        assert other.verify()["valid"]
        expect(verify(page, "broken")).to_contain_text("the chain was rewritten")
        expect(page.locator("#alarm, #connection[data-state=stopped]").first).to_be_attached()


def test_a_chain_that_lost_its_end_is_red_and_following_it_stops(
    page: Page, server: ServerProcess, stored: Stored, redis_url: str, chain: str
) -> None:
    post(server, 2)
    backup = stored.dump()
    post(server, 3)
    open_dashboard(page, server)
    server.stop()
    stored.restore(backup)
    with in_its_place(server, AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain):
        expect_connection(page, "stopped")
        expect(page.locator("#connection")).to_contain_text("the cursor #5 is ahead of the chain")
        expect(verify(page, "broken")).to_contain_text("ends at #2, but this page has received #5")


def test_a_server_that_is_away_makes_the_verdict_grey(page: Page, server: ServerProcess) -> None:
    post(server, 3)
    open_dashboard(page, server)
    server.stop()
    verdict = verify(page, "unknown")
    expect(verdict).to_contain_text("Cannot tell")
    expect(verdict).to_contain_text("This says nothing about the chain")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"checked":5,"expected":9}\n{"checked":8,"expected":9}\n{"valid":true}\n',
            [[[5, 9], [8, 9]], {"valid": True}],
        ),
        ('{"valid":false,"reason":"r"}', [[], {"valid": False, "reason": "r"}]),
        ('{"checked":5,"expected":9}\n', [[[5, 9]], "the answer ended without a verdict"]),
        ("", [[], "the answer ended without a verdict"]),
        ('{"title":"t","status":503,"detail":"Redis is away"}\n', [[], "Redis is away"]),
    ],
)
def test_only_a_verdict_is_a_verdict(page: Page, server: ServerProcess, text: str, expected: list[Any]) -> None:
    page.goto(f"{server.url}/dashboard")
    assert page.evaluate(READ, text) == expected
