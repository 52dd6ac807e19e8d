"""The lines, field by field."""

import json
from typing import Any
from uuid import UUID

from audit_stream.chain import parse, verify
from audit_stream.sinks import jsonl, purview, trust
from audit_stream.sinks.lines import line_of
from audit_stream.sinks.record import record_of
from tests.sinks.chains import AUDITED, an_event, chained

EVENT = an_event(AUDITED)
RECORD = record_of(EVENT)
SILENT = record_of(an_event({}, kind="tool_invocation_required_approval"))


def test_a_purview_line_is_an_azure_resource_log() -> None:
    line = purview.azure(RECORD)
    assert line
    properties = line.pop("properties")
    assert line == {
        "time": "2026-05-16T01:59:59.500000Z",
        "operationName": "query.execute",
        "category": "Audit",
        "correlationId": "corr-1",
        "resultType": "Success",
        "resultSignature": "sig-1",
        "durationMs": 12.5,
        "callerIpAddress": "192.0.2.7",
        "identity": {
            "claim": [
                {"typ": "name", "val": "alice@example.com"},
                {"typ": "appid", "val": "forge"},
                {"typ": "tid", "val": AUDITED["tenant_id"]},
            ]
        },
    }
    in_the_line = {"correlation_id", "timestamp", "operation", "duration_ms", "result_signature", "caller_ip_address"}
    assert properties.keys() == AUDITED.keys() - in_the_line - {"purview_compatible"} | {
        "kind",
        "source",
        "event_id",
        "hash",
    }
    assert (properties["event_id"], properties["hash"]) == (1, EVENT.hash.decode())
    assert properties["metadata"] == AUDITED["metadata"]


def test_an_o365_line_has_the_common_schema_of_the_management_activity_api() -> None:
    line = purview.o365(RECORD)
    assert line
    properties = line.pop("properties")
    assert line == {
        "Id": AUDITED["audit_id"],
        "RecordType": 0,
        "CreationTime": "2026-05-16T01:59:59",
        "Operation": "query.execute",
        "OrganizationId": AUDITED["tenant_id"],
        "UserType": 0,
        "UserKey": "alice@example.com",
        "UserId": "alice@example.com",
        "ClientIP": "192.0.2.7",
        "Workload": "forge",
        "ObjectId": "SELECT 1",
        "ResultStatus": "Succeeded",
    }
    assert (properties["correlation_id"], properties["event_id"]) == ("corr-1", 1)


def test_an_event_without_an_actor_is_the_application_s_and_a_pending_one_has_no_result() -> None:
    line = purview.o365(SILENT)
    assert line
    assert (line["UserType"], line["UserId"], line["OrganizationId"]) == (5, "forge", purview.NO_TENANT)
    assert "ResultStatus" not in line
    assert UUID(line["Id"]).hex == SILENT.event.hash[:32].decode()


def test_who_is_not_for_purview_is_left_out_of_both_shapes() -> None:
    record = record_of(an_event({"purview_compatible": False}))
    assert purview.azure(record) is None
    assert purview.o365(record) is None


def test_a_trust_line_has_the_published_fields_and_its_proof() -> None:
    assert trust.fields(RECORD) == {
        "timestamp": "2026-05-16T01:59:59.500000Z",
        "audit_id": AUDITED["audit_id"],
        "correlation_id": "corr-1",
        "operation": "query.execute",
        "status": "success",
        "trust_score": 0.92,
        "actor": "alice@example.com",
        "command": "SELECT 1",
        "args": AUDITED["args"],
        "event_id": 1,
        "hash": EVENT.hash.decode(),
    }


def test_jsonl_lines_are_the_events_and_verify(vectors: dict[str, list[dict[str, Any]]]) -> None:
    # The published payloads, which hold every kind of number and text.
    events = chained([(v["event"]["payload"], "other", "café", "2026-05-15T00:00:00Z") for v in vectors["events"]])
    lines = [jsonl.line(event).text for event in events]
    assert verify(map(parse, lines)).checked == len(events) == 47


def test_a_text_without_utf8_is_still_a_line() -> None:
    assert json.loads(line_of({"actor": "\ud800"})) == {"actor": "\ud800"}
