"""What an event says in the fields of the compliance formats."""

from typing import Any

import pytest

from audit_stream.sinks.record import Record, record_of
from tests.sinks.chains import AUDITED, an_event


def record(payload: dict[str, Any], **event: str) -> Record:
    return record_of(an_event(payload, **event))


def test_an_audit_event_says_each_field_itself() -> None:
    found = record(AUDITED)._asdict()
    for name in AUDITED.keys() - {"timestamp"}:
        assert found[name] == AUDITED[name], name
    assert record(AUDITED).time_text == "2026-05-16T01:59:59.500000Z"
    assert found["result"] == "Success"


def test_any_other_event_has_defaults() -> None:
    event = an_event(
        {"decision_id": "DEC-1"}, kind="decision_card_signed", source="api", at="2026-05-15T01:00:00+02:00"
    )
    found = record_of(event, "tenant-1")
    assert found._asdict() == {
        "event": event,
        "time": found.time,
        "audit_id": "1",
        "correlation_id": None,
        "operation": "decision_card_signed",
        "command": None,
        "args": None,
        "actor": None,
        "status": "success",
        "result": "Success",
        "duration_ms": None,
        "result_signature": None,
        "client_app": "api",
        "trust_score": None,
        "purview_compatible": True,
        "metadata": {"decision_id": "DEC-1"},
        "caller_ip_address": None,
        "federated_source": None,
        "query_intent": None,
        "bypass_llm": None,
        "schema_version": None,
        "tenant_id": "tenant-1",
    }
    assert found.time_text == "2026-05-14T23:00:00.000000Z"


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("request_denied", "Failure"),
        ("contract_compatibility_failed", "Failure"),
        ("attestation_tampered", "Failure"),
        ("tool_invocation_required_approval", "Pending"),
        ("request_allowed", "Success"),
    ],
)
def test_without_a_status_the_kind_tells_the_result(kind: str, result: str) -> None:
    assert record({}, kind=kind).result == result


@pytest.mark.parametrize(
    ("status", "result"), [("FAILED", "Failure"), ("in_progress", "Pending"), ("ok", "Success"), ("odd", "odd")]
)
def test_a_status_of_its_own_goes_before_the_kind(status: str, result: str) -> None:
    found = record({"status": status}, kind="request_denied")
    assert (found.status, found.result) == (status, result)


def test_what_a_field_cannot_hold_stands_in_the_metadata() -> None:
    wrong = {"duration_ms": "long", "trust_score": True, "bypass_llm": "no", "timestamp": "yesterday", "metadata": [1]}
    found = record(wrong)
    assert found.metadata == wrong
    assert (found.duration_ms, found.trust_score, found.bypass_llm) == (None, None, None)
    assert found.time_text == "2026-05-15T03:14:15.123000Z"


def test_other_fields_join_the_metadata_unless_they_would_hide_some() -> None:
    assert record({"metadata": {"a": 1}, "b": 2}).metadata == {"a": 1, "b": 2}
    assert record({"metadata": {"b": 1}, "b": 2}).metadata == {"metadata": {"b": 1}, "b": 2}


def test_a_text_field_that_holds_something_else_says_it_in_json() -> None:
    found = record({"actor": {"id": 7}, "audit_id": 42, "command": ""})
    assert (found.actor, found.audit_id, found.command) == ('{"id":7}', "42", None)


def test_who_changed_a_row_of_a_watched_table_is_the_actor() -> None:
    assert record({"db_user": "app"}).actor == "app"
    assert record({"db_user": "app", "actor": "alice"}).actor == "alice"


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-05-15T23:30:00", "2026-05-15T23:30:00.000000Z"),
        ("2026-12-31T23:59:60Z", "2026-12-31T23:59:59.000000Z"),
        ("0001-01-01T00:00:00+01:00", "2026-05-15T03:14:15.123000Z"),
        ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_times_become_utc(text: str, time: str) -> None:
    assert record({"timestamp": text}).time_text == time


def test_a_lone_surrogate_in_an_older_chain_is_read_as_it_is() -> None:
    event = an_event({})._replace(payload=rb'{"actor":"\ud800","metadata":{"n":123456789012345678901234567890}}')
    found = record_of(event)
    assert (found.actor, found.metadata) == ("\ud800", {"n": 123456789012345678901234567890})


def test_of_the_published_payloads_nothing_is_lost(vectors: dict[str, list[dict[str, Any]]]) -> None:
    for vector in vectors["events"]:
        payload = vector["event"]["payload"]
        found = record(payload)
        # Those that name a field of the schema say it there.
        assert found.metadata == {name: value for name, value in payload.items() if name not in found._fields}
