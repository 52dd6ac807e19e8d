"""The live tail: filters, pause, coming back, and what it says of the stream it gets."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.dashboard.browsing import expect_connection, in_its_place, open_dashboard, post, row, rows
from tests.faults.campaign.valkey import Valkey
from tests.faults.proxy import proxy_to
from tests.harness import ServerProcess, running_server
from tests.tamper.stored import Stored


def test_an_event_appears_as_it_is_appended_and_moves_count_and_head(page: Page, server: ServerProcess) -> None:
    open_dashboard(page, server)
    expect(page.locator("#live-none")).to_be_visible()
    receipt = server.post({"kind": "request_denied", "source": "gate", "payload": {"why": "no"}}).json()
    expect(row(page, 1)).to_contain_text("request_denied")
    expect(row(page, 1)).to_contain_text('{"why":"no"}')
    expect(page.locator("#count")).to_have_text("1")
    expect(page.locator("#head")).to_have_text("#1")
    expect(page.locator("#head-hash")).to_have_text(receipt["hash"])


def test_the_newest_event_is_on_top_and_what_was_there_before_is_below(page: Page, server: ServerProcess) -> None:
    post(server, 3)
    open_dashboard(page, server)
    post(server, 1)
    expect(rows(page)).to_have_count(4)
    ids = [line.locator(".id").inner_text() for line in sorted(rows(page).all(), key=top)]
    assert ids == ["#4", "#3", "#2", "#1"]


def top(line: Locator) -> float:
    box = line.bounding_box()
    assert box
    return box["y"]


def test_the_filters_show_what_matches_both_and_still_follow(page: Page, server: ServerProcess) -> None:
    open_dashboard(page, server)
    for kind in ("request_denied", "other"):
        for source in ("a", "b"):
            post(server, 1, kind=kind, source=source)
    expect(rows(page)).to_have_count(4)
    page.locator("#live-kind").select_option("request_denied")
    expect(rows(page)).to_have_count(2)
    page.get_by_label("Source").first.fill("b")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(1)
    expect(row(page, 2)).to_be_visible()
    post(server, 1, kind="request_denied", source="a")
    post(server, 1, kind="request_denied", source="b")
    expect(row(page, 6)).to_be_visible()
    expect(rows(page)).to_have_count(2)
    page.get_by_role("button", name="Clear filters").click()
    expect(rows(page)).to_have_count(6)


def test_a_filter_finds_events_from_before_those_that_the_page_holds(page: Page, server: ServerProcess) -> None:
    post(server, 2, kind="incident_filed")
    post(server, 1200)
    open_dashboard(page, server)
    page.locator("#live-kind").select_option("incident_filed")
    expect(row(page, 1)).to_be_visible()
    expect(rows(page)).to_have_count(2)


def test_paused_the_list_stands_still_and_says_how_many_wait(page: Page, server: ServerProcess) -> None:
    post(server, 2)
    open_dashboard(page, server)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#pause")).to_have_text("Resume · 0 new")
    post(server, 3)
    expect(page.locator("#pause")).to_have_text("Resume · 3 new")
    expect(page.locator("#count")).to_have_text("5")
    expect(rows(page)).to_have_count(2)
    page.get_by_role("button", name="Resume").click()
    expect(rows(page)).to_have_count(5)
    expect(page.locator("#pause")).to_have_text("Pause")


def test_it_says_that_it_reconnects_and_misses_nothing(
    page: Page, server: ServerProcess, redis_url: str, chain: str
) -> None:
    post(server, 2)
    open_dashboard(page, server)
    server.stop()
    expect(page.locator("#connection")).to_have_text("Reconnecting…")
    expect(page.locator("#promise")).to_have_attribute("data-state", "unknown")
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as elsewhere:
        post(elsewhere, 3)
    with in_its_place(server, AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as other:
        expect(page.locator("#connection")).to_contain_text("Live · reconnected")
        post(other, 1)
        expect(row(page, 6)).to_be_visible()
        expect(rows(page)).to_have_count(6)
        expect(page.locator("#alarm")).to_be_hidden()


def test_a_connection_that_dies_without_a_word_is_noticed_and_replaced(page: Page, server: ServerProcess) -> None:
    with proxy_to(server.url.replace("http:", "redis:")) as proxy:
        page.goto(f"{proxy.url.replace('redis:', 'http:').removesuffix('/0')}/dashboard")
        expect_connection(page, "live")
        proxy.hush("all", new=False)
        post(server, 1)
        expect(page.locator("#connection")).to_contain_text("Live · reconnected", timeout=60_000)
        expect(row(page, 1)).to_be_visible()


def test_a_refused_stream_is_asked_for_again_until_it_is_given(page: Page, server: ServerProcess) -> None:
    refusals = iter(range(2))

    def refuse_twice(route: Route) -> None:
        if next(refusals, None) is None:
            route.continue_()
        else:
            route.fulfill(status=503, content_type="application/problem+json", body='{"detail":"Redis is away"}')

    page.route("**/stream?**", refuse_twice)
    page.goto(f"{server.url}/dashboard")
    expect_connection(page, "live")
    post(server, 1)
    expect(row(page, 1)).to_be_visible()


def test_without_a_login_it_says_log_in_and_shows_nothing(page: Page, server: ServerProcess) -> None:
    post(server, 1)
    for path in ("/", "/events?**", "/stats", "/readyz", "/stream?**", "/verify"):
        page.route(f"{server.url}{path}", lambda route: route.fulfill(status=401, body=""))
    page.goto(f"{server.url}/dashboard")
    expect(page.get_by_role("dialog")).to_contain_text("Log in")
    expect_connection(page, "stopped")
    expect(page.locator("#connection")).to_have_text("Log in to follow")
    expect(rows(page)).to_have_count(0)


@pytest.mark.parametrize("change", ["skipped", "relinked"])
def test_a_stream_that_does_not_follow_raises_the_alarm(page: Page, server: ServerProcess, change: str) -> None:
    post(server, 3)
    events = [server.get(f"/events/{event_id}").json() for event_id in (1, 2, 3)]
    sent = [events[0], events[2]] if change == "skipped" else [events[0], events[1] | {"prev_hash": "b" * 64}]
    body = "".join(f"id: {event['event_id']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n" for event in sent)
    page.route("**/events?limit=**", lambda route: route.fulfill(body="", content_type="application/x-ndjson"))
    page.route("**/stats", lambda route: route.fulfill(json=server.get("/stats").json() | {"last_event_id": 0}))
    page.route("**/stream?**", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.goto(f"{server.url}/dashboard")
    expect(page.locator("#alarm")).to_contain_text("does not follow #1 as it was received here. Press Verify.")


def test_of_ten_thousand_events_only_those_in_view_are_in_the_document(page: Page, server: ServerProcess) -> None:
    open_dashboard(page, server)
    post(server, 12_000)
    expect(page.locator("#live-count")).to_have_text("10,000 shown")
    expect(page.locator("#count")).to_have_text("12,000")
    expect(row(page, 12_000)).to_be_visible()
    assert page.locator("#live-list .row").count() < 60
    page.locator("#live-list").press("End")
    expect(row(page, 2_001)).to_be_visible()
    expect(row(page, 2_001)).to_have_attribute("aria-selected", "true")
    expect(row(page, 2_001)).to_have_attribute("aria-posinset", "10000")
    assert page.locator("#live-list .row").count() < 60


def test_who_has_scrolled_down_keeps_seeing_the_same_events(page: Page, server: ServerProcess) -> None:
    post(server, 500)
    open_dashboard(page, server)
    expect(page.locator("#live-count")).to_have_text("500 shown")
    page.locator("#live-list").evaluate("list => list.scrollTop = 3000")
    expect(row(page, 390)).to_be_visible()
    before = top(row(page, 390))
    post(server, 50)
    expect(page.locator("#live-count")).to_have_text("550 shown")
    assert top(row(page, 390)) == before
    pill = page.locator("#newer")
    expect(pill).to_have_text("50 new ↑")
    page.locator("#live-list").evaluate("list => list.scrollTop = 20 * 28")
    expect(pill).to_have_text("20 new ↑")
    pill.click()
    expect(row(page, 550)).to_be_in_viewport()
    expect(pill).to_be_hidden()


def test_the_promise_and_the_replicas_are_what_the_server_says(
    page: Page, server: ServerProcess, redis_url: str, chain: str
) -> None:
    open_dashboard(page, server)
    expect(page.locator("#promise")).to_have_text("fsync · kept")
    expect(page.locator("#replicas")).to_have_text("none promised")
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain}
    with running_server(**settings, AUDIT_STREAM_ACK="fsync,replicas=3") as asking:
        open_dashboard(page, asking)
        expect(page.locator("#promise")).to_have_text("fsync,replicas=3 · not kept")
        expect(page.locator("#replicas")).to_have_text(re.compile(r"\d of 3"))
        expect(page.locator("#why")).to_contain_text("waits for 3 before each 201")


def test_connected_replicas_are_counted_beside_the_promise(page: Page, tmp_path: Path) -> None:
    with (
        Valkey(tmp_path / "primary") as primary,
        Valkey(tmp_path / "replica", replica_of=primary),
        running_server(AUDIT_STREAM_REDIS_URL=primary.url) as server,
    ):
        open_dashboard(page, server)
        expect(page.locator("#replicas")).to_have_text("1 connected, none promised")
        with running_server(AUDIT_STREAM_REDIS_URL=primary.url, AUDIT_STREAM_ACK="fsync,replicas=1") as asking:
            open_dashboard(page, asking)
            expect(page.locator("#replicas")).to_have_text("1 connected, 1 promised")
            expect(page.locator("#promise")).to_have_text("fsync,replicas=1 · kept")


def test_an_event_that_redis_cannot_show_leaves_the_page_usable(
    page: Page, server: ServerProcess, stored: Stored
) -> None:
    post(server, 3)
    stored.change(lambda entries: entries.__setitem__(1, (entries[1][0], [b"surprise", b"1"])))
    open_dashboard(page, server)
    expect(page.locator("#alarm")).to_contain_text("Press Verify")
    page.get_by_role("button", name="Verify").click()
    expect(page.locator("#verdict")).to_contain_text("Broken at #2")
