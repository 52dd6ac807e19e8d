"""Tokens for the tests, and the file of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audit_stream.access.entry import Entry, digest_of, new_token, to_toml


class Holder:
    """One who has a token."""

    def __init__(self, name: str, *scopes: str, **more: Any) -> None:
        self.name, self.token = name, new_token()
        digest = digest_of(self.token.encode()).hex()
        self.entry = Entry(name=name, sha256=digest, scopes=scopes, **more)  # type: ignore[arg-type]

    @property
    def header(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def write_tokens(path: Path, *holders: Holder) -> None:
    """Put a file of these in the place of the one that is there, as an operator should."""
    beside = path.with_suffix(".new")
    beside.write_text("".join(to_toml(holder.entry) for holder in holders))
    beside.replace(path)
