"""The exit code and the words of `audit-stream verify` where the indexes were not compared."""

from typing import Any

import pytest
from click.testing import CliRunner

from audit_stream.chain import Head, Verdict
from audit_stream.cli import verdicts
from audit_stream.cli.verdicts import Found
from audit_stream.cli.verify import BROKEN, CANNOT_TELL, INTACT, verify
from audit_stream.server.bodies import VerdictBody

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
