"""An empty chain shows how to post its first event, in lines that work as they are copied."""

import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browsing import open_dashboard, post, row
from tests.harness import ROOT, ServerProcess


@pytest.mark.parametrize("way", ["curl", "Python"])
def test_the_lines_that_are_copied_post_the_first_event(
    page: Page, server: ServerProcess, way: str, tmp_path: Path
) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_dashboard(page, server)
    expect(page.locator("#live-none")).to_contain_text("This chain is empty")
    copying = page.get_by_role("button", name=f"Copy the {way} lines")
    copying.click()
    expect(copying).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert server.url in copied
    command = ["bash", "-c", copied] if way == "curl" else [sys.executable, "-c", copied]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, check=True, cwd=tmp_path, env=environ, timeout=60)
    expect(row(page, 1)).to_contain_text("decision_card_drafted")
    expect(page.locator("#live-none")).to_be_hidden()


def test_where_tokens_are_needed_the_lines_have_one(page: Page, server: ServerProcess) -> None:
    page.goto(f"{server.url}/dashboard")
    ways = """async (token) => {
      const { ways } = await import("/dashboard/first.js");
      return Object.values(ways("https://audit.test", { token }));
    }"""
    assert all("AUDIT_STREAM_TOKEN" in text for text in page.evaluate(ways, True))
    assert all("TOKEN" not in text for text in page.evaluate(ways, False))


def test_a_chain_that_has_events_shows_no_first_steps(page: Page, server: ServerProcess) -> None:
    post(server, 1)
    open_dashboard(page, server)
    expect(row(page, 1)).to_be_visible()
    page.locator("#live-kind").select_option("incident_filed")
    expect(page.locator("#live-none")).to_have_text("No event matches these filters.")
