/*
 * audit_stream 0.2.0: every change to a watched table becomes an event, none lost.
 *
 * This one file is run by CREATE EXTENSION, by ALTER EXTENSION … UPDATE from 0.1.0, and without an extension by
 * install.sql; and it may be run again. So it creates what is missing, replaces every function, and drops nothing
 * that holds data. What has to stay true of each line here:
 *
 *   - the trigger writes to audit_stream.outbox in the transaction of the change, or the change fails (strict);
 *   - only the relay deletes from the outbox, after the spine has answered 201;
 *   - nothing is granted to PUBLIC, and what runs with our rights (SECURITY DEFINER) has a fixed search_path;
 *   - no function of anyone else's runs with our rights, not even by way of a type: see check_casts();
 *   - names get into dynamic SQL by format('%I') and text by format('%L'), never otherwise.
 *
 * The columns and functions without a comment here are explained in docs/postgres.md.
 */

CREATE OR REPLACE FUNCTION audit_stream.version() RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT '0.2.0' $$;

-- Tables ---------------------------------------------------------------------------------------------------------

-- What is watched, for people and for sync(). The triggers do not read it: deleting a row silences nothing.
CREATE TABLE IF NOT EXISTS audit_stream.watches (
    table_name text PRIMARY KEY,
    event_kind text NOT NULL,
    source text NOT NULL DEFAULT 'pg-audit-stream-extension',
    created_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE audit_stream.watches
    ADD COLUMN IF NOT EXISTS relid regclass,  -- follows the table when it is renamed
    ADD COLUMN IF NOT EXISTS include text[],
    ADD COLUMN IF NOT EXISTS exclude text[],
    ADD COLUMN IF NOT EXISTS redact text[],
    ADD COLUMN IF NOT EXISTS only_when_changed boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS on_error text NOT NULL DEFAULT 'strict';

-- What waits for the relay, in the order in which it was written. A row is here until the chain has its event.
CREATE TABLE IF NOT EXISTS audit_stream.outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The event's idempotency key. Not the id: that one starts anew in a database made anew.
    change_id uuid NOT NULL,
    event_kind text NOT NULL,
    source text NOT NULL,
    changed_at timestamptz NOT NULL,
    payload text NOT NULL  -- JSON; as text its size is known without reading it
);
-- Rows come and go all the time; a share of the table would be far too many to wait for.
ALTER TABLE audit_stream.outbox SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000, toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_threshold = 5000
);

-- What the spine has refused for good, whole and with the reason.
CREATE TABLE IF NOT EXISTS audit_stream.dead_letters (
    id bigint PRIMARY KEY,
    change_id uuid NOT NULL,
    event_kind text NOT NULL,
    source text NOT NULL,
    changed_at timestamptz NOT NULL,
    payload text NOT NULL,
    reason text NOT NULL,
    refused_at timestamptz NOT NULL DEFAULT now()
);

-- Empty means the defaults, so that restoring a dump finds no row in its way.
CREATE TABLE IF NOT EXISTS audit_stream.settings (
    name text PRIMARY KEY CHECK (name IN ('notify')),
    value text NOT NULL CHECK (value IN ('on', 'off'))
);

-- Recording a change ---------------------------------------------------------------------------------------------

-- The row as the watch wants it. Raises when a column that the watch names is gone: it may live on under another
-- name, and what was to be left out would be sent.
CREATE OR REPLACE FUNCTION audit_stream.chosen_columns(
    p_row json, p_table text, p_include text[], p_exclude text[], p_redact text[]
) RETURNS json LANGUAGE plpgsql STABLE AS $$
DECLARE
    missing text[];
    chosen json;
