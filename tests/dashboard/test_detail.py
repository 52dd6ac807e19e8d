"""The detail pane: an event, and the proof that it holds, made in the browser."""

import json
from typing import Any

from playwright.sync_api import Page, expect

from audit_stream.chain import parse
from audit_stream.event import to_json
from tests.dashboard.browsing import OTHER_HOST, checks, expect_checks, open_dashboard, post, row, rows
from tests.harness import ServerProcess, running_server
from tests.tamper.stored import Stored, put

CHECK_ALL = """async (texts) => {
  const { readEvent } = await import("/dashboard/wire.js");
  const { checkHash, preimage } = await import("/dashboard/proof.js");
  const events = texts.map(readEvent);
  return Promise.all(events.map(async (event) => [preimage(event), (await checkHash(event)).state]));
}"""


def as_answered(vector: dict[str, Any]) -> str:
    return to_json(parse(json.dumps({**vector["event"], "hash": vector["hash"]}))).decode()


def test_the_browser_computes_every_hash_of_the_published_reference(
    page: Page, server: ServerProcess, vectors: dict[str, list[dict[str, Any]]]
) -> None:
    page.goto(f"{server.url}/dashboard")
    given = vectors["events"]
    found = page.evaluate(CHECK_ALL, [as_answered(vector) for vector in given])
    assert found == [[vector["canonical"], "holds"] for vector in given]


def test_sources_of_any_characters_hold(page: Page, server: ServerProcess) -> None:
    for source in ("\x7f", "é\u2028", "\U0001f512", 'quo"te\\', "tab\tnew\nline\x00\x1f", "/</"):
        server.post({"kind": "other", "source": source, "payload": {source: source}}).raise_for_status()
    texts = server.get("/events", Accept="application/x-ndjson").text.splitlines()
    page.goto(f"{server.url}/dashboard")
    assert [state for _, state in page.evaluate(CHECK_ALL, texts)] == ["holds"] * 6


def test_a_text_that_differs_in_one_place_does_not_hold(page: Page, server: ServerProcess) -> None:
    server.post({"kind": "other", "source": "s", "payload": {"a": 1.0, "b": "x"}})
    text = server.get("/events/1").text
    changed = [
        text.replace('"a":1.0', '"a":1'),
        text.replace('"x"', '"y"'),
        text.replace('"source":"s"', '"source":"t"'),
        text.replace('"event_id":1', '"event_id":2'),
        text.replace('"a":1.0,"b":"x"}', '"a":1.0,"b":"x"},"more":{}'),
    ]
    page.goto(f"{server.url}/dashboard")
    states = [state for _, state in page.evaluate(CHECK_ALL, [text, *changed])]
    assert states == ["holds"] + ["broken"] * len(changed)


def test_an_event_is_shown_with_its_numbers_as_they_were_hashed(page: Page, server: ServerProcess) -> None:
    payload = b'{"big":123456789012345678901234567890,"one":1.0,"huge":1e22,"caf\xc3\xa9":["\xc3\xa9",[],{}]}'
    server.post(b'{"kind":"request_denied","source":"gate","payload":%b}' % payload).raise_for_status()
    open_dashboard(page, server)
    row(page, 1).click()
    expect_checks(page, "holds", "holds")
    shown = page.locator("pre.payload")
    for part in ('"big": 123456789012345678901234567890', '"one": 1.0', '"huge": 1e+22', '"café": [', '"é"', "[]"):
        expect(shown).to_contain_text(part)
    expect(page.locator("#detail")).to_contain_text("the first event, linked to genesis")


