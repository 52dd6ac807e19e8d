"""The table of `make mutants` is about the code and the tests as they are, and so is the page about the tests."""

import ast
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.mutants import Mutant, load
from tests.mutants.__main__ import applied

MUTANTS = load()
PAGE = (ROOT / "tests" / "README.md").read_text()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_exactly_once_to_the_code_as_it_is(mutant: Mutant) -> None:
    before = (ROOT / mutant.file).read_text()
    after = mutant.applied_to(before)
    assert after != before
    if mutant.file.endswith(".py"):
        assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_of_a_mutant_exist(mutant: Mutant) -> None:
    assert mutant.tests
    for test in mutant.tests:
        path, _, name = test.partition("::")
        text = (ROOT / path).read_text()
        assert not name or re.search(rf"^(async )?def {re.escape(name)}\(", text, flags=re.M), test


def test_no_two_mutants_have_one_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_text_that_occurs_twice_or_never_is_refused_with_the_name_of_the_mutant() -> None:
    mutant = MUTANTS[0]
    for text in ("", 2 * mutant.old):
        with pytest.raises(ValueError, match=re.escape(mutant.name)):
            mutant.applied_to(text)


def test_a_change_is_taken_back_and_each_state_of_the_file_has_a_time_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text("one = 1\n")
    os.utime(path, (1, 1))  # as in a copy: older than the driver
    times = [path.stat().st_mtime_ns]
    with applied(replace(MUTANTS[0], file="code.py", old="1", new="2"), tmp_path):
        assert path.read_text() == "one = 2\n"
        times.append(path.stat().st_mtime_ns)
    assert path.read_text() == "one = 1\n"
    times.append(path.stat().st_mtime_ns)
    assert len({time // 10**9 for time in times}) == 3


def test_the_page_about_the_tests_has_a_line_for_each_folder_and_names_targets_that_exist() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("*.*"))}
    shown = re.findall(r"^\| `(\w+)/` \|", PAGE, flags=re.M)
    assert sorted(shown) == sorted(folders - {"__pycache__"})
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`make ([\w-]+)", PAGE)) <= targets