BEGIN
    IF p_row IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(name) INTO missing
        FROM unnest(coalesce(p_include, '{}') || p_exclude || p_redact) AS name
        WHERE p_row -> name IS NULL;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'audit_stream: % no longer has the column(s) % that its watch names', p_table, missing
            USING HINT = format('Tell audit_stream.watch(%L, …) what to include, exclude and redact now.', p_table);
    END IF;
    SELECT json_object_agg(key, CASE WHEN key = ANY (p_redact) THEN '"[redacted]"' ELSE value END) INTO chosen
        FROM json_each(p_row)
        WHERE (p_include IS NULL OR key = ANY (p_include)) AND key <> ALL (p_exclude);
    RETURN coalesce(chosen, '{}');
END $$;

CREATE OR REPLACE FUNCTION audit_stream.primary_key_columns(p_relid oid) RETURNS text[] LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(a.attname::text ORDER BY k.place), '{}')
        FROM pg_catalog.pg_index i
        CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = p_relid AND i.indisprimary AND k.place <= i.indnkeyatts
$$;

-- {"column": value, …} of the primary key; NULL for a table without one. p_columns are those of the time of the
-- watch: when one has been renamed since, the catalog knows.
CREATE OR REPLACE FUNCTION audit_stream.primary_key_of(
    p_row json, p_relid oid, p_columns text[], p_exclude text[], p_redact text[]
) RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
    name text;
    found text := '';
BEGIN
    FOREACH name IN ARRAY p_columns LOOP
        IF p_row -> name IS NULL THEN
            RETURN audit_stream.primary_key_of(
                p_row, p_relid, audit_stream.primary_key_columns(p_relid), p_exclude, p_redact
            );
        ELSIF name <> ALL (p_exclude) THEN
            found := concat(
                found, CASE WHEN found <> '' THEN ',' END, to_json(name), ':',
                CASE WHEN name = ANY (p_redact) THEN '"[redacted]"' ELSE (p_row -> name)::text END
            );
        END IF;
    END LOOP;
    RETURN '{' || nullif(found, '') || '}';
END $$;

-- The watched table that this is a partition of, at whatever level; or this table itself.
CREATE OR REPLACE FUNCTION audit_stream.watched_root(p_relid oid) RETURNS oid LANGUAGE sql STABLE AS $$
    SELECT a.relid
        FROM pg_catalog.pg_partition_ancestors(p_relid) AS a
        JOIN pg_catalog.pg_trigger t ON t.tgrelid = a.relid
        WHERE t.tgname = 'audit_stream_emit' AND t.tgparentid = 0
$$;

CREATE OR REPLACE FUNCTION audit_stream.full_name(p_relid oid) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format('%I.%I', n.nspname, c.relname)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_relid
$$;

