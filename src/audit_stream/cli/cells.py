"""Rows of a CSV file, whose cells no spreadsheet takes for a formula.

OWASP, CSV injection: a cell that begins with one of = + - @ (also in full width), a tab or the end of a line is a
formula to some spreadsheets. Where the list separator is `;`, a tab or `|`, what follows one of these begins a cell as
well, and so does what follows the end of a line. An apostrophe keeps either from being one.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

# One run of white space, quotes and separators is looked at once, however long it is: hence the possessive `*+`.
_SEPARATORS = frozenset(";\t|\r\n")
_BEGINNING = re.compile(r"""(^|[;\t|\r\n])([\s"';|]*+)([=+\-@＝＋－＠]?)""")


def csv_lines(rows: Iterable[Sequence[object]]) -> bytes:
    """Return the rows as CSV; every text in them is made harmless, numbers stay."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([cell(value) if isinstance(value, str) else value for value in row] for row in rows)
    return text.getvalue().encode()


def cell(text: str) -> str:
    """Return the text with an apostrophe before each place that a spreadsheet could take for a formula."""
    text = _BEGINNING.sub(_guarded, text)
    return f"'{text}" if text[:1] in ("\t", "\r", "\n") else text


def _guarded(match: re.Match[str]) -> str:
    separator, run, sign = match.groups()
    if not sign:
        return match.group()
    if separator or not _SEPARATORS.isdisjoint(run):
        return f"{separator}{run}'{sign}"  # after the last separator: what is before it is another cell
    return f"'{run}{sign}"
