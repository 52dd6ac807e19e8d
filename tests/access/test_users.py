"""Tokens as their holders use them: the command line and the client."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import rich_click as click

from audit_stream.access.entry import digest_of, read_entries
from audit_stream.cli import root
from audit_stream.cli.failures import Failed
from audit_stream.client import AuditClient, Event
from audit_stream.errors import Forbidden, Misconfigured, Pushback
from tests.access.conftest import Guarded
from tests.access.holders import Holder
from tests.e2e.terminal import Answer, ScriptedServer, on_terminal, run

Run = Callable[..., str]


@pytest.fixture
def command(guarded: Guarded, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command in this process, as the holder of a token, and return what it prints."""

    def run(*arguments: str, holder: str | None = None, exit_code: int = 0) -> str:
        monkeypatch.setenv("AUDIT_STREAM_URL", guarded.server.url)
        monkeypatch.setenv("AUDIT_STREAM_TOKEN", guarded.holders[holder].token if holder else "")
        capsysbinary.readouterr()
        assert (root.main(list(arguments), standalone_mode=False) or 0) == exit_code
        return capsysbinary.readouterr().out.decode()

    return run


ASKING = [
    "stats",
    "query --limit 1",
    "tail --after 0 --limit 1",
    "append --kind other --source a",
    "export --out - --to 2",
]


@pytest.mark.parametrize("arguments", [*ASKING, "verify", "doctor"])
def test_every_command_that_asks_a_server_brings_the_token(command: Run, arguments: str) -> None:
    assert json.loads(command(*arguments.split(), holder="everything").splitlines()[0])


@pytest.mark.parametrize("arguments", ASKING)
def test_without_a_token_a_command_says_where_to_put_one(command: Run, arguments: str) -> None:
    with pytest.raises(Failed, match=r"Give one as AUDIT_STREAM_TOKEN or with --token-file\.$") as caught:
        command(*arguments.split())
    assert caught.value.status == 401


@pytest.mark.parametrize("name", ["verify", "doctor"])
def test_without_a_token_there_is_no_verdict_and_no_diagnosis(command: Run, name: str) -> None:
    assert command(name, exit_code=2) == ""