-- Write one change to the outbox; false when the watch does not want it. p_arguments are the trigger's, from 0:
-- event kind, source, on_error, only_when_changed, primary key, include, exclude, redact, and 'partitioned' or ''.
CREATE OR REPLACE FUNCTION audit_stream.record(
    p_relid oid, p_schema name, p_name name, p_operation text, p_old json, p_new json, p_arguments text[]
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_include text[] := nullif(p_arguments[5], '');
    v_exclude text[] := p_arguments[6];
    v_redact text[] := p_arguments[7];
    v_table text := format('%I.%I', p_schema, p_name);
    v_partition text;
    v_changed text[];
    v_primary_key text;
    v_txid text := pg_current_xact_id();
    v_change_id uuid := gen_random_uuid();
    v_woken text;
BEGIN
    IF p_arguments[8] = 'partitioned' THEN
        v_partition := v_table;
        v_table := coalesce(audit_stream.full_name(audit_stream.watched_root(p_relid)), v_table);
        v_partition := nullif(v_partition, v_table);
    END IF;

    IF p_operation = 'UPDATE' THEN
        -- As text: 1.0 made 1.00 is a change. Both rows have the same columns in the same order.
        SELECT coalesce(array_agg(o.key), '{}') INTO v_changed
            FROM ROWS FROM (json_each_text(p_old), json_each_text(p_new)) AS o (key, was, key_again, is_now)
            WHERE o.was IS DISTINCT FROM o.is_now
                AND (v_include IS NULL OR o.key = ANY (v_include)) AND o.key <> ALL (v_exclude);
        IF p_arguments[3] = 't' AND v_changed = '{}' THEN
            RETURN false;
        END IF;
    END IF;

    IF p_operation <> 'TRUNCATE' THEN
        v_primary_key := audit_stream.primary_key_of(
            coalesce(p_new, p_old), p_relid, p_arguments[4]::text[], v_exclude, v_redact
        );
        IF v_include IS NOT NULL OR v_exclude <> '{}' OR v_redact <> '{}' THEN
            p_old := audit_stream.chosen_columns(p_old, v_table, v_include, v_exclude, v_redact);
            p_new := audit_stream.chosen_columns(p_new, v_table, v_include, v_exclude, v_redact);
        END IF;
    END IF;

    INSERT INTO audit_stream.outbox (change_id, event_kind, source, changed_at, payload) VALUES (
        v_change_id, p_arguments[0], p_arguments[1], statement_timestamp(),
        -- concat leaves out what is NULL, so a key stands here only where it has a meaning.
        concat(
            '{"table":', to_json(v_table), ',"operation":"', p_operation, '"',
            ',"partition":' || to_json(v_partition)::text,
            ',"new":' || p_new::text,
            ',"old":' || p_old::text,
            ',"primary_key":' || v_primary_key,
            ',"changed":' || to_json(v_changed)::text,
            ',"change_id":"', v_change_id, '","txid":', v_txid,
            ',"db_user":', to_json(session_user::text),
            ',"db_role":' || to_json(nullif(current_setting('role'), 'none'))::text,
            ',"application_name":', to_json(current_setting('application_name')),
            -- A claim: any session may set it, which is why db_user stands beside it.
            ',"actor":', coalesce(to_json(nullif(current_setting('audit_stream.actor', true), ''))::text, 'null'),
            ',"statement_time":', to_json(statement_timestamp()), '}'
        )
    );

    -- Once a transaction: a relay that sleeps is woken at commit. NOTIFY makes commits queue, so it is left out while
    -- the relay is awake, which then does not fall asleep before this transaction has ended: to sleep it takes the
    -- lock that is shared here until then. The notification carries nothing; losing it loses nothing but time.
    IF current_setting('audit_stream.woken', true) IS DISTINCT FROM v_txid THEN
        v_woken := set_config('audit_stream.woken', v_txid, true);
        IF NOT pg_try_advisory_xact_lock_shared(418581342581)
            AND NOT EXISTS (SELECT FROM audit_stream.settings s WHERE s.name = 'notify' AND s.value = 'off')
        THEN
            PERFORM pg_notify('audit_stream', '');
        END IF;
    END IF;
    RETURN true;
END $$;

-- row_to_json writes a value by the type's cast to json, where it has one, and whoever owns a type can make one: in the
-- trigger that function would run with our rights. So a row with such a value is not written, unless the function's
-- owner is a superuser, as with extensions, or ourselves. Always true; raises otherwise.
CREATE OR REPLACE FUNCTION audit_stream.check_casts(p_relid oid) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
DECLARE
    suspects oid[];
    found record;
BEGIN
    SELECT array_agg(c.castsource) INTO suspects
        FROM pg_catalog.pg_cast c
        JOIN pg_catalog.pg_proc p ON p.oid = c.castfunc
        JOIN pg_catalog.pg_roles r ON r.oid = p.proowner
        WHERE c.castsource >= 16384  -- made by users; there is an index for it
            AND c.casttarget IN ('json'::regtype, 'jsonb'::regtype) AND NOT r.rolsuper AND r.rolname <> current_user;
    IF suspects IS NULL THEN
        RETURN true;
    END IF;
    -- The table's types, and those that they are made of: elements, base types, fields.
    WITH RECURSIVE used (type) AS (
        SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = p_relid AND a.attnum > 0 AND NOT a.attisdropped
        UNION
        SELECT part.type FROM used JOIN pg_catalog.pg_type t ON t.oid = used.type CROSS JOIN LATERAL (
            SELECT t.typelem UNION ALL SELECT t.typbasetype UNION ALL
            SELECT a.atttypid FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        ) AS part (type)
    )
    SELECT used.type::regtype AS type, p_relid::regclass AS name INTO found
        FROM used WHERE used.type = ANY (suspects) LIMIT 1;
    IF found IS NOT NULL THEN
        RAISE EXCEPTION 'audit_stream: % has values of type %, whose cast to json is a function that is not trusted',
                found.name, found.type
            USING HINT = 'It would run with the rights of audit_stream. Drop the cast, or have a superuser own its function.';
    END IF;
    RETURN true;
END $$;

-- The trigger. Runs as the owner of this schema, so who changes a watched table needs no right on it. The settings
-- beside search_path are those that change how a value reads as JSON: an event does not depend on the session.
CREATE OR REPLACE FUNCTION audit_stream.emit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET extra_float_digits = 1 SET bytea_output = 'hex'
SET intervalstyle = 'iso_8601' AS $$
DECLARE
    done boolean;
BEGIN
    IF TG_ARGV[2] = 'strict' THEN
        -- No block that catches errors: it would be a subtransaction for every row.
        done := audit_stream.check_casts(TG_RELID);
        done := audit_stream.record(
            TG_RELID, TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP, row_to_json(OLD), row_to_json(NEW), TG_ARGV
        );
    ELSE
        BEGIN
            done := audit_stream.check_casts(TG_RELID);
            done := audit_stream.record(
                TG_RELID, TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP, row_to_json(OLD), row_to_json(NEW), TG_ARGV
            );
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'audit_stream: the % on %.% was not recorded: %', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME, SQLERRM
                USING HINT = 'The watch is best_effort. With on_error => ''strict'' the change would have failed.';
        END;
    END IF;
    RETURN NULL;
END $$;

-- Watching -------------------------------------------------------------------------------------------------------

-- The names that a text may mean, the likeliest first: as SQL reads it, then letter for letter as 0.1.0 did.
-- Without a schema it is public's.
CREATE OR REPLACE FUNCTION audit_stream.readings(p_table text) RETURNS text[] LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    parts text[];
    dot integer := pg_catalog.strpos(p_table, '.');
    verbatim text := CASE
        WHEN dot > 0 THEN pg_catalog.format('%I.%I', pg_catalog.left(p_table, dot - 1), pg_catalog.substr(p_table, dot + 1))
        ELSE pg_catalog.format('%I.%I', 'public', p_table)
    END;
BEGIN
    BEGIN
        parts := pg_catalog.parse_ident(p_table);
    EXCEPTION WHEN invalid_parameter_value THEN
        RETURN ARRAY[verbatim];
    END;
    RETURN CASE pg_catalog.cardinality(parts)
        WHEN 1 THEN ARRAY[pg_catalog.format('%I.%I', 'public', parts[1]), verbatim]
        WHEN 2 THEN ARRAY[pg_catalog.format('%I.%I', parts[1], parts[2]), verbatim]
        WHEN 3 THEN CASE WHEN parts[1] = pg_catalog.current_database()
            THEN ARRAY[pg_catalog.format('%I.%I', parts[2], parts[3]), verbatim] ELSE ARRAY[verbatim] END
        ELSE ARRAY[verbatim]
    END;
END $$;

CREATE OR REPLACE FUNCTION audit_stream.find_table(p_table text) RETURNS regclass LANGUAGE sql STABLE AS $$
    SELECT pg_catalog.to_regclass(r.reading)
        FROM pg_catalog.unnest(audit_stream.readings(p_table)) WITH ORDINALITY AS r (reading, place)
        WHERE pg_catalog.to_regclass(r.reading) IS NOT NULL ORDER BY r.place LIMIT 1
$$;

-- The table itself, and every partition of it at any level.
CREATE OR REPLACE FUNCTION audit_stream.partitions(p_relid oid) RETURNS SETOF oid LANGUAGE sql STABLE AS $$
    SELECT p_relid UNION SELECT t.relid FROM pg_catalog.pg_partition_tree(p_relid) AS t
$$;

-- Raises for what cannot be watched, with what to do instead.
CREATE OR REPLACE FUNCTION audit_stream.check_watch(
    p_table text, p_relid regclass, p_event_kind text, p_source text, p_include text[], p_exclude text[],
    p_redact text[], p_on_error text
) RETURNS void LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    elsewhere text;
    other text;
    kind "char" := (SELECT c.relkind FROM pg_class c WHERE c.oid = p_relid);
BEGIN
    IF p_table IS NULL OR p_relid IS NULL THEN
        SELECT string_agg(format('%I.%I', n.nspname, c.relname), ', ') INTO elsewhere
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND c.relname IN (p_table, lower(p_table));
        RAISE EXCEPTION 'audit_stream.watch: table % does not exist', coalesce((audit_stream.readings(p_table))[1], 'NULL')
            USING HINT = coalesce('There is ' || elsewhere || '.', 'Write it as schema.table, with double quotes where SQL needs them.');
    ELSIF kind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION 'audit_stream.watch: % is not a table', p_relid
            USING HINT = 'Tables and partitioned tables can be watched. For a view, watch the tables behind it.';
    ELSIF EXISTS (SELECT FROM pg_class c WHERE c.oid = p_relid AND c.relnamespace = 'audit_stream'::regnamespace) THEN
        RAISE EXCEPTION 'audit_stream.watch: % is audit_stream''s own, and to record it would never end', p_relid;
    ELSIF p_event_kind IS NULL OR p_event_kind !~ '^[a-z][a-z0-9_]{0,63}$' THEN
        RAISE EXCEPTION 'audit_stream.watch: % is no event kind', coalesce(quote_literal(p_event_kind), 'NULL')
            USING HINT = 'Lower-case letters, digits and _, starting with a letter, 64 at most: one that the spine knows.';
    ELSIF length(p_source) NOT BETWEEN 1 AND 256 THEN
        RAISE EXCEPTION 'audit_stream.watch: a source has 1 to 256 characters, this one %', length(p_source);
    ELSIF p_on_error IS NULL OR p_on_error NOT IN ('strict', 'best_effort') THEN
        RAISE EXCEPTION 'audit_stream.watch: on_error is strict or best_effort, not %', coalesce(quote_literal(p_on_error), 'NULL');
    ELSIF p_include IS NOT NULL AND p_exclude <> '{}' THEN
        RAISE EXCEPTION 'audit_stream.watch: include and exclude contradict each other'
            USING HINT = 'Name the columns to keep, or those to leave out.';
    END IF;

    SELECT string_agg(format('%I', name), ', ') INTO other
        FROM unnest(coalesce(p_include, '{}') || p_exclude || p_redact) AS name
        WHERE NOT EXISTS (
            SELECT FROM pg_attribute a
                WHERE a.attrelid = p_relid AND a.attname = name AND a.attnum > 0 AND NOT a.attisdropped
        );
    IF other IS NOT NULL THEN
        RAISE EXCEPTION 'audit_stream.watch: % has no column %', p_relid, other
            USING HINT = 'Columns are named as they are stored: in lower case unless they were made in double quotes.';
    END IF;

    -- A partition has its own copy of its table's trigger, and one change is one event.
    SELECT string_agg(t.tgrelid::regclass::text, ', ') INTO other
        FROM pg_trigger t
        WHERE t.tgname = 'audit_stream_emit' AND t.tgparentid = 0 AND t.tgrelid <> p_relid AND (
            t.tgrelid IN (SELECT audit_stream.partitions(p_relid))
            OR p_relid IN (SELECT audit_stream.partitions(t.tgrelid))
        );
    IF other IS NOT NULL THEN
        RAISE EXCEPTION 'audit_stream.watch: % is watched, and % would be recorded twice', other, p_relid
            USING HINT = 'A partitioned table and its partitions are watched together. Call audit_stream.unwatch first.';
    END IF;
END $$;

-- Watch a table from now on; a second call replaces what the first one said. Returns the table's full name.
-- Runs with the caller's rights: it takes the TRIGGER privilege on the table.
CREATE OR REPLACE FUNCTION audit_stream.watch(
    p_table text, p_event_kind text, p_source text DEFAULT NULL, include text[] DEFAULT NULL,
    exclude text[] DEFAULT NULL, redact text[] DEFAULT NULL, only_when_changed boolean DEFAULT false,
    on_error text DEFAULT 'strict'
) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_relid regclass := audit_stream.find_table(p_table);
    v_full_name text := audit_stream.full_name(v_relid);
    v_source text := coalesce(p_source, 'pg-audit-stream-extension');
    v_include text[] := watch.include;
    v_exclude text[] := coalesce(watch.exclude, '{}');
    v_redact text[] := coalesce(watch.redact, '{}');
    v_before audit_stream.watches;
    v_arguments text;
    v_partition oid;
BEGIN
    PERFORM audit_stream.check_watch(
        p_table, v_relid, p_event_kind, v_source, v_include, v_exclude, v_redact, watch.on_error
    );
    -- Two at once would replace each other's trigger half-way.
    PERFORM pg_advisory_xact_lock(hashtext('audit_stream.watch'), v_relid::oid::bigint::bit(32)::integer);

    v_arguments := format(
        '%L, %L, %L, %L, %L, %L, %L, %L, %L', p_event_kind, v_source, watch.on_error,
        coalesce(watch.only_when_changed, false), audit_stream.primary_key_columns(v_relid),
        coalesce(v_include::text, ''), v_exclude, v_redact,
        CASE WHEN EXISTS (SELECT FROM pg_class c WHERE c.oid = v_relid AND c.relkind = 'p') THEN 'partitioned' ELSE '' END
    );
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER audit_stream_emit AFTER INSERT OR UPDATE OR DELETE ON %s'
        ' FOR EACH ROW EXECUTE FUNCTION audit_stream.emit(%s)', v_full_name, v_arguments
    );
    -- A statement's trigger is not handed down to partitions, so each gets its own.
    FOR v_partition IN SELECT audit_stream.partitions(v_relid) LOOP
        EXECUTE format(
            'CREATE OR REPLACE TRIGGER audit_stream_emit_truncate AFTER TRUNCATE ON %s'
            ' FOR EACH STATEMENT EXECUTE FUNCTION audit_stream.emit(%s)',
            audit_stream.full_name(v_partition), v_arguments
        );
    END LOOP;

    DELETE FROM audit_stream.watches w
        WHERE w.relid = v_relid OR w.table_name = v_full_name RETURNING w.* INTO v_before;
    INSERT INTO audit_stream.watches VALUES (
        v_full_name, p_event_kind, v_source, coalesce(v_before.created_at, now()), v_relid, v_include, v_exclude,
        v_redact, coalesce(watch.only_when_changed, false), watch.on_error
    );
    IF NOT coalesce(v_before.redact, '{}') <@ (v_redact || v_exclude) THEN
        RAISE NOTICE 'audit_stream: % are no longer redacted in %', v_before.redact, v_full_name;
    END IF;
    RETURN v_full_name;
