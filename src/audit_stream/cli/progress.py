"""A bar for work that takes a while, where somebody watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from audit_stream.cli.output import console


@contextmanager
def progress(what: str, *, unit: Literal["events", "bytes"] = "events") -> Iterator[Callable[[int, int], None]]:
    """Yield a function to tell (done, expected). The bar goes to stderr, and away at the end."""
    if not sys.stderr.isatty():
        yield lambda done, expected: None
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    bar = Progress(*columns, console=console(stderr=True), transient=True)
    task = bar.add_task(what, total=None)

    def show(done: int, expected: int) -> None:
        bar.start()  # with the first news: what takes no time needs no bar
        bar.update(task, completed=done, total=expected)

    try:
        yield show
    finally:
        bar.stop()