def test_a_token_in_a_file_or_a_flag_wins_over_the_environment(command: Run, guarded: Guarded, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{guarded.holders['reader'].token}\n")
    assert command("stats", "--token-file", str(file), holder="producer")
    assert command("stats", "--token", guarded.holders["reader"].token, holder="producer")
    with pytest.raises(click.UsageError, match="Choose one of --token and --token-file"):
        command("stats", "--token", "x", "--token-file", str(file))


@pytest.mark.parametrize("content", [None, "", "one two", b"\xff"])
def test_a_token_file_that_holds_no_token_is_named(command: Run, tmp_path: Path, content: str | bytes | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(click.BadParameter, match=str(file)):
        command("stats", "--token-file", str(file))


def test_a_refusal_is_told_in_the_server_s_words(command: Run) -> None:
    with pytest.raises(Failed, match="answered 403 to /stats: GET /stats needs the scope read; the token 'producer'"):
        command("stats", holder="producer")


def test_a_command_that_is_told_to_wait_waits_and_asks_again() -> None:
    problem = b'{"title":"Too Many Requests","status":429,"detail":"over its limit"}'
    busy = Answer(problem, status=429, type_="application/problem+json", Retry_After="0")
    with ScriptedServer([busy, busy, Answer(b'{"count":1}')]) as server:
        assert root.main(["stats", "--json", "--url", server.url], standalone_mode=False) is None
        assert len(server.asked) == 3
        with pytest.raises(Failed, match="410"):
            root.main(["stats", "--json", "--url", server.url], standalone_mode=False)


# --- audit-stream token


def test_new_tokens_are_added_to_a_file_that_then_holds_their_hashes_alone(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    first = json.loads(command("token", "new", "a", "--scope", "read", "--source", 'é "x"', "--file", str(path)))
    second = json.loads(
        command("token", "new", "b", "--scope", "append", "--scope", "metrics", "--requests-per-second", "5",
                "--file", str(path))
    )  # fmt: skip
    a, b = read_entries(path)
    assert (a.name, a.scopes, a.sources) == ("a", ("read",), ('é "x"',))
    assert (b.name, b.scopes, b.sources, b.requests_per_second) == ("b", ("append", "metrics"), None, 5)
    assert [a.sha256, b.sha256] == [digest_of(made["token"].encode()).hex() for made in (first, second)]
    assert first["token"] not in path.read_text()
    (tmp_path / "joined.toml").write_text(first["entry"] + second["entry"])
    assert read_entries(tmp_path / "joined.toml") == (a, b)
    listed = [json.loads(line)["name"] for line in command("token", "check", str(path)).splitlines()]
    assert listed == ["a", "b"]


def test_a_quiet_token_is_all_that_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    done = run("token", "new", "a", "--scope", "read", "--quiet", "--file", str(path))
    assert (done.returncode, done.stderr) == (0, b"")
    assert read_entries(path)[0].sha256 == digest_of(done.stdout.removesuffix(b"\n")).hex()
    done = run("token", "new", "a", "--scope", "read", "-q")
    assert digest_of(done.stdout.removesuffix(b"\n")).hex() in done.stderr.decode()


def test_a_name_that_is_taken_leaves_the_file_as_it_was(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    command("token", "new", "a", "--scope", "read", "--file", str(path))
    before = path.read_bytes()
    with pytest.raises(Failed, match=r"name: token 1 has the same one\. Nothing was written"):
        command("token", "new", "A", "--scope", "read", "--file", str(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("a b", "NAME: "),
        ("a --source ", "--source: 1 to 256"),
        ("a --requests-per-second 0", "--requests-per-second: a number above 0"),
        ("a --bytes-per-second inf", "--bytes-per-second: a number above 0"),
    ],
)
def test_what_no_entry_can_hold_is_refused(command: Run, arguments: str, said: str) -> None:
    given = ["a b"] if arguments == "a b" else arguments.split(" ")
    with pytest.raises(click.UsageError) as caught:
        command("token", "new", "--scope", "read", *given)
    assert caught.value.message.startswith(said)


def test_check_says_what_is_wrong(command: Run, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("x = 1")
    with pytest.raises(Misconfigured, match="x: no such key"):
        command("token", "check", str(tmp_path / "t"))


def test_on_a_terminal_the_token_is_shown_with_the_entry_to_keep() -> None:
    code, shown = on_terminal("token", "new", "alice", "--scope", "read")
    assert code == 0
    assert "audit_" in shown
    assert '[[token]]\r\nname = "alice"' in shown
    assert "the only time" in shown


# --- the client


def test_the_client_appends_and_reads_with_its_token(guarded: Guarded) -> None:
    with AuditClient(guarded.server.url, token=guarded.holders["everything"].token) as client:
        receipt = client.append("other", "a", {"by": "client"})
        assert isinstance(receipt, Event)
        assert client.get(receipt.event_id) == receipt


def test_the_client_raises_forbidden_where_the_token_is_the_trouble(guarded: Guarded) -> None:
    with AuditClient(guarded.server.url, token=guarded.holders["a-producer"].token) as client:
        with pytest.raises(Forbidden, match="needs the scope read"):
            client.stats()
        with pytest.raises(Forbidden, match="may not write as 'b'") as caught:
            client.append_many([{"kind": "other", "source": "a"}, {"kind": "other", "source": "b"}])
        assert (caught.value.index, caught.value.field) == (1, "source")
    stranger = AuditClient(guarded.server.url, token=Holder("stranger", "read").token)
    with stranger as client, pytest.raises(Forbidden, match="not known here"):
        client.stats()


def test_the_client_is_pushed_back_by_a_limit_for_as_long_as_the_server_says(guarded: Guarded) -> None:
    slow = guarded.holders["slow"]
    guarded.get("slow", "/stats")
    with AuditClient(guarded.server.url, token=slow.token, patience_s=0) as client:
        with pytest.raises(Pushback, match="over its limit") as caught:
            client.stats()
        assert caught.value.retry_after > 60
