"""Search by kind, source, time and id, in pages; and downloads that an auditor can verify."""

from pathlib import Path

import pytest
from playwright.sync_api import Download, Locator, Page, expect

from audit_stream.chain import parse, verify
from tests.dashboard.browsing import open_dashboard, post, row, rows
from tests.harness import ServerProcess


def open_search(page: Page, server: ServerProcess) -> Locator:
    open_dashboard(page, server)
    page.get_by_role("tab", name="Search").click()
    return page.locator("#search-form")


def search(form: Locator) -> None:
    form.get_by_role("button", name="Search").click()


def ids(page: Page, *, count: int) -> list[int]:
    """The events found, from the top."""
    expect(rows(page, "search")).to_have_count(count)
    found = [(int(row.get_attribute("aria-posinset") or 0), row) for row in rows(page, "search").all()]
    return [int(row.locator(".id").inner_text()[1:]) for _, row in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"Kind": "request_denied"}, [4, 3]),
        ({"Source": "b"}, [4, 2]),
        ({"Kind": "request_denied", "Source": "b"}, [4]),
        ({"Id from": "2", "to": "3"}, [2, 3]),
        ({"to": "2"}, [2, 1]),
        ({"Source": "nobody"}, []),
        ({"Recorded from": "2001-01-01T00:00:00"}, [4, 3, 2, 1]),
        ({"Recorded from": "2100-01-01T00:00:00"}, []),
        ({"until": "2001-01-01T00:00:00"}, []),
    ],
)
def test_a_search_finds_what_matches(
    page: Page, server: ServerProcess, fields: dict[str, str], expected: list[int]
) -> None:
    for kind in ("other", "request_denied"):
        for source in ("a", "b"):
            post(server, 1, kind=kind, source=source)
    form = open_search(page, server)
    for label, text in fields.items():
        if label == "Kind":
            form.get_by_role("combobox", name="Kind").select_option(text)
        else:
            form.get_by_label(label, exact=True).fill(text)
    search(form)
    expect(page.locator("#search-count")).to_contain_text("found")
    assert ids(page, count=len(expected)) == expected


def test_pages_lead_on_and_back(page: Page, server: ServerProcess) -> None:
    post(server, 250)
    form = open_search(page, server)
    search(form)
    count = page.locator("#search-count")
    expect(count).to_have_text("Page 1 · #250 to #151, newest first")
    following, back = page.get_by_role("button", name="Next →"), page.get_by_role("button", name="← Back")
    expect(back).to_be_disabled()
    following.click()
    expect(count).to_have_text("Page 2 · #150 to #51, newest first")
    following.click()
    expect(count).to_have_text("Page 3 · #50 to #1, newest first")
    expect(following).to_be_disabled()
    back.click()
    expect(count).to_have_text("Page 2 · #150 to #51, newest first")
    form.get_by_label("Id from").fill("20")
    search(form)
    expect(count).to_have_text("Page 1 · #20 to #119, oldest first")


def test_what_was_found_opens(page: Page, server: ServerProcess) -> None:
    post(server, 3)
    form = open_search(page, server)
    search(form)
    row(page, 2, "search").click()
    expect(page.locator("#detail-title")).to_have_text("Event #2")


def test_a_search_that_fails_says_why(page: Page, server: ServerProcess) -> None:
    form = open_search(page, server)
    server.stop()
    search(form)
    expect(page.locator("#search-count")).to_have_text("the server cannot be reached")


@pytest.mark.parametrize(
    ("source", "near"),
    [("agent", ["agent-gateway", "agent-runtime"]), ("hr-screning-api", ["hr-screening-api"]), ("zzz", [])],
)
def test_a_source_that_matches_none_is_answered_with_those_that_are_like_it(
    page: Page, server: ServerProcess, source: str, near: list[str]
) -> None:
    names = ("agent-gateway", "agent-runtime", "hr-screening-api")
    server.post_batch([{"kind": "other", "source": name} for name in names]).raise_for_status()
    form = open_search(page, server)
    form.get_by_label("Source").fill(source)
    search(form)
    answer = page.locator("#search-none")
    expect(answer).to_contain_text("A source has to match exactly" if not near else "a source has to match exactly")
    expect(answer).to_contain_text("3 sources that this page has seen")
    expect(answer.get_by_role("button")).to_have_text(near)
    page.get_by_role("tab", name="Live").click()
    page.locator("#live-source").fill(source)
    page.keyboard.press("Enter")
    expect(page.locator("#live-none").get_by_role("button")).to_have_text(near)
    if near:
        page.locator("#live-none").get_by_role("button").first.click()
        expect(row(page, 1 + names.index(near[0]))).to_be_visible()


def events_in(download: Download) -> list[bytes]:
    path = Path(download.path())
    return path.read_bytes().splitlines()


def test_a_download_of_everything_is_the_whole_chain_and_verifies(page: Page, server: ServerProcess) -> None:
    post(server, 10_500)  # more than a page
    open_search(page, server)
    with page.expect_download() as started:
        page.get_by_role("button", name="Download all").click()
    assert started.value.suggested_filename == "events.ndjson"
    verdict = verify(map(parse, events_in(started.value)))
    assert (verdict.valid, verdict.checked) == (True, 10_500)


def test_a_download_of_a_search_holds_what_it_finds(page: Page, server: ServerProcess) -> None:
    post(server, 3, source="a")
    post(server, 2, source="b")
    form = open_search(page, server)
    form.get_by_label("Source").fill("b")
    with page.expect_download() as started:
        page.get_by_role("button", name="Download all").click()
    assert [parse(line).event_id for line in events_in(started.value)] == [4, 5]


def test_a_download_of_the_live_list_holds_its_lines_byte_for_byte(page: Page, server: ServerProcess) -> None:
    server.post(b'{"kind":"other","source":"a","payload":{"f":1.0,"g":1e22}}').raise_for_status()
    post(server, 2, source="b")
    open_dashboard(page, server)
    page.get_by_label("Source").first.fill("a")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(1)
    with page.expect_download() as started:
        page.get_by_role("button", name="Download", exact=True).click()
    assert events_in(started.value) == [server.get("/events/1").content]
