"""The sink `trust`: who did what, with which trust score."""

from typing import Any

from audit_stream.sinks.record import Record


def fields(record: Record) -> dict[str, Any]:
    return {
        "timestamp": record.time_text,
        "audit_id": record.audit_id,
        "correlation_id": record.correlation_id,
        "operation": record.operation,
        "status": record.status,
        "trust_score": record.trust_score,
        "actor": record.actor,
        "command": record.command,
        "args": record.args,
        # Where the proof is; and by it the file tells what it holds.
        "event_id": record.event.event_id,
        "hash": record.event.hash.decode(),
    }
