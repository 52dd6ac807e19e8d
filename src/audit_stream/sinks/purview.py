"""The sink `purview`, in one of three shapes. All are formats: what a tenant takes in is a matter of its connector.

published   the names that the published audit-event-system writes and calls Purview-compatible
azure       the top level of Azure Monitor's resource logs, which the published shape resembles
o365        the common schema of the Office 365 Management Activity API, which is how Purview's own audit log is read

An event that says `"purview_compatible": false` is left out. All that has no field of its own in a shape stands in
`properties`, the event_id and the hash of the event among it.
"""

from typing import Any, Literal
from uuid import UUID

from audit_stream.sinks.record import Record

Format = Literal["published", "azure", "o365"]

CATEGORY = "Audit"
PUBLISHED_CATEGORY = "FederatedQuery"
UPN = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn"
NO_TENANT = "00000000-0000-0000-0000-000000000000"
# The enumeration AuditLogRecordType has no number for what is no product of Microsoft's.
RECORD_TYPE = 0
# The enumeration UserType.
REGULAR, APPLICATION = 0, 5
_O365_RESULTS = {"Success": "Succeeded", "Failure": "Failed"}


def published(record: Record) -> dict[str, Any] | None:
    """Name every field as the published system does, and add to its properties what leads back to the event.

    It invents no values: what an event does not say is null, where the published system wrote a default.
    """
    if not record.purview_compatible:
        return None
    return {
        **_top_level(record, PUBLISHED_CATEGORY),
        "identity": {"claim": [{"typ": UPN, "val": f"{record.actor}@local"}] if record.actor else []},
        "properties": {
            "resource": record.command,
            "command": record.command,
            "args": record.args,
            "clientApp": record.client_app,
            "schemaVersion": record.schema_version,
            "auditId": record.audit_id,
            "tenantId": record.tenant_id,
            "federatedSource": record.federated_source,
            "bypassLLM": record.bypass_llm,
            "queryIntent": record.query_intent,
            "trustScore": record.trust_score,
            "metadata": record.metadata,
            **_origin(record),
        },
    }


def azure(record: Record) -> dict[str, Any] | None:
    if not record.purview_compatible:
        return None
    claims = (("name", record.actor), ("appid", record.client_app), ("tid", record.tenant_id))
    return {
        **_top_level(record, CATEGORY),
        "identity": {"claim": [{"typ": typ, "val": val} for typ, val in claims if val]},
        "properties": _properties(record),
    }


def o365(record: Record) -> dict[str, Any] | None:
    if not record.purview_compatible:
        return None
    who = record.actor or record.client_app
    found = {
        "Id": _guid(record),
        "RecordType": RECORD_TYPE,
        "CreationTime": record.time_text[:19],
        "Operation": record.operation,
        "OrganizationId": record.tenant_id or NO_TENANT,
        "UserType": REGULAR if record.actor else APPLICATION,
        "UserKey": who,
        "UserId": who,
        "ClientIP": record.caller_ip_address or "",
        "Workload": record.client_app,
        "ObjectId": record.command or "",
        "properties": {
            "correlation_id": record.correlation_id,
            "result_signature": record.result_signature,
            "duration_ms": record.duration_ms,
            **_properties(record),
        },
    }
    # A pending one has no result yet, and the schema has no word for it.
    result = _O365_RESULTS.get(record.result)
    return {**found, "ResultStatus": result} if result else found


def _top_level(record: Record, category: str) -> dict[str, Any]:
    return {
        "time": record.time_text,
        "operationName": record.operation,
        "category": category,
        "correlationId": record.correlation_id,
        "resultType": record.result,
        "resultSignature": record.result_signature,
        "durationMs": record.duration_ms,
        "callerIpAddress": record.caller_ip_address,
    }


def _properties(record: Record) -> dict[str, Any]:
    return {
        "audit_id": record.audit_id,
        "status": record.status,
        "command": record.command,
        "args": record.args,
        "actor": record.actor,
        "client_app": record.client_app,
        "trust_score": record.trust_score,
        "tenant_id": record.tenant_id,
        "federated_source": record.federated_source,
        "query_intent": record.query_intent,
        "bypass_llm": record.bypass_llm,
        "schema_version": record.schema_version,
        "metadata": record.metadata,
        **_origin(record),
    }


def _origin(record: Record) -> dict[str, Any]:
    """The event that a line is of; by it the file tells what it holds."""
    return {
        "kind": record.event.kind.decode(),
        "source": record.event.source.decode(),
        "event_id": record.event.event_id,
        "hash": record.event.hash.decode(),
    }


def _guid(record: Record) -> str:
    """The audit_id where it is one; else the first half of the event's hash, which is no other event's."""
    try:
        return str(UUID(record.audit_id))
    except ValueError:
        return str(UUID(record.event.hash[:32].decode()))
