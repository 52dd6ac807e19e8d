"""audit-stream project on the command line: what it says, and with which exit code."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from audit_stream.cli import main
from audit_stream.sinks.postgres import schema
from tests.harness import ServerProcess
from tests.postgres.servers import Database, Postgres
from tests.sinks.chains import ids_in, lines_in
from tests.sinks.projecting import append

Say = Callable[..., tuple[int, str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run `audit-stream project …` in this process; exit code, and all that was printed."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("DATABASE_URL", "LOG_DIR", "AUDIT_STREAM_URL", "PROJECT_TO"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["audit-stream", "project", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


def test_from_init_to_status(
    spine: ServerProcess, postgres: Postgres, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIT_STREAM_URL", spine.url)
    monkeypatch.setenv("DATABASE_URL", postgres.database("commands").url)
    newest = append(spine, 5)
    code, text = say("--once", "--to", "postgres")
    assert (code, "run `audit-stream project init`" in text) == (1, True)
    assert say("init") == (0, f"applied  audit_events, version {schema.NEWEST}\n")
    assert say("init") == (0, f"up to date  audit_events, version {schema.NEWEST}\n")
    code, text = say("--once", "--log-dir", str(tmp_path))
    assert (code, [json.loads(line)["sink"] for line in text.splitlines()]) == (0, ["postgres", "purview", "trust"])
    code, text = say("status", "--log-dir", str(tmp_path))
    said = json.loads(text)
    assert (code, said["spine"]) == (0, {"event_id": newest})
    assert [(row["sink"], row["event_id"], row["lag"], row["at_work"]) for row in said["sinks"]] == [
        (sink, newest, 0, False) for sink in ("postgres", "purview", "trust")
    ]
    code, text = say("check")
    assert (code, json.loads(text)["valid"], json.loads(text)["rows"]) == (0, True, newest)
    append(spine, 2)
    code, text = say("--log-dir", str(tmp_path), "--to", "trust", "status")
    assert (code, json.loads(text)["sinks"][0]["lag"]) == (1, 2)


def test_status_for_people(spine: ServerProcess, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = append(spine, 3)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    where = ("--to", "trust", "--to", "postgres", "--log-dir", str(tmp_path), "--url", spine.url)
    code, text = say("status", *where, "--database-url", "postgresql:///x?host=/nowhere")
    assert code == 1
    for part in (f"spine     #{newest}", "nobody: run `audit-stream project`", "the database is away"):
        assert part in text, text
    code, text = say("--once", "--to", "trust", "--log-dir", str(tmp_path), "--url", spine.url)
    assert (code, f"trust     {newest} events, up to #{newest}" in text) == (0, True)


def test_the_status_of_what_another_chain_was_projected_into_says_so(
    spine: ServerProcess, server: ServerProcess, tmp_path: Path, say: Say
) -> None:
    newest = append(spine, 3)
    append(server, newest + 1)
    where = ("--to", "trust", "--log-dir", str(tmp_path))
    assert say("--once", *where, "--url", spine.url)[0] == 0
    code, text = say("status", *where, "--url", server.url)
    assert (code, "it is another chain" in json.loads(text)["sinks"][0]["error"]) == (1, True)


def test_a_status_without_a_spine_says_so(tmp_path: Path, say: Say) -> None:
    code, text = say("status", "--to", "trust", "--log-dir", str(tmp_path), "--url", "http://127.0.0.1:1")
    assert (code, "no server at" in json.loads(text)["spine"]["error"]) == (1, True)
    assert json.loads(text)["sinks"][0]["lag"] is None


def test_the_printed_sql_is_the_schema(say: Say) -> None:
    assert say("init", "--print") == (0, f"{schema.script()}\n")


def test_o365_has_files_and_a_cursor_of_its_own(spine: ServerProcess, tmp_path: Path, say: Say) -> None:
    newest = append(spine, 3)
    where = ("--once", "--to", "purview", "--log-dir", str(tmp_path), "--url", spine.url, "--tenant-id", "t-1")
    assert say(*where)[0] == say(*where, "--format", "o365")[0] == 0
    first, second = sorted(lines_in(tmp_path))
    assert (first[:6], second[:5]) == ("audit_", "o365_")
    assert ids_in(tmp_path)[first] == ids_in(tmp_path)[second] == list(range(1, newest + 1))
    assert lines_in(tmp_path)[second][0]["OrganizationId"] == "t-1"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "no sink is named: choose with --to postgres, purview, trust or jsonl, or set DATABASE_URL or LOG_DIR"),
        (["--to", "nowhere"], "PROJECT_TO: 'nowhere' is no sink; there are postgres, purview, trust, jsonl"),
        (["--to", "trust"], "LOG_DIR is not set: name the folder"),
        (["--to", "postgres"], "DATABASE_URL is not set: name the database"),
        (["--database-url", "bogus=1"], 'DATABASE_URL: invalid connection option "bogus"'),
        (["--log-dir", ".", "--format", "xml"], "PURVIEW_FORMAT: 'xml' is not one of published, azure, o365"),
        (["--log-dir", ".", "--rotate", "often"], "JSONL_ROTATE: 'often' is neither day nor a size such as 100M"),
        (["--log-dir", ".", "--gzip", "maybe"], "LOG_GZIP: 'maybe' is neither on nor off"),
        (["--log-dir", ".", "--url", "ftp://x"], "AUDIT_STREAM_URL: url: 'ftp://x' is no address of a server"),
        (["init"], "DATABASE_URL is not set"),
        (["init", "--database-url", "postgresql:///x?host=/nowhere"], "/nowhere"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_made(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = say(*arguments)
    assert (code, complaint in text) == (2, True), text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_an_error_that_names_it(spine: ServerProcess, tmp_path: Path, say: Say) -> None:
    (tmp_path / "file").write_text("")
    code, text = say("--once", "--to", "trust", "--log-dir", str(tmp_path / "file"), "--url", spine.url)
    assert (code, str(tmp_path / "file") in text) == (1, True)


def test_sinks_that_are_away_do_not_keep_the_others_from_the_end(
    spine: ServerProcess, database: Database, tmp_path: Path, say: Say
) -> None:
    newest = append(spine, 3)
    (tmp_path / "jsonl").write_text("in the way")
    where = ("--to", "jsonl", "--to", "trust", "--to", "postgres", "--log-dir", str(tmp_path), "--url", spine.url)
    code, text = say("--once", *where, "--database-url", database.url)
    said = {line["sink"]: line for line in map(json.loads, text.splitlines())}
    assert code == 1
    assert (said["trust"]["event_id"], said["postgres"]["event_id"], said["trust"]["error"]) == (newest, newest, None)
    assert str(tmp_path / "jsonl") in said["jsonl"]["error"]
