"""`python -m tests.faults.campaign`: break everything, again and again, and show that nothing was lost."""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.faults.campaign.faults import FAULTS
from tests.faults.campaign.run import Row, plan, run_round, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="the same faults in the same order")
    parser.add_argument("--injections", type=int, default=300)
    parser.add_argument("--only", action="append", default=[], choices=list(FAULTS), help="this fault; may be repeated")
    parser.add_argument("--evidence", type=Path, help="where everything is kept if an invariant breaks")
    options = parser.parse_args()
    folder = options.evidence or Path(tempfile.mkdtemp(prefix="audit-stream-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}, {options.injections} injections, evidence in {folder}", flush=True)
    # The servers say, over and over, that their Redis is away.
    with (folder / "servers.log").open("ab") as log:
        os.dup2(log.fileno(), 2)
    rows = {name: Row() for name in FAULTS}
    begun = time.monotonic()
    try:
        for number, (kind, names) in enumerate(plan(options.seed, options.injections, options.only)):
            run_round(
                folder / f"round-{number}",
                kind,
                names,
                f"{options.seed} {number}",
                rows,
                lambda line: print(line, flush=True),
            )
    except Exception as error:
        # Not left to the standard error: that is the servers' log now.
        traceback.print_exception(error, file=sys.stdout)
        print(f"{table(rows)}\nBROKEN {error}\nseed {options.seed}, evidence in {folder}")
        return 1
    print(f"{table(rows)}\nevery invariant held; {time.monotonic() - begun:.0f} s")
    if options.evidence is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
