"""What the help of a command shows, and what completes it."""

import re
import shlex
from pathlib import Path

import pytest
import rich_click as click

from audit_stream.cli import root
from audit_stream.cli.examples import COMMAND, HEADING
from tests.e2e.terminal import run

STARTED_WITH = ["append", "tail", "query", "verify", "import", "token new"]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words begin with, and the rest of them."""
    command: click.Command = root
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    return command, words


def examples_of(path: str) -> list[str]:
    heading, *lines = (command_of(path.split())[0].epilog or "").split("\n\n")
    assert heading == HEADING
    return lines


# --- examples


@pytest.mark.parametrize("path", STARTED_WITH)
def test_each_example_is_of_its_command_and_parses(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("audit_t0ken\n")
    examples = examples_of(path)
    assert len(examples) == 3
    for example in examples:
        assert example.startswith(f"{COMMAND}{path} ")
        typed, *_ = re.split(r" [<>|] ", example)
        command, words = command_of(shlex.split(typed)[1:])
        command.make_context(path, words)  # raises UsageError for what the command does not take


def test_the_help_shows_an_example_a_line_on_80_columns() -> None:
    for path in STARTED_WITH:
        lines = [line.strip() for line in run(*path.split(), "--help").stdout.decode().splitlines()]
        assert set(examples_of(path)) <= set(lines), path


# --- completion


@pytest.mark.parametrize(
    ("shell", "hook"),
    [
        ("bash", "complete -o nosort -F _audit_stream_completion audit-stream"),
        ("zsh", "#compdef audit-stream"),
        ("fish", "complete --no-files --command audit-stream"),
    ],
)
def test_completion_prints_the_script_of_the_shell(shell: str, hook: str) -> None:
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, b"")
    script = done.stdout.decode()
    assert hook in script
    assert f"_AUDIT_STREAM_COMPLETE={shell}_complete" in script


def test_the_variable_of_the_scripts_completes_commands_and_options() -> None:
    for typed, word, completed in (("ver", "1", b"verify"), ("query --col", "2", b"--columns")):
        done = run(_AUDIT_STREAM_COMPLETE="bash_complete", COMP_WORDS=f"audit-stream {typed}", COMP_CWORD=word)
        assert done.stdout == b"plain,%b\n" % completed


def test_a_shell_without_completion_is_refused_and_the_others_are_named() -> None:
    done = run("completion", "tcsh")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.stderr
