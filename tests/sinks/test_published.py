"""What the published audit-event-system calls by name: its Purview lines, views and function."""

from typing import Any

from audit_stream.sinks import purview
from audit_stream.sinks.postgres import schema
from audit_stream.sinks.record import record_of
from tests.postgres.servers import Database, Postgres
from tests.sinks.chains import AUDITED, an_event, chained, fill, folder_sink, lines_in, numbered
from tests.sinks.test_table import rows, write

EVENT = an_event(AUDITED)
BODIES: list[dict[str, Any]] = [
    AUDITED,
    {},
    {"status": "denied", "trust_score": 1, "args": [1, "é"], "actor": "bob", "bypass_llm": True},
    {"purview_compatible": False},
]


def test_a_purview_line_has_the_published_names_by_default(tmp_path: Any) -> None:
    fill(folder_sink("purview", tmp_path), [EVENT])
    ((name, (line,)),) = lines_in(tmp_path).items()
    assert name == "audit_20260516.jsonl"
    properties = line.pop("properties")
    assert line == {
        "time": "2026-05-16T01:59:59.500000Z",
        "operationName": "query.execute",
        "category": "FederatedQuery",
        "correlationId": "corr-1",
        "resultType": "Success",
        "resultSignature": "sig-1",
        "durationMs": 12.5,
        "callerIpAddress": "192.0.2.7",
        "identity": {
            "claim": [
                {
                    "typ": "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn",
                    "val": "alice@example.com@local",
                }
            ]
        },
    }
    assert properties == {
        "resource": "SELECT 1",
        "command": "SELECT 1",
        "args": AUDITED["args"],
        "clientApp": "forge",
        "schemaVersion": "1.0",
        "auditId": AUDITED["audit_id"],
        "tenantId": AUDITED["tenant_id"],
        "federatedSource": "partner-a",
        "bypassLLM": False,
        "queryIntent": "report",
        "trustScore": 0.92,
        # What the published lines do not have: the rest of the event, and the way back to it.
        "metadata": AUDITED["metadata"],
        "kind": "other",
        "source": "forge",
        "event_id": 1,
        "hash": EVENT.hash.decode(),
    }


def test_each_format_has_files_and_a_cursor_of_its_own(tmp_path: Any) -> None:
    for format in ("published", "azure", "o365"):
        fill(folder_sink("purview", tmp_path, PURVIEW_FORMAT=format), numbered(2))
    assert [name.partition("_")[0] for name in lines_in(tmp_path)] == ["audit", "azure", "o365"]
    assert sorted(path.name for path in (tmp_path / "purview").glob("*.cursor")) == [
        "audit.cursor",
        "azure.cursor",
        "o365.cursor",
    ]


def test_the_function_gives_the_newest_lines_of_the_files_first(database: Database) -> None:
    events = chained([(body, "request_denied", "café", f"2026-05-1{day}T03:14:15Z") for day, body in enumerate(BODIES)])
    write(database, events, tenant_id="t-1")
    lines = [line for event in events if (line := purview.published(record_of(event, "t-1")))]
    lines.sort(key=lambda line: line["time"], reverse=True)
    found = rows(database, "SELECT purview_json FROM audit_events.export_purview_logs(limit_count => 5)")
    assert [row["purview_json"] for row in found] == lines
    assert len(rows(database, "SELECT * FROM audit_events.export_purview_logs(2)")) == 2
    seen = rows(database, "SELECT purview_log FROM audit_events.purview_audit_log")
    assert sorted(row["purview_log"]["time"] for row in seen) == sorted(line["time"] for line in lines)


def test_the_summary_has_a_row_for_each_actor_under_the_published_names(database: Database) -> None:
    bodies = [("a", "x", "success", 0.5), ("a", "y", "failed", 0.7), ("b", "x", "ok", None)]
    payloads = [
        {"actor": actor, "client_app": app, "status": status, "trust_score": score, "bypass_llm": app == "y"}
        for actor, app, status, score in bodies
    ]
    write(database, chained([(body, "other", "s", "2026-05-15T03:14:15Z") for body in payloads]))
    found = rows(database, "SELECT * FROM audit_events.trust_summary ORDER BY actor")
    assert list(found[0])[:7] == [
        "actor",
        "total_operations",
        "avg_trust_score",
        "successful_ops",
        "failed_ops",
        "llm_bypassed",
        "last_activity",
    ]
    assert [list(row.values())[:6] for row in found] == [["a", 2, 0.6, 1, 1, 1], ["b", 1, None, 1, 0, 0]]


def test_a_table_of_version_1_is_brought_up_to_date_with_its_rows(postgres: Postgres) -> None:
    database = postgres.database("version_1")
    first = f"{schema.MIGRATIONS[1]}; INSERT INTO audit_events.migrations (version) VALUES (1)"
    applied = "applied_at timestamptz NOT NULL DEFAULT now()"
    made = f"CREATE TABLE audit_events.migrations (version integer PRIMARY KEY, {applied})"
    database.run(f"CREATE SCHEMA audit_events; {made}; {first}")
    assert schema.init(database.url) == (1, schema.NEWEST)
    write(database, [EVENT])
    azure = rows(database, 'SELECT export_azure_logs AS line FROM audit_events.export_azure_logs("limit" => 1)')
    assert [row["line"] for row in azure] == [purview.azure(record_of(EVENT))]
