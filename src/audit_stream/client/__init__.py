"""AuditClient: append, query, follow and verify over HTTP. It imports nothing of the server."""

from audit_stream.client.asynchronous import AsyncAuditClient
from audit_stream.client.models import (
    Capacity,
    Drained,
    Event,
    Head,
    LastVerdict,
    Pin,
    Receipt,
    Spooled,
    Stats,
    Verdict,
    check,
)
from audit_stream.client.synchronous import AuditClient

__all__ = [
    "AsyncAuditClient",
    "AuditClient",
    "Capacity",
    "Drained",
    "Event",
    "Head",
    "LastVerdict",
    "Pin",
    "Receipt",
    "Spooled",
    "Stats",
    "Verdict",
    "check",
]
