"""`python -m tests.mutants`: change the code in one place at a time, and see whether the tests notice.

Works on a copy of the checkout. A mutant is killed when its tests fail, and survives when they pass.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.mutants import Mutant, load

ROOT = Path(__file__).parents[2]
PYTEST = ("-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider")
CLEANING_UP_S = 20
RESULTS = ("killed", "survived", "timed out")
PASSED, FAILED = 0, 1
# Python takes a compiled file for current when the seconds of its source's time and its size are the same.
_times = itertools.count(int(time.time()) + 1)


class NoResult(Exception):
    """The tests say nothing about the mutants."""


def main() -> int:
    options = _options()
    mutants = chosen(load(), options)
    if options.list:
        print(*(f"{mutant.area:9} {mutant.name}  ({mutant.file})" for mutant in mutants), sep="\n")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="audit-stream-mutants-", ignore_cleanup_errors=True) as folder:
            return measure(mutants, Path(folder), options)
    except KeyboardInterrupt:
        print("stopped; nothing is left behind")
        return 130
    except (NoResult, ValueError) as error:
        print(error)
        return 2


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--sample", type=int, help="how many mutants, default: all")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this mutant; may be repeated")
    parser.add_argument("--list", action="store_true", help="name them and end")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for the tests of one mutant")
    return parser.parse_args()


def chosen(mutants: list[Mutant], options: argparse.Namespace) -> list[Mutant]:
    """Return the mutants asked for, in the order of the table."""
    if unknown := set(options.only) - {mutant.name for mutant in mutants}:
        sys.exit(f"--only: there is no mutant {unknown.pop()!r}; --list names them")
    wanted = [mutant for mutant in mutants if not options.only or mutant.name in options.only]
    count = len(wanted) if options.sample is None else min(options.sample, len(wanted))
    sample = set(random.Random(options.seed).sample(range(len(wanted)), count))
    return [mutant for place, mutant in enumerate(wanted) if place in sample]


def measure(mutants: Sequence[Mutant], folder: Path, options: argparse.Namespace) -> int:
    begun = time.monotonic()
    copy = copied(folder / "checkout")
    for mutant in mutants:
        mutant.applied_to((copy / mutant.file).read_text())  # an error of the table is known before the first run
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    print(f"seed {options.seed}, {len(mutants)} mutants; their {len(tests)} tests without any first", flush=True)
    status, output = run_tests(copy, tests, limit_s=options.limit * len(tests))
    if status != PASSED:
        raise NoResult(f"{output}\nThe tests do not pass without a mutant, so that their failing proves nothing.")
    found: dict[str, Counter[str]] = {mutant.area: Counter() for mutant in mutants}
    for mutant in mutants:
        began = time.monotonic()
        with applied(mutant, copy):
            status, output = run_tests(copy, mutant.tests, limit_s=options.limit)
        if status not in (PASSED, FAILED, None):
            raise NoResult(f"{output}\n{mutant.name!r}: pytest ended with {status}: correct the mutant or its tests.")
        result = {PASSED: "survived", FAILED: "killed", None: "timed out"}[status]
        found[mutant.area][result] += 1
        print(f"{result:9}  {time.monotonic() - began:5.1f} s  {mutant.area:9} {mutant.name}", flush=True)
    print(table(found), f"{time.monotonic() - begun:.0f} s", sep="\n")
    return 1 if any(counts["survived"] for counts in found.values()) else 0


def copied(copy: Path) -> Path:
    """Copy what git knows or would add, as it is now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@contextmanager
def applied(mutant: Mutant, copy: Path) -> Iterator[None]:
    path = copy / mutant.file
    text = path.read_text()
    _write(path, mutant.applied_to(text))
    try:
        yield
    finally:
        _write(path, text)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    second = next(_times)
    os.utime(path, (second, second))


def run_tests(copy: Path, tests: Sequence[str], *, limit_s: float) -> tuple[int | None, str]:
    """Return pytest's exit status and what it printed; None for the status when the time was over.

    With CI set, a test whose database or broker is missing fails and is not skipped.
    """
    environ = {**os.environ, "PYTHONPATH": f"{copy / 'src'}{os.pathsep}{copy}", "CI": "true"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without it the copy is compiled once, and not at each run
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *PYTEST, *tests],
            cwd=copy,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is passed on below, and what pytest leaves is ended with its group
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        output.seek(0)
        return status, output.read()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Let pytest end what its tests have started; then kill what is left."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(CLEANING_UP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def table(found: dict[str, Counter[str]]) -> str:
    rows: list[tuple[str, ...]] = [("area", "mutants", *RESULTS)]
    total: Counter[str] = sum(found.values(), Counter())
    for area, counts in [*found.items(), ("all", total)]:
        rows.append((area, str(counts.total()), *(str(counts[result]) for result in RESULTS)))
    score = f"{total['killed']} of {total.total()} killed, {total['killed'] / max(1, total.total()):.0%}"
    return "\n".join([*(f"{row[0]:9}" + "".join(f"{cell:>11}" for cell in row[1:]) for row in rows), score])


if __name__ == "__main__":
    sys.exit(main())
