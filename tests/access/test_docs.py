"""docs/access.md and the README say what the code does."""

import re
import shlex
from pathlib import Path

import pytest

from audit_stream.access.entry import SCOPES, Entry, parse_entries, read_entries
from audit_stream.cli import root
from audit_stream.server.routes import ENDPOINTS
from audit_stream.settings import VARIABLES
from tests.harness import ROOT

DOCS = (ROOT / "docs/access.md").read_text()
README = (ROOT / "README.md").read_text()
ACCESS = README.partition("\n## Access\n")[2].partition("\n## ")[0]


def test_the_token_file_that_is_shown_is_one() -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", DOCS, flags=re.DOTALL)
    assert [entry.name for entry in parse_entries(shown.encode(), "docs")] == ["procurement", "auditor"]


def test_every_key_of_an_entry_is_explained() -> None:
    table = DOCS.partition("| key | |")[2].partition("\n\n")[0]
    keys = [
        key for row in table.splitlines() for key in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    ]
    assert keys == list(Entry.__struct_fields__)


def test_every_setting_that_is_named_exists() -> None:
    assert set(re.findall(r"\bAUDIT_STREAM_[A-Z_]+\b", DOCS)) <= set(VARIABLES)


def test_each_scope_is_in_the_readme_with_endpoints_that_exist() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", ACCESS, flags=re.MULTILINE)
    assert tuple(name for name, _ in rows) == SCOPES
    named = {endpoint for _, allows in rows for endpoint in re.findall(r"`((?:GET|POST) [^`]+)`", allows)}
    assert named - {"GET /metrics"} <= set(ENDPOINTS)
    assert {endpoint for endpoint in ENDPOINTS if "/events" in endpoint} <= named


def test_the_commands_that_are_shown_make_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    audit-stream (token new .*)$", ACCESS, flags=re.MULTILINE)
    for command in commands:
        root.main(shlex.split(command), standalone_mode=False)
    made = read_entries(tmp_path / "tokens.toml")
    assert [(entry.name, entry.scopes, entry.sources) for entry in made] == [
        ("procurement", ("append",), ("procurement-decision-api",)),
        ("auditor", ("read",), None),
    ]
