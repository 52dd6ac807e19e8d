"""Changes to the code that a test has to find, and the driver that makes them one at a time: `make mutants`."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("table.toml")


@dataclass(frozen=True)
class Mutant:
    """One change to one file. Its name says what is then wrong."""

    name: str
    area: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """Paths, or paths and names as in pytest's node ids, of those that should fail."""

    def applied_to(self, text: str) -> str:
        """Return the text with the change. Raises ValueError unless `old` occurs in it exactly once."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"{TABLE.name}: {self.name!r}: `old` occurs {count} times in {self.file}, and not once:"
                " write it as the code is now, or take the mutant out"
            )
        return text.replace(self.old, self.new)


def load() -> list[Mutant]:
    return [
        Mutant(**{**fields, "tests": tuple(fields["tests"])}) for fields in tomllib.loads(TABLE.read_text())["mutant"]
    ]
