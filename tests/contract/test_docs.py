"""The documents lead where they say, and the pages for operators name what exists."""

import re
import tomllib
from pathlib import Path

import pytest

from audit_stream import __version__
from audit_stream.settings import VARIABLES
from benchmarks import failover, sizing
from tests.harness import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPERATORS = ROOT / "docs/operators"
MEASURED = re.findall(r'Row\(\s*"(.*?)"', Path(sizing.__file__).read_text())
"""The names of the rows, in their order."""


def prose(page: Path) -> str:
    """Without code blocks, in which brackets are code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return re.sub(r"^    .*$", "", text, flags=re.M)


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Of its headings, as they are made on the usual hosts of git repositories."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page: Path) -> list[list[str]]:
    rows = re.findall(r"^\| (.*)\|$", page.read_text(), flags=re.M)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_documents_leads_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_index_for_operators_names_every_page() -> None:
    named = {(OPERATORS / target).resolve() for target in links(OPERATORS / "index.md")}
    assert {page for page in OPERATORS.glob("*.md") if page.name != "index.md"} <= named
    assert "docs/operators/index.md" in links(ROOT / "README.md")


@pytest.mark.parametrize("page", sorted(OPERATORS.glob("*.md")), ids=lambda page: page.name)
def test_files_and_modules_that_operators_are_sent_to_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"`((?:deploy|docs)/[\w./-]+|docker-compose\.yml)`", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"`python -m (benchmarks\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_the_table_of_sizes_has_the_rows_that_are_measured() -> None:
    page = [cells[0] for cells in table(OPERATORS / "sizing.md")]
    assert page[1 : 1 + len(MEASURED)] == MEASURED


def test_the_table_of_sizes_grows_as_it_says() -> None:
    ((_, *events), *rows) = table(OPERATORS / "sizing.md")[: 1 + len(MEASURED)]
    assert [int(count.replace(",", "")) for count in events] == [10**6, 10**7, 10**8]
    for name, first, *further in rows:
        value, unit = _read(first)
        for factor, cell in zip((10, 100), further, strict=True):
            grown, of_grown = _read(cell)
            assert of_grown == unit
            assert cell == first or grown == pytest.approx(value * factor, rel=0.1), (name, cell)


def _read(cell: str) -> tuple[float, str]:
    """In bytes or seconds."""
    units = {"bytes": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
    number, unit = cell.split()
    return float(number.replace(",", "")) * units[unit], "bytes" if unit[-1] in "Bb" or unit == "bytes" else "seconds"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (318_400_000, "bytes", "320 MB"),
        (4_243, "bytes", "4.2 KB"),
        (744, "bytes", "744 bytes"),
        (0.0062, "seconds", "6.2 ms"),
        (83.4, "seconds", "83 s"),
        (144, "seconds", "2.4 min"),
        (14_040, "seconds", "3.9 h"),
    ],
)
def test_sizes_are_shown_in_the_unit_a_person_would_choose(value: float, unit: str, text: str) -> None:
    assert sizing.shown(value, unit) == text


def test_the_readme_s_limits_are_the_measured_ones() -> None:
    memory = next(cells for cells in table(OPERATORS / "sizing.md") if cells[0].startswith("memory of Redis"))
    limits = (ROOT / "README.md").read_text().partition("\n## Limits\n")[2]
    assert [size for size in memory[1:] if size not in limits] == []


def test_the_table_of_failovers_has_every_fault_and_every_set_up() -> None:
    text = (OPERATORS / "durability.md").read_text().partition("\n## Measured\n")[2]
    for name in [*failover.FAULTS, *(setup.name for setup in failover.SETUPS)]:
        assert f"| {name}" in text, name


def test_the_changelog_ends_where_the_package_is() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## \[(.*?)\]", text, flags=re.M)
    assert releases[0] in ("Unreleased", __version__)
    assert __version__ in releases
    assert set(re.findall(r"^### (\w+)", text, flags=re.M)) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert "CHANGELOG.md" in project["sdist"]["include"]


def test_settings_that_operators_are_told_of_exist() -> None:
    for page in OPERATORS.glob("*.md"):
        named = set(re.findall(r"\bAUDIT_STREAM_[A-Z_]+\b", page.read_text()))
        assert named <= set(VARIABLES) | {"AUDIT_STREAM_URL", "AUDIT_STREAM_TOKEN"}, page.name


def test_no_line_installs_the_predecessor() -> None:
    """The package index has audit-stream 0.1.0 by this name: only a checkout or a wheel of ours may be installed."""
    files = [*PAGES, *(ROOT / "src").rglob("*.py"), *(ROOT / "deploy").rglob("*"), *(ROOT / "examples").rglob("*")]
    files += [
        ROOT / name for name in ("CONTRIBUTING.md", "Makefile", "Dockerfile", "docker-compose.yml", "pyproject.toml")
    ]
    stranger = re.compile(
        r"""\b(?:pip|pipx|uv)\b[^\n`]*?\b(?:install|add|run)\s[^\n`]*?(?<![\w./-])audit-stream(?![\w/-])"""
    )
    assert stranger.search("    pip install -q 'audit-stream[otel]'")
    found = [
        f"{file.relative_to(ROOT)}: {match.group()}"
        for file in files
        if file.is_file() and file.suffix not in (".png", ".svg")
        for match in stranger.finditer(re.sub(r"(?:#|in a checkout).*$", "", file.read_text(), flags=re.M))
    ]
    assert found == []
