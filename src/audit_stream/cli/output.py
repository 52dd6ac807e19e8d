"""What is printed: colours and tables for a person, JSON for a program.

A program is whatever reads when standard output is not a terminal. Text that came from producers is
never markup, and nothing in it reaches the terminal as a control character.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from textwrap import wrap
from typing import Any
from zlib import crc32

from rich.console import Console
from rich.table import Table
from rich.text import Text

Event = dict[str, Any]

_PALETTE = ("cyan", "blue", "magenta", "yellow", "bright_cyan", "bright_blue", "bright_magenta", "bright_yellow")
_BAD = ("denied", "failed", "tampered", "incident_filed", "drifted")
_GOOD = ("allowed", "promoted", "signed", "verified")


def wants_json(flag: bool) -> bool:
    return flag or not sys.stdout.isatty()


@contextmanager
def until_reader_leaves() -> Iterator[None]:
    """End quietly when whoever reads our output has seen enough, as `head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered has nowhere to go, and the interpreter would say so at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(*, stderr: bool = False) -> Console:
    # No highlighting: colour means something here.
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def write_lines(lines: Iterable[bytes]) -> None:
    """Write JSON lines, byte for byte as they came, and hand them on at once."""
    write(b"".join(line + b"\n" for line in lines))


def write(data: bytes) -> None:
    """Write to standard output, and hand it on at once."""
    left = memoryview(data)
    while left:  # unbuffered (PYTHONUNBUFFERED), a write may stop short
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()


def tell(message: str) -> None:
    """Say something beside the result."""
    console(stderr=True).print(Text(printable(message, keep="\n"), style="dim"))


def complain(message: str) -> None:
    console(stderr=True).print(Text("audit-stream: ", style="bold red"), Text(printable(message, keep="\n")), sep="")


def printable(text: str, *, keep: str = "") -> str:
    """Escape what a terminal would act on: control characters, and marks that turn the writing direction.

    The end of a line is one of them: in a field of an event it would begin a line that looks like ours. `keep` is for
    messages that are several lines long themselves.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def kind_style(kind: str) -> str:
    if kind.endswith(_BAD):
        return "red"
    if kind.endswith(_GOOD):
        return "green"
    return _PALETTE[crc32(kind.encode()) % len(_PALETTE)]


def facts_table(facts: Iterable[tuple[str, str | Text]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    # A hash is there to be copied: never broken, never cut.
    table.add_column(overflow="ignore", no_wrap=True)
    for name, value in facts:
        table.add_row(name, value if isinstance(value, Text) else Text(printable(value)))
    return table


def print_facts(out: Console, facts: Iterable[tuple[str, str | Text]]) -> None:
    """A fact a line. What is longer than the terminal is wide goes on below, and nothing is cut."""
    told = [(name, value if isinstance(value, Text) else Text(printable(value))) for name, value in facts]
    label = max(len(name) for name, _ in told) + 2
    for name, value in told:
        # A word that is too long, such as a hash, is left to the terminal: so it can still be copied whole.
        lines = wrap(value.plain, max(20, out.width - label), break_long_words=False, break_on_hyphens=False) or [""]
        out.print(Text(name.ljust(label), style="dim"), Text(lines[0], style=value.style), sep="")
        for line in lines[1:]:
            out.print(" " * label, Text(line, style=value.style), sep="")


def spoken(last: Mapping[str, Any] | None) -> tuple[str, float]:
    """What /stats knows as `last_verdict`, in a few words, and how many seconds old it is."""
    from audit_stream.verdicts import summary

    if last is None:
        return "never verified", 0.0
    age_s = (datetime.now(UTC) - datetime.fromisoformat(last["at"])).total_seconds()
    return summary(last["valid"], last["event_id"], last["first_break_at"], age_s), age_s
