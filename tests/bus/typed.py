"""The command line in this process: what it prints and how it ends."""

import json
import sys
from typing import Any, NamedTuple

import pytest

from audit_stream.cli import main


class Done(NamedTuple):
    code: int
    out: bytes
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Typing:
    def __init__(self, patch: pytest.MonkeyPatch, captured: "pytest.CaptureFixture[bytes]") -> None:
        self._patch, self._captured = patch, captured

    def __call__(self, *arguments: object) -> Done:
        self._patch.setattr(sys, "argv", ["audit-stream", *map(str, arguments)])
        self._captured.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._captured.readouterr()
        return Done(int(ended.value.code or 0), out, " ".join(err.decode().split()))
