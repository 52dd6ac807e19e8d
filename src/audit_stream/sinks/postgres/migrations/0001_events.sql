-- The events as rows. The newest row is the projection's cursor: rows and cursor cannot disagree.

CREATE TABLE audit_events.events (
    -- One row for each event of the chain, in its order.
    event_id           bigint PRIMARY KEY,
    audit_id           text NOT NULL,
    correlation_id     text,
    "timestamp"        timestamptz NOT NULL,
    operation          text NOT NULL,
    command            text,
    args               jsonb,
    actor              text,
    status             text NOT NULL,
    duration_ms        double precision,
    result_signature   text,
    client_app         text NOT NULL,
    trust_score        double precision,
    purview_compatible boolean NOT NULL,
    metadata           jsonb NOT NULL,
    caller_ip_address  text,
    federated_source   text,
    query_intent       text,
    bypass_llm         boolean,
    schema_version     text,
    tenant_id          text,
    -- Success, Failure or Pending, as the Purview forms say it.
    result_type        text NOT NULL,
    kind               text NOT NULL,
    source             text NOT NULL,
    prev_hash          text NOT NULL,
    hash               text NOT NULL,
    -- The very bytes that were hashed: encode(sha256(canonical), 'hex') = hash.
    canonical          bytea NOT NULL
);

-- Producers choose these texts, of any length: a hash index takes them all, a btree only up to 2,700 bytes.
CREATE INDEX events_audit_id ON audit_events.events USING hash (audit_id);
CREATE INDEX events_correlation_id ON audit_events.events USING hash (correlation_id);
CREATE INDEX events_actor ON audit_events.events USING hash (actor);
CREATE INDEX events_timestamp ON audit_events.events ("timestamp");
CREATE INDEX events_metadata ON audit_events.events USING gin (metadata);

-- What came from elsewhere, by the `federated_source` that events name.
CREATE TABLE audit_events.federated_sources (
    federated_source text PRIMARY KEY,
    events           bigint NOT NULL,
    first_event_id   bigint NOT NULL,
    last_event_id    bigint NOT NULL,
    first_seen       timestamptz NOT NULL,
    last_seen        timestamptz NOT NULL
);

-- Each row one line of the sink `purview`, --format azure.
CREATE VIEW audit_events.purview_audit_log AS
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
    ) AS properties
FROM audit_events.events
WHERE purview_compatible;

-- How far whom can be trusted, by what was seen.
CREATE VIEW audit_events.trust_summary AS
SELECT
    actor,
    client_app,
    count(*) AS events,
    count(*) FILTER (WHERE result_type = 'Failure') AS failures,
    count(trust_score) AS scored,
    avg(trust_score) AS average_trust_score,
    min(trust_score) AS lowest_trust_score,
    max(trust_score) AS highest_trust_score,
    min("timestamp") AS first_seen,
    max("timestamp") AS last_seen
FROM audit_events.events
GROUP BY actor, client_app;

-- The newest lines of purview_audit_log, oldest first, as the sink `purview` writes them.
CREATE FUNCTION audit_events.export_purview_logs("limit" integer DEFAULT 1000) RETURNS SETOF json
LANGUAGE sql STABLE AS $$
    SELECT to_json(line) FROM (
        SELECT "time", "operationName", category, "correlationId", "resultType", "resultSignature", "durationMs",
            "callerIpAddress", identity, properties
        FROM (
            SELECT * FROM audit_events.purview_audit_log ORDER BY event_id DESC LIMIT "limit"
        ) AS newest
        ORDER BY event_id
    ) AS line
$$;

-- What the hashed bytes say of the place in the chain. Within a JSON text quotes are escaped, so the last
-- ,"prev_hash":" is the one that means it. (A regular expression for all of it takes fifty times as long.)
CREATE FUNCTION audit_events.says_its_place(canonical bytea, event_id bigint, kind text, prev_hash text)
RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT starts_with(said, '{"event_id":' || event_id || ',"kind":"' || kind || '","payload":{')
        AND substr(said, length(said) + 2 - strpos(reverse(said), reverse(',"prev_hash":"')), 66)
            = prev_hash || '",'
    FROM convert_from(canonical, 'SQL_ASCII') AS said
$$;

-- Recompute every link of what the table holds, with nothing but the table. No row: all hold. What rows before the
-- first one said, and whether newer ones are missing, it cannot tell: compare the last hash with one kept elsewhere.
CREATE FUNCTION audit_events.verify() RETURNS TABLE (event_id bigint, reason text)
LANGUAGE sql STABLE AS $$
    SELECT checked.event_id, checked.reason FROM (
        SELECT e.event_id, CASE
            WHEN e.event_id <> lag(e.event_id) OVER chain + 1
                THEN format('event_id should be %s', lag(e.event_id) OVER chain + 1)
            WHEN e.prev_hash <> lag(e.hash) OVER chain THEN 'prev_hash mismatch'
            WHEN encode(sha256(e.canonical), 'hex') <> e.hash THEN 'hash mismatch'
            WHEN NOT audit_events.says_its_place(e.canonical, e.event_id, e.kind, e.prev_hash)
                THEN 'event_id, kind or prev_hash is not what was hashed'
        END AS reason
        FROM audit_events.events AS e
        WINDOW chain AS (ORDER BY e.event_id)
    ) AS checked
    WHERE checked.reason IS NOT NULL
    ORDER BY checked.event_id
$$;
