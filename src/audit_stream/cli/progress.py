"""A bar for work that takes a while, where somebody watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from audit_stream.cli.output import console


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to tell (done, expected). The bar goes to stderr, and away at the end."""
    if not sys.stderr.isatty():
        yield lambda done, expected: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console(stderr=True), transient=True)
    task = bar.add_task(what, total=None)

    def show(done: int, expected: int) -> None:
        bar.start()  # with the first news: what takes no time needs no bar
        bar.update(task, completed=done, total=expected)

    try:
        yield show
    finally:
        bar.stop()
