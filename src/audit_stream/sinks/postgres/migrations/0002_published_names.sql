-- What the published audit-event-system calls by these names, for queries and reports that were written for it.

-- The newest column is the line of the sink `purview` in its default format. Those before it are of --format azure.
CREATE OR REPLACE VIEW audit_events.purview_audit_log AS
SELECT
    event_id,
    to_char("timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS "time",
    operation AS "operationName",
    'Audit'::text AS category,
    correlation_id AS "correlationId",
    result_type AS "resultType",
    result_signature AS "resultSignature",
    duration_ms AS "durationMs",
    caller_ip_address AS "callerIpAddress",
    json_build_object('claim', (
        SELECT json_agg(json_build_object('typ', typ, 'val', val))
        FROM (VALUES ('name', actor), ('appid', client_app), ('tid', tenant_id)) AS claims (typ, val)
        WHERE val IS NOT NULL
    )) AS identity,
    json_build_object(
        'audit_id', audit_id,
        'status', status,
        'command', command,
        'args', args,
        'actor', actor,
        'client_app', client_app,
        'trust_score', trust_score,
        'tenant_id', tenant_id,
        'federated_source', federated_source,
        'query_intent', query_intent,
        'bypass_llm', bypass_llm,
        'schema_version', schema_version,
        'metadata', metadata,
        'kind', kind,
        'source', source,
        'event_id', event_id,
        'hash', hash
    ) AS properties,
    jsonb_build_object(
        'time', to_char("timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        'operationName', operation,
        'category', 'FederatedQuery',
        'correlationId', correlation_id,
        'resultType', result_type,
        'resultSignature', result_signature,
        'durationMs', duration_ms,
        'callerIpAddress', caller_ip_address,
        'identity', jsonb_build_object('claim', CASE WHEN actor IS NULL THEN '[]'::jsonb ELSE jsonb_build_array(
            jsonb_build_object(
                'typ', 'http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn', 'val', actor || '@local'
            )
        ) END),
        'properties', jsonb_build_object(
            'resource', command,
            'command', command,
            'args', args,
            'clientApp', client_app,
            'schemaVersion', schema_version,
            'auditId', audit_id,
            'tenantId', tenant_id,
            'federatedSource', federated_source,
            'bypassLLM', bypass_llm,
            'queryIntent', query_intent,
            'trustScore', trust_score,
            'metadata', metadata,
            'kind', kind,
            'source', source,
            'event_id', event_id,
            'hash', hash
        )
    ) AS purview_log
FROM audit_events.events
WHERE purview_compatible;

-- One row for each actor, under the published names and then under ours.
ALTER VIEW audit_events.trust_summary RENAME TO trust_by_application;
CREATE VIEW audit_events.trust_summary AS
SELECT
    actor,
    count(*) AS total_operations,
    avg(trust_score) AS avg_trust_score,
    count(*) FILTER (WHERE result_type = 'Success') AS successful_ops,
    count(*) FILTER (WHERE result_type = 'Failure') AS failed_ops,
    count(*) FILTER (WHERE bypass_llm) AS llm_bypassed,
    max("timestamp") AS last_activity,
    count(trust_score) AS scored,
    min(trust_score) AS lowest_trust_score,
    max(trust_score) AS highest_trust_score,
    min("timestamp") AS first_activity
FROM audit_events.events
GROUP BY actor
ORDER BY last_activity DESC;

-- What export_purview_logs("limit") was in version 1: the newest lines of --format azure, oldest first.
ALTER FUNCTION audit_events.export_purview_logs(integer) RENAME TO export_azure_logs;

-- The newest lines of the default format, newest first, as the published function gives them.
CREATE FUNCTION audit_events.export_purview_logs(limit_count integer DEFAULT 100) RETURNS TABLE (purview_json jsonb)
LANGUAGE sql STABLE AS $$
    SELECT purview_log FROM audit_events.purview_audit_log ORDER BY "time" DESC, event_id DESC LIMIT limit_count
$$;
