"""Two generators of clients take the OpenAPI document without a warning, and what they make appends and reads."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import ROOT, ServerProcess, running_server

TYPESCRIPT = ROOT / "tests/contract/typescript"
USE_IN_PYTHON = """
import sys
from made.client import Client
from made.api.append import append_event, append_events
from made.api.read import get_event, query_events
from made.models import PublishRequest, PublishRequestKind as Kind, PublishRequestPayload

client = Client(base_url=sys.argv[1])
payload = PublishRequestPayload.from_dict({"n": 1})
one = append_event.sync(client=client, body=PublishRequest(kind=Kind.OTHER, source="python", payload=payload))
append_events.sync(client=client, body=[PublishRequest(kind=Kind.FLAG_SWAPPED, source="python")])
assert get_event.sync(str(one.event_id), client=client) == one
print(*(event.kind for event in query_events.sync(client=client, source="python")))
"""


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[ServerProcess]:
    chain = f"clients.{secrets.token_hex(4)}"
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as started:
        yield started


@pytest.fixture
def document(server: ServerProcess, tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_bytes(server.get("/openapi.json").content)
    return path


def run(*command: str | Path, cwd: Path) -> str:
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=100, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "warn" not in said.lower(), said
    return done.stdout


def test_a_python_client_is_made_without_a_warning_and_works(
    server: ServerProcess, document: Path, tmp_path: Path
) -> None:
    generate = ("openapi-python-client", "generate", "--path", document, "--meta", "none", "--output-path", "made")
    run(*generate, cwd=tmp_path)
    assert run(sys.executable, "-c", USE_IN_PYTHON, server.url, cwd=tmp_path).split() == ["other", "flag_swapped"]


def test_a_typescript_client_is_made_without_a_warning_and_works(
    server: ServerProcess, document: Path, tmp_path: Path
) -> None:
    if os.environ.get("AUDIT_STREAM_TEST_NPM") != "1":
        pytest.skip("it installs packages with npm: `make clients`")
    assert shutil.which("npm"), "node and npm are not installed"
    shutil.copytree(TYPESCRIPT, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    run("npm", "ci", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts", cwd=tmp_path)
    tools = tmp_path / "node_modules/.bin"
    run(tools / "openapi-typescript", document, "-o", "schema.d.ts", cwd=tmp_path)
    run(tools / "tsc", "--strict", "--target", "es2022", "--module", "nodenext", "client.ts", cwd=tmp_path)
    read = json.loads(run("node", "client.js", server.url, cwd=tmp_path))
    assert read == {"kinds": ["other", "flag_swapped"], "refused": ["source"]}
