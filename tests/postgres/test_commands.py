"""audit-stream postgres on the command line: what it says, and with which exit code."""

import json
import sys
from collections.abc import Callable

import pytest

from audit_stream.cli import main
from audit_stream.sources.postgres.installation import script, version
from tests.postgres.relays import relaying
from tests.postgres.servers import Postgres

Say = Callable[..., tuple[int, str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run `audit-stream postgres …` in this process; exit code, and all that was printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["audit-stream", "postgres", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


def test_from_installing_to_removing(postgres: Postgres, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    database = postgres.database("commands")
    monkeypatch.setenv("DATABASE_URL", database.url)
    code, text = say("status")
    assert (code, "run `audit-stream postgres install`" in text) == (1, True)
    code, text = say("install")
    assert (code, text.splitlines()[0]) == (0, f"installed  audit_stream {version()}")
    assert "SELECT audit_stream.watch(" in text
    database.run("CREATE TABLE cards (id int)", "SELECT audit_stream.watch('cards', 'other', 'me')")
    database.run("INSERT INTO cards VALUES (1)")
    code, text = say("install")
    assert (code, text.startswith("up to date")) == (0, True)
    code, text = say("uninstall")
    assert code == 1
    assert "nothing was removed: 1 changes wait in the outbox" in text
    assert "--discard" in text
    assert say("uninstall", "--discard") == (0, "removed\n")
    assert say("uninstall") == (0, "audit_stream is not installed in this database\n")


def test_the_status_tells_a_program_and_a_person_what_is_wrong(
    postgres: Postgres, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = postgres.database("statuses")
    monkeypatch.setenv("DATABASE_URL", database.url)
    say("install")
    database.run("CREATE TABLE cards (id int)", "SELECT audit_stream.watch('cards', 'other', 'me')")
    code, text = say("status")
    found = json.loads(text)
    assert (code, found["relay"], found["waiting"], found["dead_letters"]) == (1, None, 0, 0)
    with relaying(database.url, "http://127.0.0.1:1") as relay:
        relay.log.wait_for("leading")
        assert say("status")[0] == 0
        database.run("INSERT INTO cards VALUES (1)")
        database.run("ALTER TABLE cards DISABLE TRIGGER audit_stream_emit")
        database.run("INSERT INTO audit_stream.dead_letters SELECT *, 'why' FROM audit_stream.outbox")
        monkeypatch.setattr(sys.modules["audit_stream.cli.postgres"], "wants_json", lambda flag: flag)
        code, text = say("status")
    assert code == 1
    for words in (f"{version()}, as a script", "audit-stream-bridge pid", "1, the oldest for 0:00", "trigger disabled"):
        assert words in text
    assert "SELECT audit_stream.requeue()" in text


def test_the_sql_is_printed_in_one_piece(say: Say) -> None:
    assert say("install", "--print") == (0, script())
    assert "\\ir" not in script()


@pytest.mark.parametrize("command", ["install", "status", "uninstall"])
def test_without_a_database_each_command_says_which_variable_to_set(
    say: Say, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    code, text = say(command)
    assert (code, "DATABASE_URL is not set" in text) == (2, True)
