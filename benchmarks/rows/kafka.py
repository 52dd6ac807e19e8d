"""From Kafka to the chain: audit events of a topic, by one audit-consumer. The cluster is librdkafka's mock."""

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.processes import STOP_S, a_valkey, our_server
from benchmarks.session import Session
from benchmarks.table import Line, Target
from tests.harness import ServerProcess
from tests.kafka.cluster import MockCluster, a_cluster

# The mock keeps 5 MB of a partition.
PARTITIONS = 8
MOST_RECORDS = 20_000
LOOK_S = 0.02


def to_the_chain(session: Session) -> list[Line]:
    records = min(MOST_RECORDS, session.scale.chain_events)
    with a_cluster() as cluster, a_valkey() as valkey, our_server(valkey) as server:
        rates = session.take_turns({"ours": lambda: _rate(cluster, server, records)})["ours"]
    note = f"{records:,} records in {PARTITIONS} partitions, read from the start; the cluster shares the cores too"
    return [
        Line("Kafka to chain, one audit-consumer", "records/s", rates, target=Target("≥", 20_000, "value"), note=note)
    ]


def _rate(cluster: MockCluster, server: ServerProcess, records: int) -> float:
    topic = cluster.topic(PARTITIONS)
    for number in range(records):
        cluster.put(topic, _record(number), partition=number % PARTITIONS, wait=number % 10_000 == 0)
    cluster.put(topic)
    before = _count(server)
    environ = {
        "KAFKA_BROKERS": cluster.brokers,
        "KAFKA_TOPICS": topic,
        "KAFKA_GROUP_ID": topic,  # one of its own: the mock would wait for the members of the round before
        "AUDIT_STREAM_URL": server.url,
        "METRICS_LISTEN": "off",
        "DATABASE_URL": "",  # `audit-consumer` would write to those of the published daemon
        "LOG_DIR": "",
        "LOG_LEVEL": "WARNING",
    }
    consumer = subprocess.Popen([Path(sys.executable).with_name("audit-consumer")], env={**os.environ, **environ})
    try:
        # From the first records that are seen on the chain on: how long a start takes is another matter.
        first, began = before, time.perf_counter()
        while (now := _count(server)) < before + records:
            if first == before:
                first, began = now, time.perf_counter()
            time.sleep(LOOK_S)
        took = time.perf_counter() - began
    finally:
        consumer.terminate()
        consumer.wait(STOP_S)
    return (before + records - first) / took


def _count(server: ServerProcess) -> int:
    count: int = server.get("/stats").json()["count"]
    return count


def _record(number: int) -> bytes:
    """An audit event as the published handlers send it."""
    return msgspec.json.encode(
        {
            "audit_id": f"7f9c24e8-3b12-4d5a-9c1e-{os.getpid() % 10_000:04}{number:08}{time.monotonic_ns()}",
            "correlation_id": "0a1b2c3d-0000-4000-8000-000000000001",
            "timestamp": "2026-02-16T23:45:12.345Z",
            "operation": "ritual.query",
            "command": "query",
            "args": "what's next",
            "actor": "somebody",
            "status": "Success",
            "duration_ms": 58,
            "trust_score": 0.8,
            "metadata": {},
        }
    )
