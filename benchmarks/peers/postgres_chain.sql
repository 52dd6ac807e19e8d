-- A hash chain as a careful team would write it on Postgres alone: one function is the only writer.

CREATE TABLE head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    event_id bigint NOT NULL,
    hash text NOT NULL
);
INSERT INTO head (event_id, hash) VALUES (0, repeat('0', 64));

CREATE TABLE events (
    event_id bigint PRIMARY KEY,
    "timestamp" text NOT NULL,
    kind text NOT NULL,
    source text NOT NULL,
    payload text NOT NULL,
    prev_hash text NOT NULL,
    hash text NOT NULL
);

CREATE FUNCTION append_event(p_kind text, p_source text, p_payload text) RETURNS events
LANGUAGE plpgsql AS $$
DECLARE
    linked events;
BEGIN
    -- Held until the commit, so that events are linked one after the other.
    SELECT head.event_id + 1, head.hash INTO linked.event_id, linked.prev_hash FROM head FOR UPDATE;
    linked.timestamp := to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"');
    linked.kind := p_kind;
    linked.source := p_source;
    linked.payload := p_payload;
    linked.hash := encode(sha256(convert_to(
        '{"event_id":' || linked.event_id || ',"kind":"' || p_kind || '","payload":' || p_payload
        || ',"prev_hash":"' || linked.prev_hash || '","source":' || to_json(p_source)
        || ',"timestamp":"' || linked.timestamp || '"}', 'UTF8')), 'hex');
    INSERT INTO events VALUES (linked.*);
    UPDATE head SET event_id = linked.event_id, hash = linked.hash;
    RETURN linked;
END
$$;
