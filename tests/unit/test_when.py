"""Times as they are typed at the command line."""

from datetime import UTC, datetime
from typing import Any

import pytest
import rich_click as click
from click.testing import CliRunner

from audit_stream.cli.when import FORMS, time_given, understood
from audit_stream.errors import Refused

NOW = datetime(2026, 3, 1, 12, 30, 15, 678_000, tzinfo=UTC)

MEANT = {
    "-1h": "2026-03-01T11:30:15Z",
    "-90s": "2026-03-01T12:28:45Z",
    "-45m": "2026-03-01T11:45:15Z",
    "-1d": "2026-02-28T12:30:15Z",
    "-2w": "2026-02-15T12:30:15Z",
    "now": "2026-03-01T12:30:15Z",
    "today": "2026-03-01T00:00:00Z",
    "yesterday": "2026-02-28T00:00:00Z",
    " Yesterday ": "2026-02-28T00:00:00Z",
    "2026-11-21": "2026-11-21T00:00:00Z",
    "2026-11-21 14:05": "2026-11-21T14:05:00Z",
    "2026-11-21t14:05:09": "2026-11-21T14:05:09Z",
}


@pytest.mark.parametrize("text", MEANT)
def test_a_time_is_understood_as_an_instant_in_utc(text: str) -> None:
    assert understood(text, NOW) == MEANT[text]


@pytest.mark.parametrize("text", ["2026-11-21T14:05:09+05:30", "2026-11-21T14:05:09.25Z", "2016-12-31t23:59:60z"])
def test_an_instant_stays_as_it_was_written(text: str) -> None:
    assert understood(text, NOW) == text


@pytest.mark.parametrize(
    "text",
    ["nonsense", "", "1h", "-1y", "-h", "- 1h", "-1h30m", "-9999999h", "-999999w", "tomorrow", "2026-02-30", "2026-11"],
)
def test_what_is_not_a_time_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(Refused) as caught:
        understood(text, NOW)
    assert str(caught.value) == f"{text!r} is not a time; write it like {FORMS}"


@click.command()
@click.option("--since", callback=time_given)
def shown(since: str | None) -> None:
    click.echo(since)


def typed(*words: str) -> Any:
    return CliRunner().invoke(shown, words, standalone_mode=False)


def test_what_was_understood_is_said_beside_the_result() -> None:
    done = typed("--since", "2026-11-21")
    assert (done.stdout, done.stderr) == ("2026-11-21T00:00:00Z\n", "--since 2026-11-21T00:00:00Z\n")
    done = typed("--since", "2026-11-21T00:00:00Z")
    assert (done.stdout, done.stderr) == ("2026-11-21T00:00:00Z\n", "")
    assert (typed().stdout, typed().stderr) == ("\n", "")


def test_the_flag_with_the_bad_time_is_named() -> None:
    done = typed("--since", "nonsense")
    assert isinstance(done.exception, click.UsageError)
    assert done.exception.message.startswith("--since: 'nonsense' is not a time; write it like -1h")
