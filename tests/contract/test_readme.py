"""The README says what the code does: the same commands, settings, endpoints and kinds, and its examples run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from audit_stream.bus import BusWriter
from audit_stream.bus.keys import KEY, KEY_FILE
from audit_stream.kinds import BUILT_IN
from audit_stream.server.routes import ENDPOINTS, ROUTES
from audit_stream.settings import VARIABLES
from tests.harness import ROOT, ServerProcess, clean_environ

README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return re.split(r"^##+ ", README.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.M)[0]


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", text, flags=re.M)


def test_the_table_of_settings_is_the_code_s() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section("Settings"), flags=re.M)
    assert rows == [(name, variable.default or "–", variable.help) for name, variable in VARIABLES.items()]


def test_every_environment_variable_named_in_the_readme_exists() -> None:
    named = set(re.findall(r"\bAUDIT_STREAM_[A-Z_]+\b", README))
    assert named <= set(VARIABLES) | {"AUDIT_STREAM_URL", "AUDIT_STREAM_TOKEN", KEY, KEY_FILE}


def test_the_table_of_endpoints_is_the_code_s() -> None:
    assert first_cells(section("HTTP")) == list(ENDPOINTS)


def test_every_route_is_an_endpoint_and_the_other_way_round() -> None:
    routes = {
        f"{method} {re.sub(r':[a-z]+', '', path)}"
        for handler in ROUTES
        for path in handler.paths
        for method in handler.http_methods
    }
    assert routes | {"GET /schema"} == set(ENDPOINTS)


def test_the_kinds_in_the_readme_are_the_built_in_ones() -> None:
    kinds = section("Events").partition("Kinds:")[2].partition("A deployment adds")[0]
    assert tuple(re.findall(r"`(\w+)`", kinds)) == BUILT_IN


def test_the_table_of_commands_is_the_command_line_s() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "audit_stream", "--help"],
        env={**clean_environ(), "NO_COLOR": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    commands = {name.split()[1] for name in first_cells(section("Commands"))}
    assert commands == set(re.findall(r"^[\s│|]*([\w-]+)\s{2,}\S", shown.partition("─ Run ")[2], flags=re.M))


def test_the_first_event_section_runs_as_typed(server: ServerProcess) -> None:
    blocks = re.findall(r"(?:^    .+\n)+", section("First event"), flags=re.M)
    typed = [
        line.strip() for block in blocks for line in block.splitlines() if re.match(r"\s+(curl|audit-stream) ", line)
    ]
    assert len(typed) == 7
    outputs = [run_as_typed(command, server) for command in typed if "stream" not in command.split()[-1]]
    assert json.loads(outputs[0])["payload"] == {"decision_id": "DEC-001"}
    assert server.get("/stats").json()["count"] == 2  # the curl and the append


def run_as_typed(command: str, server: ServerProcess) -> str:
    # A command that follows live is given a second to show what it has.
    follows = " tail" in command or "-N" in command
    port = server.url.rpartition(":")[2]
    command = command.replace("localhost:8093", f"127.0.0.1:{port}").replace("curl ", "curl -sS --fail ")
    environ = clean_environ(AUDIT_STREAM_URL=server.url)
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"timeout 2 {command}" if follows else command],
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == (124 if follows else 0), done.stderr
    return done.stdout


def test_chain_py_verifies_an_export_as_the_readme_shows(server: ServerProcess, tmp_path: Path) -> None:
    for number in range(5):
        server.post({"kind": "other", "source": "café", "payload": {"n": number, "f": 1e22}})
    (tmp_path / "chain.py").write_text((ROOT / "src/audit_stream/chain.py").read_text())
    (typed,) = re.findall(r"^    python -c '(.*)'$", README, flags=re.M)
    for committed in ("false", "true"):
        path = f"/events?after=0&limit=100000&committed={committed}"
        export = server.get(path, Accept="application/x-ndjson").content
        (tmp_path / "events.ndjson").write_bytes(export)
        said = subprocess.run(
            [sys.executable, "-S", "-c", typed], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
        ).stdout
        assert said.startswith("Verdict(valid=True, checked=5,")


def test_a_bus_on_a_memory_stick_comes_to_a_verdict_in_two_commands(tmp_path: Path) -> None:
    text = section("The bus: a log on a machine that sees no network")
    writing, commands, _ = ("".join(block) for block in re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", text, flags=re.M))
    environ = {**clean_environ(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        [sys.executable, "-c", re.sub("^    ", "", writing, flags=re.M)], cwd=tmp_path, env=environ, check=True
    )
    install, verify = (line.strip() for line in commands.splitlines())
    assert install == "pip install --no-deps ."  # stood in for by PYTHONPATH, and -S leaves out what others installed
    command = [sys.executable, "-S", *verify.split()[1:]]

    def verdict() -> tuple[int, str]:
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    head = BusWriter(tmp_path / "agent.jsonl").head()
    assert verdict() == (0, f"intact  1 line\n  head      #1\n  hash      {head.hash.decode()}\n")
    lines = (tmp_path / "agent.jsonl").read_bytes()
    (tmp_path / "agent.jsonl").write_bytes(lines.replace(b"Starting", b"Finished"))
    code, said = verdict()
    assert code == 1
    assert said.startswith("broken at agent.jsonl, line 1: hash mismatch\n")


def test_make_run_starts_the_server_on_its_own_valkey(tmp_path: Path) -> None:
    environ = clean_environ(AUDIT_STREAM_DATA_DIR=str(tmp_path / "data"))
    make = subprocess.Popen(
        ["make", "--silent", "run"], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, process_group=0
    )
    try:
        assert make.stdout
        ready = make.stdout.readline()
        assert "http://127.0.0.1:" in ready
        assert "Valkey" in ready
    finally:
        os.killpg(make.pid, 2)
        make.wait(15)
        make.stdout.close() if make.stdout else None


@pytest.mark.parametrize("name", ["lua/README.md", "CONTRIBUTING.md", "README.md", "docs/bus.md", "docs/bus-format.md"])
def test_every_file_that_a_document_names_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    for path in re.findall(r"`((?:src|lua|tests|deploy)/[\w./-]+|docker-compose\.yml|Dockerfile)`", text):
        assert (ROOT / path).exists(), path
