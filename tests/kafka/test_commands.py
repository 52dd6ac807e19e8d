"""audit-stream kafka on the command line: putting dead letters back, and what is wrong with settings."""

import importlib.util
import json
import sys
from collections.abc import Callable

import msgspec
import pytest

from audit_stream.cli import main
from audit_stream.cli.kafka import consumer as audit_consumer
from audit_stream.errors import Misconfigured
from audit_stream.sinks.settings import SinkSettings
from audit_stream.sources.kafka.settings import PUBLISHED, VARIABLES, KafkaSettings
from tests.harness import running_server
from tests.kafka.cluster import MockCluster
from tests.kafka.consumers import audit_event, consuming, environ_of, events_of, first_events

Say = Callable[..., tuple[int, str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run `audit-stream kafka …` in this process; exit code, and all that was printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["audit-stream", "kafka", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


@pytest.mark.parametrize("dlq_format", ["connect", "json"])
def test_dead_letters_that_are_put_back_reach_the_chain_once_with_their_own_time(
    cluster: MockCluster, redis_url: str, say: Say, monkeypatch: pytest.MonkeyPatch, dlq_format: str
) -> None:
    topic = cluster.topic()
    for name, value in environ_of(cluster, topic, "").items():
        monkeypatch.setenv(name, value)
    late = msgspec.json.encode({"kind": "query_executed", "source": topic, "payload": {"n": 1}})
    cluster.put(topic, late, b"garbage", audit_event(0, topic), timestamp=1_771_285_512_345)
    spine = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": topic}
    with running_server(**spine) as server, consuming(cluster, topic, server.url, KAFKA_DLQ_FORMAT=dlq_format):
        first_events(server.url, 1, topic)
    code, text = say("replay-dlq", "--dry-run")
    shown = [json.loads(line) for line in text.splitlines()]
    assert (code, [letter["value"] for letter in shown]) == (0, [late.decode(), "garbage"])
    assert "'query_executed' is not a kind" in shown[0]["reason"]

    assert say("replay-dlq", "--limit", "1") == (0, '{"put_back":1}\n')
    assert say("replay-dlq") == (0, '{"put_back":1}\n')
    assert say("replay-dlq") == (0, '{"put_back":0}\n')
    assert say("replay-dlq", "--all") == (0, '{"put_back":2}\n')  # once more: stored once all the same
    with (
        running_server(**spine, AUDIT_STREAM_KINDS="query_executed") as server,
        consuming(cluster, topic, server.url, KAFKA_DLQ_FORMAT=dlq_format) as consumer,
    ):
        consumer.log.wait_for("goes to the DLQ", times=2)  # the garbage, twice
        first_events(server.url, 2, topic)
        cluster.put(topic, audit_event(1, topic))
        first_events(server.url, 3, topic)
        events = events_of(server.url, topic)
    assert [event.kind for event in events] == ["other", "query_executed", "other"]
    assert events[1].timestamp == "2026-02-16T23:45:12.345+00:00"


def test_a_dlq_that_cannot_be_reached_is_said(say: Say, monkeypatch: pytest.MonkeyPatch, cluster: MockCluster) -> None:
    monkeypatch.setattr("audit_stream.sources.kafka.replay.TIMEOUT_S", 0.1)
    monkeypatch.setenv("KAFKA_BROKERS", "127.0.0.1:1")
    code, text = say("replay-dlq")
    assert (code, "forge.audit.query.executed.dlq cannot be read" in text) == (1, True)


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [
        ("KAFKA_BROKERS", "host:port", "KAFKA_BROKERS: 'host:port' is no broker"),
        ("KAFKA_TOPICS", " , ", "names no topic"),
        ("KAFKA_TOPICS", "a,b c", "'b c' is no topic"),
        ("KAFKA_TOPICS", "audit.dlq", "put them back by `replay-dlq`"),
        ("KAFKA_TOPICS", "^audit.(", r"'\^audit.\(' is no pattern"),
        ("KAFKA_ASSIGNMENT", "sticky", "KAFKA_ASSIGNMENT: 'sticky' is neither cooperative-sticky nor made of range"),
        ("KAFKA_ASSIGNMENT", "range,cooperative-sticky", "all members of a group have to share one strategy"),
        ("KAFKA_SOURCES", "payments", "KAFKA_SOURCES: 'payments' is not written like payments=billing"),
        ("KAFKA_SOURCES", "a=b,=c", "KAFKA_SOURCES: '=c' is not written like"),
        ("KAFKA_EVENT_KIND", "Not A Kind", "KAFKA_EVENT_KIND: 'Not A Kind' is no kind"),
        ("KAFKA_DLQ_FORMAT", "xml", "KAFKA_DLQ_FORMAT: 'xml' is not one of connect, json"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL: 'loud' is not one of"),
        ("METRICS_LISTEN", "here", "METRICS_LISTEN: 'here' is no address"),
        ("AUDIT_STREAM_URL", "kafka://x", "AUDIT_STREAM_URL: url: 'kafka://x' is no address"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(variable: str, text: str, complaint: str) -> None:
    with pytest.raises(Misconfigured, match=complaint):
        KafkaSettings.from_env({variable: text})


def test_the_published_names_are_understood() -> None:
    settings = KafkaSettings.from_env(
        {"KAFKA_BROKERS": "a:9092, [::1]:9093", "KAFKA_TOPICS": "x, y,^z\\..*", "AUDIT_STREAM_URL": "http://s/events"}
    )
    assert (settings.brokers, settings.topics) == ("a:9092,[::1]:9093", ("x", "y", "^z\\..*"))
    assert (settings.group, settings.event_kind) == ("audit-consumer", "other")
    assert settings.audit_stream_url == "http://s"


def test_a_topic_may_bring_the_sources_it_is_named_with_and_others_those_of_the_star() -> None:
    named = KafkaSettings.from_env({"KAFKA_SOURCES": "pay=billing, pay=refunds,a.b=x,*=cli"})
    assert named.sources_of("pay") == frozenset({"billing", "refunds"})
    assert (named.sources_of("a.b"), named.sources_of("another")) == (frozenset({"x"}), frozenset({"cli"}))
    some = KafkaSettings.from_env({"KAFKA_SOURCES": "pay=billing"})
    assert some.sources_of("another") is None
    assert KafkaSettings.from_env({}).sources_of("pay") is None


class Started:
    """Stands for the consumer: what it was made with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[KafkaSettings, SinkSettings]] = []
        command = sys.modules["audit_stream.cli.kafka"]  # the package has the command under that name
        monkeypatch.setattr(command, "run_until_told", lambda made: made())
        monkeypatch.setattr(
            "audit_stream.sources.kafka.consumer.AuditConsumer", lambda *settings: self.made.append(settings)
        )
        for name in VARIABLES | PUBLISHED:
            monkeypatch.delenv(name, raising=False)
        self._patch = monkeypatch

    def __call__(self, program: Callable[[], object], *arguments: str) -> tuple[KafkaSettings, SinkSettings]:
        self._patch.setattr("sys.argv", ["/bin/audit-stream", *arguments])
        with pytest.raises(SystemExit) as ended:
            program()
        assert not ended.value.code
        return self.made.pop()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    return Started(monkeypatch)


def test_audit_consumer_with_nothing_set_has_the_published_defaults_and_says_so(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    kafka, sinks = started(audit_consumer)
    assert (kafka.brokers, kafka.topics, kafka.group) == (
        "localhost:19092",
        ("forge.audit.query.executed",),
        "audit-consumer",
    )
    assert kafka.assignment == "range,roundrobin"
    assert (sinks.database_url, sinks.tenant_id) == ("postgresql://localhost:5432/forge", "spel-local-forge")
    assert (str(sinks.log_dir), sinks.sinks) == ("/logs", ("postgres", "purview", "trust"))
    (said,) = [record.getMessage() for record in caplog.records if "published daemon" in record.getMessage()]
    assert all(f"{name}={text}" in said for name, text in PUBLISHED.items())


def test_audit_consumer_keeps_what_is_set_and_goes_without_what_is_set_to_nothing(
    started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, text in {"KAFKA_BROKERS": "b:1", "DATABASE_URL": "", "LOG_DIR": "", "TENANT_ID": "t"}.items():
        monkeypatch.setenv(name, text)
    kafka, sinks = started(audit_consumer)
    assert (kafka.brokers, sinks.sinks, sinks.tenant_id) == ("b:1", (), "t")
    assert "hold: KAFKA_ASSIGNMENT=range,roundrobin." in caplog.text


def test_audit_consumer_asks_for_no_table_where_there_is_no_driver(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "psycopg" else find(name))
    _, sinks = started(audit_consumer)
    assert sinks.sinks == ("purview", "trust")


def test_audit_stream_kafka_with_nothing_set_only_brings_records_to_the_chain(
    started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    kafka, sinks = started(main, "kafka")
    assert (kafka.brokers, kafka.assignment, sinks.sinks) == ("localhost:9092", "cooperative-sticky", ())
    assert "published" not in caplog.text


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nonsense", "line 2: write it like"),
        ("partition.assignment.strategy=range", "KAFKA_ASSIGNMENT says that"),
        ("enable.auto.commit=true", "line 2: enable.auto.commit is not for you"),
    ],
)
def test_a_property_that_breaks_the_promise_is_refused(
    tmp_path_factory: pytest.TempPathFactory, line: str, complaint: str
) -> None:
    path = tmp_path_factory.mktemp("config") / "kafka.properties"
    path.write_text(f"# comment\n{line}\n")
    with pytest.raises(Misconfigured, match=complaint):
        KafkaSettings.from_env({"KAFKA_CONFIG": str(path)})