END $$;

-- Stop watching. False when it was not watched; a table that was dropped meanwhile is no error.
CREATE OR REPLACE FUNCTION audit_stream.unwatch(p_table text) RETURNS boolean LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_relid regclass := audit_stream.find_table(p_table);
    v_watched boolean := EXISTS (
        SELECT FROM pg_trigger t WHERE t.tgrelid = v_relid AND t.tgname = 'audit_stream_emit' AND t.tgparentid = 0
    );
    v_partition oid;
BEGIN
    IF v_watched THEN
        EXECUTE format('DROP TRIGGER audit_stream_emit ON %s', audit_stream.full_name(v_relid));
        FOR v_partition IN
            SELECT t.tgrelid FROM pg_trigger t
                WHERE t.tgname = 'audit_stream_emit_truncate' AND t.tgrelid IN (SELECT audit_stream.partitions(v_relid))
        LOOP
            EXECUTE format('DROP TRIGGER audit_stream_emit_truncate ON %s', audit_stream.full_name(v_partition));
        END LOOP;
    END IF;
    DELETE FROM audit_stream.watches w WHERE w.relid = v_relid OR w.table_name = ANY (audit_stream.readings(p_table));
    RETURN FOUND OR v_watched;
END $$;

-- Every watch, oldest first, and how it is: the list is compared with the triggers that do the work.
DO $$
BEGIN
    -- 0.1.0's answers with fewer columns, which no REPLACE changes.
    IF to_regprocedure('audit_stream._emit_event()') IS NOT NULL THEN
        DROP FUNCTION audit_stream.list_watches();
    END IF;
