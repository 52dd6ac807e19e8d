-- The design to compare with: the change itself travels in a NOTIFY. Written from how the published extension 0.1.0
-- behaves: a table of watches that the trigger looks up for each row, and a payload cut at NOTIFY's 8,000 bytes.
-- Made to be run in the schema audit_stream; the tests also upgrade from it.
CREATE TABLE audit_stream.watches (
    table_name text PRIMARY KEY,
    event_kind text NOT NULL CHECK (length(event_kind) BETWEEN 1 AND 128),
    source text NOT NULL DEFAULT 'pg-audit-stream-extension',
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION audit_stream._emit_event() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    name text := TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME;
    found_watch audit_stream.watches;
    rows jsonb;
    event jsonb;
BEGIN
    SELECT * INTO found_watch FROM audit_stream.watches w WHERE w.table_name = name;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    rows := CASE TG_OP
        WHEN 'INSERT' THEN jsonb_build_object('new', to_jsonb(NEW))
        WHEN 'DELETE' THEN jsonb_build_object('old', to_jsonb(OLD))
        ELSE jsonb_build_object('new', to_jsonb(NEW), 'old', to_jsonb(OLD))
    END;
    event := jsonb_build_object(
        'kind', found_watch.event_kind, 'source', found_watch.source,
        'payload', jsonb_build_object('table', name, 'operation', TG_OP) || rows
    );
    IF octet_length(event::text) > 7800 THEN
        event := jsonb_set(event, '{payload}', jsonb_build_object('table', name, 'operation', TG_OP, 'truncated', true));
    END IF;
    PERFORM pg_notify('audit_stream', event::text);
    RETURN NULL;
END $$;

CREATE FUNCTION audit_stream.watch(p_table text, p_event_kind text, p_source text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    schema_name text := CASE WHEN p_table LIKE '%.%' THEN split_part(p_table, '.', 1) ELSE 'public' END;
    name text := CASE WHEN p_table LIKE '%.%' THEN split_part(p_table, '.', 2) ELSE p_table END;
BEGIN
    INSERT INTO audit_stream.watches (table_name, event_kind, source)
        VALUES (schema_name || '.' || name, p_event_kind, coalesce(p_source, 'pg-audit-stream-extension'));
    EXECUTE format(
        'CREATE TRIGGER audit_stream_emit AFTER INSERT OR UPDATE OR DELETE ON %I.%I'
        ' FOR EACH ROW EXECUTE FUNCTION audit_stream._emit_event()', schema_name, name
    );
    RETURN schema_name || '.' || name;
END $$;

CREATE FUNCTION audit_stream.unwatch(p_table text) RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;

CREATE FUNCTION audit_stream.list_watches() RETURNS TABLE (
    table_name text, event_kind text, source text, created_at timestamptz
) LANGUAGE sql AS $$ SELECT * FROM audit_stream.watches w ORDER BY w.created_at $$;
