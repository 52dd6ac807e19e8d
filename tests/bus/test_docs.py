"""docs/bus.md and docs/bus-format.md say what the code does, and the example runs."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

from audit_stream.bus import BusWriter
from audit_stream.bus.keys import KEY, KEY_FILE
from audit_stream.bus.line import BEGUN, CONTINUED, TORN, parse
from audit_stream.bus.writer import MAX_ID_LENGTH, MAX_MESSAGE_BYTES, MAX_MESSAGE_FIELDS
from audit_stream.cli import root
from audit_stream.cli.bus import bus
from tests.harness import ROOT, clean_environ

PAGE = (ROOT / "docs" / "bus.md").read_text()
FORMAT = (ROOT / "docs" / "bus-format.md").read_text()
VECTORS = json.loads((ROOT / "tests" / "vectors" / "bus.json").read_text())


def section(text: str, title: str) -> str:
    return re.split(r"^##+ ", text.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.M)[0]


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    command = [sys.executable, "-W", "error", "-c", example]
    shown = subprocess.run(
        command, cwd=tmp_path, env=clean_environ(), capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[1:3] for line in shown.splitlines()] == [
        ["agent-claude-1", "STATUS"],
        ["agent-claude-1", "LOG"],
    ]


def test_the_page_names_every_command_argument_and_limit() -> None:
    commands = re.findall(r"^\| `audit-stream bus (\w+)", section(PAGE, "Commands"), flags=re.M)
    assert commands == list(bus.commands)
    arguments = re.findall(r"^\| `(\w+)` \|", section(PAGE, "Writing"), flags=re.M)
    assert arguments == list(inspect.signature(BusWriter.__init__).parameters)[1:]
    assert f"{MAX_MESSAGE_BYTES >> 10} KiB (the message) or {MAX_ID_LENGTH} characters" in PAGE
    assert f"more than {MAX_MESSAGE_FIELDS} fields" in PAGE
    assert {KEY, KEY_FILE} == set(re.findall(r"AUDIT_STREAM_\w+", PAGE))


def test_every_flag_that_the_page_names_exists() -> None:
    flags = {flag for command in [*bus.commands.values(), root.commands["evidence"], root.commands["export"]]
             for parameter in command.params for flag in parameter.opts}  # fmt: skip
    assert set(re.findall(r"(?<![\w-])--[a-z]+", PAGE)) <= flags | {"--row"}  # of the benchmarks


def test_the_format_page_names_the_fields_in_their_order_and_the_log_s_own_types() -> None:
    fields = re.findall(r"^\| `(\w+)` \|", FORMAT.partition("## One form")[0], flags=re.M)
    (signed,) = [line["line"] for line in VECTORS["lines"] if line["name"] == "signed"]
    assert fields == list(json.loads(signed))
    assert re.findall(r"^\| `(bus\.\w+)` \|", FORMAT, flags=re.M) == [CONTINUED, TORN, BEGUN]
    first = VECTORS["lines"][0]["line"]
    hashes = re.findall(r"[0-9a-f]{64}", first)
    for hash_ in hashes:
        first = first.replace(hash_, f"{hash_[:4]}…{hash_[-4:]}")
    assert first in FORMAT


def test_the_characters_that_the_format_page_names_are_those_that_are_hidden() -> None:
    text = " ".join(FORMAT.split()).partition("show it elsewhere: ")[2].partition(". Every other")[0]
    named = set(range(0x20))
    for first, last in re.findall(r"U\+([0-9A-F]{4})(?: to U\+([0-9A-F]{4}))?", text.partition("U+0020, ")[2]):
        named |= set(range(int(first, 16), int(last or first, 16) + 1))
    plain = VECTORS["lines"][0]["line"]
    # Where it begins to be hidden and where it ends, and all of the first page.
    edges = {code for code in range(1, 0xFFFF) if (code in named) != (code - 1 in named)}
    for code in sorted({*range(0x20, 0x100), *edges, *(edge - 1 for edge in edges), 0xFFFE, 0xFFFF}):
        # In the one form or the other, but never in both.
        raw, escaped = (plain.replace("Starting task", found) for found in (chr(code), f"\\u{code:04x}"))
        if chr(code) not in '"\\':
            assert _is_line(escaped) == (code in named and code not in (8, 9, 10, 12, 13)), hex(code)
            assert _is_line(raw) == (code not in named), hex(code)


def _is_line(text: str) -> bool:
    try:
        parse(text.encode())
    except ValueError:
        return False
    return True
