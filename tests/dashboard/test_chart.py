"""The chart: it counts by the time of the commit, and where it has not counted it shows no silence."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from playwright.sync_api import Page, Route, expect

from tests.dashboard.browsing import expect_connection, in_its_place, open_dashboard, post, row
from tests.harness import ServerProcess, running_server

CHART = """async ({ loads, now, early }) => {
  const { Chart } = await import("/dashboard/chart.js");
  Date.now = () => now;
  const chart = new Chart({ recoloured() {}, stalled() {} });
  const count = (list) => list.map(([id, committed]) => ({ id, kind: "other", committed: committed ?? NaN }));
  for (const [events, options] of loads) {
    chart.load(count(events), options);
    if (early.length) chart.stop();
    for (const id of early.splice(0)) chart.add({ id, kind: "other" });
  }
  const uncounted = document.getElementById("uncounted");
  const text = (id) => document.getElementById(id).textContent;
  return {
    label: document.getElementById("chart").getAttribute("aria-label"),
    rate: text("rate"),
    uncounted: uncounted.hidden ? 0 : Math.round(parseFloat(uncounted.style.width)),
    bars: document.querySelectorAll("#chart rect").length,
  };
}"""
NOW = 1_800_000_000_000  # the start of a bar


def chart(page: Page, *loads: tuple[list[list[int | None]], dict[str, Any]], early: tuple[int, ...] = ()) -> Any:
    """What a chart shows of these loads, the tail being stopped, so that nothing else is counted."""
    return page.evaluate(CHART, {"loads": loads, "now": NOW, "early": list(early)})


def opened(page: Page, server: ServerProcess) -> None:
    page.route("**/dashboard/main.js", lambda route: route.fulfill(body="", content_type="text/javascript"))
    page.goto(f"{server.url}/dashboard")


def test_it_says_from_when_on_it_counts_and_hatches_what_was_before(page: Page, server: ServerProcess) -> None:
    opened(page, server)
    events: list[list[int | None]] = [[id_, NOW - 150_000 + 1_000 * id_] for id_ in range(1, 101)]
    shown = chart(page, (events, {"whole": False}))
    assert re.match(r"100 events since \d\d:\d\d:\d\d; what was recorded before is not counted", shown["label"])
    assert 49 <= shown["uncounted"] <= 53
    assert chart(page, (events, {"whole": True})) | {"rate": ""} == {
        "label": "100 events in the last 5 minutes", "rate": "", "uncounted": 0, "bars": 21,
    }  # fmt: skip


def test_events_whose_commit_time_is_unknown_leave_the_time_before_the_next_uncounted(
    page: Page, server: ServerProcess
) -> None:
    opened(page, server)
    events: list[list[int | None]] = [[1, NOW - 200_000], [2, None], [3, NOW - 100_000], [4, NOW - 50_000]]
    shown = chart(page, (events, {"whole": True}))
    assert shown["label"].startswith("2 events since")
    assert shown["bars"] == 2


def test_the_rate_is_taken_over_what_is_counted(page: Page, server: ServerProcess) -> None:
    opened(page, server)
    events: list[list[int | None]] = [[id_, NOW - 4_000] for id_ in range(1, 401)]
    assert chart(page, (events, {"whole": False}))["rate"] == "100 /s"


def test_what_was_missed_is_counted_once_and_at_its_time(page: Page, server: ServerProcess) -> None:
    opened(page, server)
    before: list[list[int | None]] = [[1, NOW - 200_000]]
    missed: list[list[int | None]] = [[2, NOW - 100_000], [3, NOW - 60_000]]
    shown = chart(page, (before, {"whole": True}), (missed, {"goesOn": True}), (missed, {"goesOn": True}), early=(3, 4))
    assert shown["label"] == "4 events in the last 5 minutes"
    assert shown["bars"] == 4


def test_it_counts_by_kind_as_events_come_in(page: Page, server: ServerProcess) -> None:
    open_dashboard(page, server)
    long_ago = (datetime.now(UTC) - timedelta(minutes=3)).isoformat()
    post(server, 7, kind="request_allowed", timestamp=long_ago)  # it happened then, and is recorded now
    post(server, 2, kind="request_denied")
    legend = page.locator("#legend li")
    expect(legend.first).to_have_text("request_allowed7")
    expect(legend.nth(1)).to_have_text("request_denied2")
    expect(page.locator("#chart")).to_have_attribute("aria-label", "9 events in the last 5 minutes")
    expect(page.locator("#uncounted")).to_be_hidden()


def test_of_a_chain_that_is_longer_than_what_is_read_it_says_since_when(page: Page, server: ServerProcess) -> None:
    post(server, 1100)
    open_dashboard(page, server)
    expect(page.locator("#span")).to_have_text(re.compile(r"^since \d\d:\d\d:\d\d$"))
    expect(page.locator("#uncounted")).to_be_visible()
    expect(page.locator("#chart")).to_have_attribute("aria-label", re.compile(r"^1,000 events since"))


def test_what_came_while_it_was_not_connected_is_counted(
    page: Page, server: ServerProcess, redis_url: str, chain: str
) -> None:
    post(server, 2)
    open_dashboard(page, server)
    server.stop()
    expect_connection(page, "reconnecting")
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain}
    with running_server(**settings) as elsewhere:
        post(elsewhere, 3)
    with in_its_place(server, **settings):
        expect(row(page, 5)).to_be_visible()
        expect(page.locator("#chart")).to_have_attribute("aria-label", "5 events in the last 5 minutes")
        expect(page.locator("#axis-end")).to_have_text("now")


def test_the_first_events_of_an_empty_page_have_the_colours_of_the_legend(page: Page, server: ServerProcess) -> None:
    open_dashboard(page, server)
    # Before the chart's next turn: the colour does not wait for it.
    page.evaluate("window.setInterval = () => 0; for (let id = 1; id < 1000; id += 1) clearInterval(id)")
    post(server, 1, kind="request_denied")
    post(server, 1, kind="request_allowed")
    dots = [row(page, id_).locator(".kind") for id_ in (1, 2)]
    for dot in dots:
        expect(dot).to_have_attribute("data-slot", re.compile(r"\d"))
    assert dots[0].get_attribute("data-slot") != dots[1].get_attribute("data-slot")


def test_a_seventh_kind_that_leads_takes_a_colour_over_in_the_list_too(page: Page, server: ServerProcess) -> None:
    kinds = server.get("/").json()["kinds"][:7]
    server.post_batch([{"kind": kind, "source": "s"} for kind in kinds]).raise_for_status()
    open_dashboard(page, server)
    for kind in kinds[1:]:
        post(server, 2, kind=kind)
    expect(row(page, 1).locator(".kind")).to_have_attribute("data-slot", "rest")
    expect(row(page, 19).locator(".kind")).to_have_attribute("data-slot", re.compile(r"\d"))


def test_a_clock_that_is_wrong_here_moves_no_bar(page: Page, server: ServerProcess) -> None:
    post(server, 3)

    def ten_minutes_ahead(route: Route) -> None:
        answer = route.fetch()
        ahead = datetime.now(UTC) + timedelta(minutes=10)
        events = [json.loads(line) for line in answer.text().splitlines()]
        committed = ahead.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        body = "".join(
            json.dumps(event | {"committed_at": committed}, separators=(",", ":")) + "\n" for event in events
        )
        date = ahead.strftime("%a, %d %b %Y %H:%M:%S GMT")
        route.fulfill(body=body, headers={"content-type": "application/x-ndjson", "date": date})

    page.route("**/events?limit=**", ten_minutes_ahead)
    open_dashboard(page, server)
    expect(page.locator("#chart")).to_have_attribute("aria-label", "3 events in the last 5 minutes")
