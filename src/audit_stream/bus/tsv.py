"""The tab-separated files of the published bus, hummbl-governance 1.5: `timestamp, from, to, type, message`.

They hold what is left of a message: tabs have become spaces there, ends of lines the two characters \\ and n, and the
fractions of seconds are gone. None of that can be undone, so nothing is guessed: the text is taken as it stands.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from audit_stream.bus.line import OPENING, Draft
from audit_stream.bus.reading import opened, raw_lines
from audit_stream.errors import Misconfigured

COLUMNS = 5


class Row(NamedTuple):
    number: int
    text: bytes
    content: Draft | None
    """None when the row has too few columns, or is not UTF-8."""


def is_tsv(path: str | os.PathLike[str]) -> bool:
    """Whether it is such a file and no bus of ours. Raises OSError."""
    with opened(path) as (file, _):
        first = file.readline(1 << 20)
    return not first.startswith(OPENING) and first.count(b"\t") >= COLUMNS - 1


def refuse_tsv(path: str | os.PathLike[str]) -> None:
    """Raise Misconfigured for such a file, which is read by nothing that needs a chain. A file may be missing."""
    with suppress(FileNotFoundError):
        if is_tsv(path):
            raise Misconfigured(
                f"{os.fspath(path)} is a .tsv file of the published bus, which has no chain; make a bus of it with"
                f" `audit-stream bus convert {os.fspath(path)} OUT`, and use OUT"
            )


def rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """Yield the rows; blank ones are skipped. Raises OSError."""
    for raw in raw_lines(path):
        text = raw.text.removesuffix(b"\r")
        if text.strip():
            yield Row(raw.number, text, _content(text))


def _content(text: bytes) -> Draft | None:
    columns = text.split(b"\t", COLUMNS - 1)
    try:
        return Draft(*[column.decode() for column in columns]) if len(columns) == COLUMNS else None
    except UnicodeDecodeError:
        return None
