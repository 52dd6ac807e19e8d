"""The campaign: which fault comes when, and what is shown of it."""

import itertools
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tests.faults.campaign.faults import FAULTS
from tests.faults.campaign.moments import NotHere
from tests.faults.campaign.site import Kind, Recovery, Site
from tests.faults.campaign.sites import SITES, site_under_load

ROUND = 30
"""Injections into one site, before all of it is checked from the start and another one is built."""


@dataclass
class Row:
    """What was seen of one fault."""

    recoveries: list[Recovery] = field(default_factory=list)
    not_here: str = ""


class Broken(Exception):
    """An invariant does not hold: after which injection, and where the evidence is."""


def plan(seed: int, injections: int, only: Sequence[str] = ()) -> Iterator[tuple[Kind, list[str]]]:
    """Rounds: (kind of site, names of the faults in their order). Every fault comes on every site it can."""
    rng = random.Random(f"plan {seed}")
    places = [(name, kind) for name, fault in FAULTS.items() for kind in fault.sites if not only or name in only]
    shares = [FAULTS[name].share / len(FAULTS[name].sites) for name, _ in places]
    chosen = places[:injections] + rng.choices(places, shares, k=max(0, injections - len(places)))
    for kind in SITES:
        names = [name for name, where in chosen if where == kind]
        rng.shuffle(names)
        for batch in _batched(names, ROUND):
            yield kind, batch


def _batched(names: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def run_round(
    folder: Path, kind: Kind, names: Sequence[str], seed: str, rows: dict[str, Row], say: Callable[[str], None]
) -> None:
    """Inject these faults one after another, each at a random moment; check after each, and all at the end.

    Raises Broken when something does not hold, and leaves the evidence in `folder`.
    """
    rng = random.Random(seed)
    now = "the start"
    with site_under_load(folder, kind, rng) as site:
        try:
            for number, name in enumerate(names, start=1):
                now = f"injection {number} of the round, {name!r}"
                site.load.wait_for(rng.randint(1, 8))
                time.sleep(rng.uniform(0, 0.03))  # nowhere in particular between two answers
                try:
                    appends_s = FAULTS[name].inject(site, rng)
                except NotHere as reason:
                    rows[name].not_here = str(reason)
                    continue
                rows[name].recoveries.append(site.recovered(appends_s))
            now = "the last injection"
            say(f"{kind}: {len(names)} injections, {site.finish()} events stored, all invariants hold")
        except Exception as error:
            _keep(site, folder)
            raise Broken(f"after {now} on the site {kind!r}, seed {seed!r}: {error}; evidence in {folder}") from error


def _keep(site: Site, folder: Path) -> None:
    """Before the small disk goes: the data of Redis, and what was answered."""
    shutil.copytree(site.disk, folder / "data", ignore=shutil.ignore_patterns("filler", "*.sock"))
    answers = site.load.answers() + site.prober.answers
    (folder / "answers.json").write_bytes(msgspec.json.format(msgspec.json.encode(answers)))


def table(rows: dict[str, Row]) -> str:
    lines = [f"{'fault':36} {'injections':>10} {'acknowledged':>12} {'appends back':>13} {'readers back':>13}"]
    for name, row in rows.items():
        done = row.recoveries
        if not done:
            why = f"not here: {row.not_here}" if row.not_here else "not asked for"
            lines.append(f"{name:36} {why}")
            continue
        appends, readers = (max(getattr(one, what) for one in done) for what in ("appends_s", "readers_s"))
        acknowledged = sum(one.acknowledged for one in done)
        lines.append(f"{name:36} {len(done):>10} {acknowledged:>12} {appends:>11.2f} s {readers:>11.2f} s")
    done = [one for row in rows.values() for one in row.recoveries]
    lines.append(f"{'all':36} {len(done):>10} {sum(one.acknowledged for one in done):>12}")
    return "\n".join(lines)
