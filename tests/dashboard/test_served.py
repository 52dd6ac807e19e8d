"""What the server sends: the page, its files and the headers that bind the browser."""

import re
from pathlib import Path

import pytest

from tests.harness import ROOT, ServerProcess

FOLDER = ROOT / "src/audit_stream/server/dashboard"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".html", ".css", ".js", ".svg"))
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def policy(header: str) -> dict[str, str]:
    return {name: value for name, _, value in (part.strip().partition(" ") for part in header.split(";"))}


def test_a_browser_that_asks_for_the_root_is_sent_to_the_dashboard(server: ServerProcess) -> None:
    answer = server.get("/", Accept=BROWSER)
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
    assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_a_program_that_asks_for_the_root_gets_the_service_info(server: ServerProcess, accept: str) -> None:
    answer = server.get("/", Accept=accept)
    assert answer.json()["name"] == "audit-stream"
    assert answer.headers["vary"] == "Accept"


def test_the_page_may_load_from_its_own_server_only_and_read_no_text_as_markup(server: ServerProcess) -> None:
    answer = server.get("/dashboard")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert policy(answer.headers["content-security-policy"]) == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", [path.name for path in FILES if path.suffix != ".html"])
def test_a_file_is_sent_once_and_then_only_confirmed(server: ServerProcess, name: str) -> None:
    first = server.get(f"/dashboard/{name}")
    assert first.content == (FOLDER / name).read_bytes()
    assert first.headers["cache-control"] == "no-cache"
    assert "content-security-policy" in first.headers
    again = server.get(f"/dashboard/{name}", **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["page.py", "__init__.py", "nothing.js", "..%2Froutes.py", "%2e%2e%2fapp.py"])
def test_nothing_but_the_page_s_files_is_served(server: ServerProcess, name: str) -> None:
    answer = server.get(f"/dashboard/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_every_file_that_the_page_asks_for_is_there() -> None:
    text = "".join(path.read_text() for path in FILES)
    asked = set(re.findall(r'"/dashboard/(\w+\.\w+)"', text)) | set(re.findall(r'from "\./([\w.]+)"', text))
    there = {path.name for path in FILES} - {"index.html"}
    assert asked == there


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_parses_markup_or_code_or_asks_anyone_else(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"(inner|outer|Adjacent|Unsafe)HTML|document\.write|DOMParser|createContextualFragment", text)
    assert not re.search(r"\beval\(|new Function|javascript:", text)
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\son\w+=|\sstyle=|@import|url\(", text), "the policy would keep the browser from it"
