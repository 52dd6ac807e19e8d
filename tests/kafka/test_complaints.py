"""An outage does not flood the log: each cause is logged at once, and then once a minute."""

import logging

import pytest

from audit_stream.sources.kafka.complaints import Complaints, cause_of
from audit_stream.sources.kafka.metrics import Metrics
from tests.kafka.cluster import MockCluster
from tests.kafka.consumers import consuming

FAIL = "FAIL [rdkafka#consumer-%d] [thrd:b:1/bootstrap]: b:1/bootstrap: Connect to ipv4#10.0.0.1:1 failed: refused"


def test_a_cause_is_logged_at_once_and_then_once_a_minute_with_how_often(caplog: pytest.LogCaptureFixture) -> None:
    now = [1_000.0]
    complaints = Complaints(lambda: now[0])
    for _ in range(100):
        complaints.warn("kafka: it is away")
        complaints.warn("kafka: it refuses the password")
        now[0] += 0.5
    assert [record.getMessage() for record in caplog.records] == [
        "kafka: it is away",
        "kafka: it refuses the password",
    ]
    now[0] += 10
    complaints.warn("kafka: it is away")
    assert caplog.records[-1].getMessage() == "kafka: it is away (99 more like this since)"
    now[0] += 60
    complaints.warn("kafka: it is away")
    assert caplog.records[-1].getMessage() == "kafka: it is away"


def test_one_failed_connection_is_one_cause_whichever_client_reports_it_and_how() -> None:
    reports = [
        f"{FAIL % 1} (after 0ms in state CONNECT)",
        f"{FAIL % 2} (after 12ms in state CONNECT, 30 identical error(s) suppressed)",
        "kafka: b:1/bootstrap: Connect to ipv4#10.0.0.1:1 failed: refused (after 3ms in state CONNECT)",
    ]
    assert len({cause_of(report) for report in reports}) == 1
    assert cause_of(reports[0]) != cause_of(reports[0].replace("refused", "timed out"))
    assert cause_of(reports[0]) != cause_of(reports[0].replace("b:1/", "c:1/"))


def test_what_librdkafka_is_told_of_the_other_s_properties_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    complaints.log(
        logging.WARNING, "%s [%s] %s", "CONFWARN", "rdkafka#producer-1", "session.timeout.ms is a consumer's"
    )
    complaints.log(logging.WARNING, "%s [%s] %s", "SESSTMOUT", "rdkafka#consumer-1", "session timed out")
    assert [record.getMessage() for record in caplog.records] == ["SESSTMOUT [rdkafka#consumer-1] session timed out"]


def test_while_kafka_is_unavailable_each_cause_is_one_line(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    monkeypatch.setattr("audit_stream.sources.kafka.consumer.Metrics", lambda: metrics)
    with consuming(cluster, "t", "http://127.0.0.1:1", KAFKA_BROKERS="127.0.0.1:1,127.0.0.1:2"):
        while metrics.failures.labels("kafka")._value.get() < 12:
            pass
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name in ("audit_stream.kafka", "audit_stream.librdkafka") and record.levelno >= logging.WARNING
    ]
    assert lines
    assert len(lines) == len({cause_of(line) for line in lines}) <= 3
