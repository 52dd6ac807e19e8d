"""`python -m benchmarks`: run the rows, print the table, and keep it in results/."""

import argparse
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from benchmarks import machine, table
from benchmarks.contents import ROWS
from benchmarks.load import Generator
from benchmarks.session import QUICK, Scale, Session

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    options = _options()
    # A thousand subscribers are a thousand sockets in two processes.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Ended from outside, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    scale = QUICK if options.quick else Scale(options.rounds)
    session = Session(scale, Generator(options.generator) if options.generator else Generator.found())
    facts = machine.facts(session.generator, scale.rounds)
    lines: list[table.Line] = []
    began, exit_code = time.monotonic(), 0
    for name in options.row or ROWS:
        print(f"{name} …", file=sys.stderr)
        try:
            lines += ROWS[name](session)
        except Exception as error:
            # Said in the table and by the exit code; the other rows are measured all the same.
            traceback.print_exc()
            lines.append(table.Line(name, "", [], note=f"failed: {error}"))
            exit_code = 1
        options.results.mkdir(parents=True, exist_ok=True)
        # After each row, so that an interrupted run leaves what it measured.
        (options.results / "latest.json").write_text(table.as_json(facts, lines))
        (options.results / "latest.md").write_text(table.as_markdown(facts, lines))
    took = f"{table.summary(lines)}, in {time.monotonic() - began:.0f} s"
    print(*(f"{name}: {fact}" for name, fact in facts.items()), sep="\n")
    print(table.HOW_TO_READ, table.as_text(lines), took, sep="\n\n")
    return exit_code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--row", action="append", choices=list(ROWS), help="only this part; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="of each side (5)")
    parser.add_argument("--quick", action="store_true", help="one short round on short chains: does it run at all?")
    parser.add_argument("--generator", choices=("wrk", "bundled"), help="what makes the load; wrk where installed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for latest.json and latest.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