def test_the_link_leads_to_the_event_before_and_on(page: Page, server: ServerProcess) -> None:
    post(server, 3)
    open_dashboard(page, server)
    row(page, 3).click()
    expect(checks(page).nth(1)).to_have_text("the hash of #2: it holds")
    page.get_by_role("button", name="Event before").click()
    expect(page.locator("#detail-title")).to_have_text("Event #2")
    expect_checks(page, "holds", "holds")
    expect(row(page, 2)).to_have_attribute("aria-selected", "true")
    page.get_by_role("button", name="Event after").click()
    expect(page.locator("#detail-title")).to_have_text("Event #3")
    for arrow, name in (("← #2", "Event before, ← #2"), ("#4 →", "Event after, #4 →")):
        # The name of a control holds the text that is seen on it: who speaks to the computer says that.
        expect(page.get_by_role("button", name=name, exact=True)).to_have_text(arrow)


def test_an_event_that_was_changed_in_redis_does_not_hold_and_neither_does_the_next_link(
    page: Page, server: ServerProcess, stored: Stored
) -> None:
    post(server, 3)
    stored.change(lambda entries: put(entries[1], b"payload", b'{"n":99}'))
    open_dashboard(page, server)
    row(page, 2).click()
    expect_checks(page, "broken", "holds")
    stored.change(lambda entries: put(entries[1], b"hash", b"a" * 64))
    row(page, 3).click()
    expect_checks(page, "holds", "broken")
    expect(checks(page).nth(1)).to_contain_text("#2 has the hash " + "a" * 64)


def test_where_the_browser_gives_no_cryptography_the_page_says_that_it_cannot_check(
    page: Page, redis_url: str, chain: str
) -> None:
    settings = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain}
    with running_server(AUDIT_STREAM_HOSTS=OTHER_HOST, **settings) as server:
        post(server, 1)
        page.goto(f"{server.url.replace('127.0.0.1', OTHER_HOST)}/dashboard")
        row(page, 1).click()
        expect_checks(page, "unknown", "holds")
        expect(checks(page).nth(0)).to_have_text("cannot be checked here: open over https or localhost")


MARKUP = "<img src=x onerror=\"window.taken=1\"><script>window.taken=1</script><b id='taken'>"


def test_markup_in_events_stays_text_wherever_it_is_shown(page: Page, server: ServerProcess, stored: Stored) -> None:
    for source in (MARKUP, "</pre></div>" + MARKUP, "plain"):
        server.post({"kind": "other", "source": source, "payload": {MARKUP: [MARKUP]}}).raise_for_status()
    open_dashboard(page, server)
    before = page.locator("body *").count()
    expect(row(page, 1)).to_contain_text(MARKUP)
    row(page, 1).click()
    expect(page.locator("#detail dd").nth(1)).to_have_text(MARKUP)
    expect_checks(page, "holds", "holds")
    stored.change(lambda entries: put(entries[1], b"payload", b'{"n":99}'))
    page.get_by_role("button", name="Verify").click()
    expect(page.locator("#break")).to_contain_text(MARKUP)
    page.get_by_role("tab", name="Search").click()
    page.get_by_role("button", name="Search", exact=True).click()
    expect(rows(page, "search")).to_have_count(3)
    assert page.locator("img, #taken, script:not([src])").count() == 0
    assert page.evaluate("window.taken") is None
    assert page.locator("body *").count() > before  # what was shown is there, as text


def test_the_browser_itself_refuses_to_read_text_as_markup(
    page: Page, server: ServerProcess, complaints: list[str]
) -> None:
    open_dashboard(page, server)
    tried = "try { document.body.innerHTML = '<b>x</b>'; 'taken' } catch (error) { error.name }"
    assert page.evaluate(tried) == "TypeError"
    assert any("TrustedHTML" in complaint for complaint in complaints)
    complaints.clear()


def test_characters_that_hide_or_turn_text_are_spelt_out(page: Page, server: ServerProcess) -> None:
    server.post({"kind": "other", "source": "pay\u202eload", "payload": {"a": "x\u200by\nz"}}).raise_for_status()
    open_dashboard(page, server)
    expect(row(page, 1)).to_contain_text("pay\\u202eload")
    row(page, 1).click()
    expect(page.locator("pre.payload")).to_contain_text(r'"x\u200by\nz"')
    expect_checks(page, "holds", "holds")
