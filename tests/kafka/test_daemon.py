"""The whole way, as the README shows it: from a Kafka record to the chain, a row, and lines for compliance teams."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from tests.harness import ROOT, ServerProcess, clean_environ
from tests.kafka.cluster import MockCluster
from tests.postgres.conftest import postgres, server_of
from tests.postgres.servers import Postgres

__all__ = ["postgres", "server_of"]

README = (ROOT / "README.md").read_text()
TOPIC = "forge.audit.query.executed"


def lines_of(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for path in (folder / name).glob("*.jsonl") for line in path.read_text().splitlines()]


def test_the_readme_s_commands_lead_from_a_kafka_record_to_event_row_and_lines(
    cluster: MockCluster, postgres: Postgres, server: ServerProcess, tmp_path: Path
) -> None:
    section = README.partition("\n## Kafka as a producer\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^    (.+)$", section, flags=re.M)
    assert len(commands) == 5
    database = postgres.database("daemon")
    named = {"KAFKA_BROKERS": cluster.brokers, "DATABASE_URL": database.url, "LOG_DIR": str(tmp_path)}
    assert re.findall(r"(\w+)=\S+", commands[0]) == list(named)
    environ = clean_environ(AUDIT_STREAM_URL=server.url, METRICS_LISTEN="off", NO_COLOR="1", **named)
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ["PATH"]])
    cluster.make_topic(TOPIC)
    typed = subprocess.Popen(
        ["bash", "-ec", "\n".join(commands[1:])],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        assert typed.stdout
        said = (msgspec.json.decode(line) for line in typed.stdout if line.startswith("{"))
        event = next(found for found in said if "event_id" in found)
        audit_id = event["payload"]["audit_id"]
        select = "SELECT audit_id::text, operation, actor FROM audit_events.events"
        while not (rows := database.run(select)) or not all(lines_of(tmp_path, name) for name in ("purview", "trust")):
            pass
    finally:
        os.killpg(typed.pid, signal.SIGTERM)  # the daemon and the tail
        typed.wait(30)
        typed.stdout.close() if typed.stdout else None
    assert (event["kind"], event["source"]) == ("other", TOPIC)
    assert rows == [(audit_id, "ritual.query", "alice")]
    (purview,) = lines_of(tmp_path, "purview")
    (trust,) = lines_of(tmp_path, "trust")
    assert (purview["operationName"], trust["audit_id"], trust["actor"]) == ("ritual.query", audit_id, "alice")
    assert server.verify()["valid"]
