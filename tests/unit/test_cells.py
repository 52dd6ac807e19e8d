"""No cell of a CSV file is a formula, whichever separator a spreadsheet reads it with."""

import csv
import io
from time import process_time

import pytest

from audit_stream.cli.cells import cell, csv_lines

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "＝1", "＋1", "－1", "＠x", "=cmd|'/c calc'!A0"]
SEPARATORS = [",", ";", "\t", "|"]


def read(data: bytes, separator: str) -> list[str]:
    """Every cell that a spreadsheet with this separator sees, also where an end of a line begins a row."""
    text = data.decode()
    quoted = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    bare = csv.reader(io.StringIO(text.replace('"', ""), newline=""), delimiter=separator)
    return [cell for reader in (quoted, bare) for row in reader for cell in row]


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("before", ["", "x;", "x\t", "x|", ";", "\t", "|", ";;|", "; ", '";"', "x\n", "x\r\n", "\r"])
def test_no_cell_is_a_formula_whatever_stands_before_it(before: str, separator: str) -> None:
    for formula in FORMULAS:
        cells = read(csv_lines([["a", f"{before}{formula}; b"]]), separator)
        assert [text for text in cells if text.lstrip(' \t\r\n"').startswith(tuple("=+-@＝＋－＠"))] == [], formula
        # The apostrophe keeps a cell from being a formula only where it is before the sign.
        assert any("'" + formula[0] in text for text in cells), formula


@pytest.mark.parametrize("text", ["", "plain", "a=b", "a - b; c", "x;y|z", "1;2", "mail@example.org", "ü;\t|"])
def test_a_text_without_a_formula_stays_as_it_is(text: str) -> None:
    assert cell(text) == (f"'{text}" if text[:1] == "\t" else text)
    assert next(csv.reader([csv_lines([[text, 7]]).decode()])) == [text, "7"]


def test_numbers_stay_numbers() -> None:
    assert csv_lines([[-1, 2.5, "-1"]]) == b"-1,2.5,'-1\r\n"


def test_a_long_run_of_separators_takes_no_longer_than_its_length() -> None:
    began = process_time()
    assert cell(";" * 200_000 + "x") == ";" * 200_000 + "x"
    assert process_time() - began < 5
