"""The exit code and the words of `audit-stream verify`."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from audit_stream.chain import Head, Verdict
from audit_stream.cli import verdicts
from audit_stream.cli.verdicts import Found
from audit_stream.cli.verify import BROKEN, CANNOT_TELL, INTACT, verify
from audit_stream.event import to_json
from audit_stream.server.bodies import VerdictBody
from tests.unit.drafts import drafted, linked

HEAD = Head(6, b"a" * 64)


def report(*, valid: bool = True) -> Found:
    verdict = Verdict(True, 6, None, None, HEAD) if valid else Verdict(False, 6, 7, "hash mismatch", HEAD)
    return Found(VerdictBody.of(verdict, 1, "not checked", 0.1, "Redis is slow"), [])


@pytest.mark.parametrize(
    ("words", "valid", "code"),
    [
        ((), True, INTACT),
        (("--deep",), True, CANNOT_TELL),
        (("--deep", "--from", "2"), True, INTACT),
        (("--deep",), False, BROKEN),
    ],
)
def test_only_deep_needs_the_indexes_for_its_answer(
    words: tuple[str, ...], valid: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "of_server", lambda *_: report(valid=valid))
    result: Any = CliRunner().invoke(verify, words, standalone_mode=False)
    assert result.return_value == code
    assert '"unchecked":"Redis is slow"' in result.output


def test_a_file_that_holds_ends_with_the_command_that_checks_this_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a terminal. `audit_stream.cli.verify` is the command; only sys.modules has the module.
    monkeypatch.setattr(sys.modules[verify.callback.__module__], "wants_json", lambda _: False)
    path = tmp_path / "it's of May.jsonl"
    path.write_bytes(b"".join(to_json(event) + b"\n" for event in linked([drafted(), drafted()])))
    command = CliRunner().invoke(verify, [str(path)], standalone_mode=False).stdout.splitlines()[-1]
    program, name, *words = shlex.split(command)
    assert (program, name, words[:2]) == ("audit-stream", "verify", [str(path), "--expect"])
    again = CliRunner().invoke(verify, words, standalone_mode=False)
    assert (again.return_value, "the checkpoint holds: event #2" in again.stdout) == (INTACT, True)

    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    cut = CliRunner().invoke(verify, words, standalone_mode=False)
    assert (cut.return_value, "the checkpoint does not hold" in cut.stdout) == (BROKEN, True)