END $$;
CREATE OR REPLACE FUNCTION audit_stream.list_watches() RETURNS TABLE (
    table_name text, event_kind text, source text, created_at timestamptz, state text, include text[],
    exclude text[], redact text[], only_when_changed boolean, on_error text
) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(audit_stream.full_name(w.relid), w.table_name), w.event_kind, w.source, w.created_at,
        CASE
            WHEN c.oid IS NULL THEN 'table dropped'
            WHEN t.oid IS NULL THEN 'trigger missing: call audit_stream.sync()'
            WHEN t.tgenabled NOT IN ('O', 'A') THEN 'trigger disabled'
            WHEN EXISTS (
                SELECT FROM audit_stream.partitions(c.oid) AS p (relid) WHERE NOT EXISTS (
                    SELECT FROM pg_trigger s
                        WHERE s.tgrelid = p.relid AND s.tgname = 'audit_stream_emit_truncate'
                )
            ) THEN 'new partitions: call audit_stream.sync()'
            ELSE 'watching'
        END,
        w.include, coalesce(w.exclude, '{}'), coalesce(w.redact, '{}'), w.only_when_changed, w.on_error
    FROM audit_stream.watches w
    LEFT JOIN pg_class c ON c.oid = w.relid
    LEFT JOIN pg_trigger t ON t.tgrelid = w.relid AND t.tgname = 'audit_stream_emit'
    UNION ALL
    SELECT audit_stream.full_name(t.tgrelid), NULL, NULL, NULL, 'watching, but its row in watches was deleted',
        NULL, NULL, NULL, NULL, NULL
    FROM pg_trigger t
    WHERE t.tgname = 'audit_stream_emit' AND t.tgparentid = 0
        AND NOT EXISTS (SELECT FROM audit_stream.watches w WHERE w.relid = t.tgrelid)
    ORDER BY 4, 1
