"""Events as `query` and `tail` show them: which columns, how wide, and as CSV."""

import csv
import io
import json
from typing import Any

import pytest
import rich_click as click
from click.testing import CliRunner
from rich.console import Console

from audit_stream.cli.query import query
from audit_stream.cli.rows import Rows
from tests.e2e.terminal import Answer, ScriptedServer

LONG = "x" * 200


def event(event_id: int, source: str, **payload: Any) -> dict[str, Any]:
    hashes = {"prev_hash": "a" * 64, "hash": "b" * 64}
    known = {"event_id": event_id, "timestamp": "2026-05-15T03:14:15+02:00", "kind": "other", "source": source}
    return {**known, "payload": payload, **hashes}


EVENTS = [event(1, "orders", id=7, who={"name": "Ann"}), event(2, "=1+1", id="=x", text=LONG)]


def shown(*, width: int = 80, **given: Any) -> list[str]:
    out = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, soft_wrap=True)
    Rows(out, sample=EVENTS, **given).print_all(EVENTS)
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


def test_no_line_is_wider_than_the_terminal_and_wide_cuts_nothing() -> None:
    narrow = shown()
    assert max(map(len, narrow)) == 80
    assert LONG not in "".join(narrow)
    wide = shown(wide=True)
    assert len(wide) == 1 + len(EVENTS)
    assert wide[2].endswith(f"text={LONG}")


def test_columns_are_shown_in_the_order_given_and_a_value_of_the_payload_is_one() -> None:
    header, first, _ = shown(columns=("payload.who.name", "id", "source"))
    assert header.split() == ["payload.who.name", "id", "source"]
    assert first.split() == ["Ann", "#1", "orders"]


# --- the command


def typed(*words: str) -> Any:
    """Run `query` on a server that answers with these events."""
    page = b"".join(json.dumps(event).encode() + b"\n" for event in EVENTS)
    with ScriptedServer([Answer(page, type_="application/x-ndjson")]) as server:
        return CliRunner().invoke(query, [*words, "--url", server.url], standalone_mode=False)


def rows_of(done: Any) -> list[list[str]]:
    assert done.exception is None
    return list(csv.reader(io.StringIO(done.stdout_bytes.decode(), newline="")))


def test_csv_has_every_field_whole_and_no_formula() -> None:
    header, first, second = rows_of(typed("--format", "csv"))
    assert header == ["event_id", "timestamp", "kind", "source", "payload", "prev_hash", "hash"]
    assert first[:4] == ["1", "2026-05-15T03:14:15+02:00", "other", "orders"]
    assert json.loads(first[4]) == EVENTS[0]["payload"]
    assert json.loads(second[4])["text"] == LONG
    assert second[3] == "'=1+1"


def test_csv_has_the_columns_asked_for() -> None:
    assert rows_of(typed("--format", "csv", "--columns", "payload.id, id,payload.who,payload.none")) == [
        ["payload.id", "id", "payload.who", "payload.none"],
        ["7", "1", '{"name":"Ann"}', ""],
        ["'=x", "2", "", ""],
    ]


def test_columns_or_wide_make_a_table_also_in_a_pipe_which_else_gets_json() -> None:
    assert [json.loads(line) for line in typed().stdout.splitlines()] == EVENTS
    assert typed("--columns", "id").stdout.split() == ["id", "#1", "#2"]
    assert typed("--wide").stdout.splitlines()[0].split() == ["id", "time", "(UTC)", "kind", "source", "payload"]
    assert [json.loads(line) for line in typed("--wide", "--format", "json").stdout.splitlines()] == EVENTS


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--columns", "id,nonsense"), "'nonsense' is not a column; there are id, time, timestamp, kind"),
        (("--columns", ""), "'' is not a column"),
        (("--format", "csv", "--json"), "Choose one of --json and --format."),
        (("--format", "xml"), "'xml' is not one of 'table', 'json', 'csv'"),
    ],
)
def test_what_cannot_be_shown_is_refused(words: tuple[str, ...], why: str) -> None:
    done = typed(*words)
    assert isinstance(done.exception, click.UsageError)
    assert why in done.exception.message
