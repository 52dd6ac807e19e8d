"""docs/kafka.md says what the code does."""

import re

from audit_stream.event import PublishRequest
from audit_stream.sources.kafka import consumer, lanes
from audit_stream.sources.kafka.letters import Letter, headers_of
from audit_stream.sources.kafka.metrics import Metrics
from audit_stream.sources.kafka.records import ORIGIN, AuditEvent, Record
from audit_stream.sources.kafka.settings import PUBLISHED, VARIABLES
from tests.harness import ROOT

PAGE = (ROOT / "docs" / "kafka.md").read_text()


def section(title: str) -> str:
    return re.split(r"^##+ ", re.split(rf"^##+ {title}\n", PAGE, flags=re.M)[1], maxsplit=1, flags=re.M)[0]


def test_the_table_of_variables_is_the_code_s() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section("Settings"), flags=re.M)
    assert rows == [(name, variable.default or "–", variable.help) for name, variable in VARIABLES.items()]


def test_the_table_of_published_defaults_is_the_code_s() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|$", section("Coming from the published daemon"), flags=re.M)
    assert dict(rows) == PUBLISHED


def test_the_table_of_metrics_is_the_code_s() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|$", section("Metrics"), flags=re.M)
    collected = [
        (f"{family.name}_total" if family.type == "counter" else family.name, family.documentation)
        for family in Metrics().registry.collect()
    ]
    assert sorted(rows) == sorted(collected)


def test_every_field_of_both_kinds_of_record_is_named() -> None:
    named = set(re.findall(r"`(\w+)`", section("What a record is")))
    assert named >= set(AuditEvent.__struct_fields__) | set(PublishRequest.__struct_fields__)
    rows = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", section("What a record is"), flags=re.M))))
    assert rows == set(AuditEvent.__struct_fields__)


def test_every_header_of_a_dead_letter_is_named() -> None:
    letter = Letter(Record("t", 0, 1, 1, None, b"", []), "why", "decoding")
    for name, _ in headers_of(letter, group="g", cluster="c", dlq_format="connect"):
        if name.startswith("__connect.errors."):
            assert f"{name.removeprefix('__connect.errors')}`" in PAGE
    assert f"`{ORIGIN}`" in PAGE


def test_the_numbers_on_the_page_are_the_code_s() -> None:
    text = re.sub(r"\s+", " ", PAGE)
    assert f"for {consumer.GRACE_S:.0f} seconds at most" in text
    assert lanes.LANES == 3
    assert f"at most three batches of {lanes.BATCH_EVENTS:,} records" in text