$$;

-- Make the triggers what the watches say: after partitions were added, a primary key was changed, a trigger dropped.
CREATE OR REPLACE FUNCTION audit_stream.sync() RETURNS SETOF text LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    SELECT audit_stream.watch(
            audit_stream.full_name(w.relid), w.event_kind, w.source, w.include, w.exclude, w.redact,
            w.only_when_changed, w.on_error
        )
        FROM (SELECT * FROM audit_stream.watches ORDER BY created_at) AS w
        WHERE audit_stream.full_name(w.relid) IS NOT NULL
$$;

-- Delivery -------------------------------------------------------------------------------------------------------

-- How many changes wait, since when the oldest of them does, and how many the spine has refused for good.
CREATE OR REPLACE FUNCTION audit_stream.lag() RETURNS TABLE (
    waiting bigint, oldest timestamptz, behind interval, dead_letters bigint
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*), min(o.changed_at), coalesce(clock_timestamp() - min(o.changed_at), '0'),
        (SELECT count(*) FROM audit_stream.dead_letters)
    FROM audit_stream.outbox o
$$;

-- Offer dead letters once more, in their old place and under their old key: one of them, or all. Returns how many.
CREATE OR REPLACE FUNCTION audit_stream.requeue(p_id bigint DEFAULT NULL) RETURNS bigint LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    WITH letters AS (
        DELETE FROM audit_stream.dead_letters d WHERE p_id IS NULL OR d.id = p_id RETURNING d.*
    ), queued AS (
        INSERT INTO audit_stream.outbox OVERRIDING SYSTEM VALUE
            SELECT id, change_id, event_kind, source, changed_at, payload FROM letters ORDER BY id RETURNING id
    )
    SELECT count(*) FROM queued
