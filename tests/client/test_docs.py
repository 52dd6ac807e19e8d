"""docs/client.md says what the code does, and its examples run."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

from audit_stream.client import AuditClient, asynchronous, requests
from tests.client.test_faces import methods
from tests.harness import ROOT, ServerProcess, clean_environ

PAGE = (ROOT / "docs" / "client.md").read_text()


def first_cells(section: str) -> list[str]:
    table = re.split(r"^##+ ", PAGE.partition(f"\n## {section}\n")[2], maxsplit=1, flags=re.M)[0]
    return re.findall(r"^\| `(\w+)", table, flags=re.M)


def test_the_examples_run_as_they_stand(server: ServerProcess, tmp_path: Path) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    assert len(examples) == 4
    for example in examples:
        code = example.replace("http://localhost:8093", server.url)
        assert code != example
        subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=clean_environ(), check=True)
    assert server.get("/stats").json()["count"] == 5
    assert (tmp_path / "audit-spool.jsonl").exists()


def test_every_argument_is_in_the_table_with_its_default() -> None:
    assert first_cells("Settings") == list(inspect.signature(AuditClient.__init__).parameters)[1:]
    assert f"| `timeout_s` | {asynchronous.TIMEOUT_S:.0f} |" in PAGE
    assert f"| {asynchronous.PATIENCE_S:.0f}, with a spool {asynchronous.SPOOL_PATIENCE_S:.0f} |" in PAGE
    assert f"up to {requests.BATCH_EVENTS:,} events and {requests.BATCH_BYTES >> 20} MiB" in PAGE


def test_every_method_is_in_the_table() -> None:
    table = first_cells("What each method promises")
    assert set(methods(AuditClient)) - {"close"} <= set(table)
