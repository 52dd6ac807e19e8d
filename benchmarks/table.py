"""The statistics of a row, and the table in its three forms."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple

HOW_TO_READ = (
    "Ours and the peer's rounds took turns in one run: read the ratio (ours to the peer's, the median of the rounds,"
    " then smallest..largest), and never an absolute number, which is this machine's of that day."
)


class Target(NamedTuple):
    comparison: Literal["≥", "≤", "="]
    bound: float
    of: Literal["ratio", "value"] = "ratio"

    def __str__(self) -> str:
        return f"{self.comparison} {self.bound:g}{'×' if self.of == 'ratio' else ''}"

    def reached(self, found: float) -> bool:
        match self.comparison:
            case "≥":
                return found >= self.bound
            case "≤":
                return found <= self.bound
            case _:
                return found == self.bound


@dataclass
class Line:
    """One comparison: a number a round for us and, unless it stands alone, one for the peer."""

    row: str
    unit: str
    ours: Sequence[float]
    peer: str = ""
    theirs: Sequence[float] = ()
    target: Target | None = None
    generator_busy: Sequence[float] = field(default_factory=list)
    """The generator's share of one core in each of our rounds."""
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        if not self.theirs:
            return []
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def reached(self) -> bool | None:
        """Whether the median reached the target; None without a target, or without a measurement."""
        found = self.ratios if self.target and self.target.of == "ratio" else self.ours
        return self.target.reached(median(found)) if self.target and found else None

    def cells(self) -> list[str]:
        ratio = f"{_digits(median(self.ratios))}× ({_spread(self.ratios)})" if self.ratios else ""
        busy = f"{median(self.generator_busy):.0%}" if self.generator_busy else ""
        theirs = f"{_digits(median(self.theirs))} {self.peer}" if self.theirs else self.peer
        ours = f"{_digits(median(self.ours))} {self.unit}" if self.ours else "not there"
        if self.ours and not self.ratios and len(self.ours) > 1:
            ours += f" ({_spread(self.ours)})"
        reached = {True: "yes", False: "**no**", None: ""}[self.reached]
        return [self.row, ours, theirs, ratio, str(self.target or ""), reached, busy, self.note]


COLUMNS = ["row", "ours", "peer", "ratio", "target", "reached", "generator busy", "note"]


def _digits(number: float) -> str:
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def _spread(numbers: Sequence[float]) -> str:
    return f"{_digits(min(numbers))}..{_digits(max(numbers))}"


def summary(lines: Sequence[Line]) -> str:
    judged = [line for line in lines if line.target]
    return f"{sum(line.reached is True for line in judged)} of {len(judged)} targets reached"


def as_text(lines: Sequence[Line]) -> str:
    rows = [COLUMNS, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    written = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    written.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(written).replace("**", "")


def as_markdown(facts: dict[str, str], lines: Sequence[Line]) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(line.cells() for line in lines)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    about = "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
    return f"# Benchmarks\n\n{about}\n\n{HOW_TO_READ}\n\n{table}\n\n{summary(lines)}.\n"


def as_json(facts: dict[str, str], lines: Sequence[Line]) -> str:
    def with_statistics(line: Line) -> dict[str, Any]:
        found: dict[str, Any] = {**asdict(line), "target": str(line.target) if line.target else None}
        if line.ratios:
            found["ratio"] = {"median": median(line.ratios), "min": min(line.ratios), "max": max(line.ratios)}
        return {**found, "reached": line.reached}

    whole = {"about": facts, "how_to_read": HOW_TO_READ, "lines": [with_statistics(line) for line in lines]}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