$$;

-- Whether a change wakes the relay. Without it the relay finds changes when it next looks (POLL_TIMEOUT).
CREATE OR REPLACE FUNCTION audit_stream.set_notify(p_on boolean) RETURNS void LANGUAGE sql
SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO audit_stream.settings VALUES ('notify', CASE WHEN p_on THEN 'on' ELSE 'off' END)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value
$$;

-- Rights ---------------------------------------------------------------------------------------------------------

-- What the relay's role needs, and no more: it cannot read or change a watched table.
CREATE OR REPLACE FUNCTION audit_stream.allow_relay(p_role name) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA audit_stream TO %I', p_role);
    EXECUTE format('GRANT SELECT, DELETE ON audit_stream.outbox TO %I', p_role);
    EXECUTE format('GRANT SELECT, INSERT ON audit_stream.dead_letters TO %I', p_role);
    EXECUTE format('GRANT EXECUTE ON FUNCTION audit_stream.lag() TO %I', p_role);
END $$;

-- What a role needs to watch its own tables: those on which it has the TRIGGER privilege.
CREATE OR REPLACE FUNCTION audit_stream.allow_watch(p_role name) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA audit_stream TO %I', p_role);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON audit_stream.watches TO %I', p_role);
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION audit_stream.watch, audit_stream.unwatch, audit_stream.list_watches,'
        ' audit_stream.sync, audit_stream.emit, audit_stream.check_watch, audit_stream.find_table,'
        ' audit_stream.readings, audit_stream.partitions, audit_stream.full_name, audit_stream.primary_key_columns'
        ' TO %I', p_role
    );
END $$;

REVOKE ALL ON ALL TABLES IN SCHEMA audit_stream FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA audit_stream FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA audit_stream FROM PUBLIC;

-- Coming from 0.1.0, and being an extension ----------------------------------------------------------------------

DO $$
DECLARE
    name text;
BEGIN
    -- 0.1.0 read names letter for letter. The row of a table that is gone keeps no relid, and unwatch() removes it.
    UPDATE audit_stream.watches w
        SET relid = (SELECT to_regclass(r[cardinality(r)]) FROM audit_stream.readings(w.table_name) AS r)
        WHERE relid IS NULL;
    PERFORM audit_stream.sync();
    DROP FUNCTION IF EXISTS audit_stream.watch(text, text, text);
    -- No CASCADE: the triggers have just moved to emit(). One that has not is a table that would fall silent.
    DROP FUNCTION IF EXISTS audit_stream._emit_event();
    IF EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'audit_stream') THEN
        FOREACH name IN ARRAY ARRAY['watches', 'outbox', 'outbox_id_seq', 'dead_letters', 'settings'] LOOP
            PERFORM pg_catalog.pg_extension_config_dump('audit_stream.' || name, '');
        END LOOP;
    END IF;
END $$;
