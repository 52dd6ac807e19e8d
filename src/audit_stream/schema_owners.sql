/*
 * Stop unless a schema and everything in it can be trusted. Run it before anything in the schema is used.
 *
 * A schema of a well-known name may have been made by somebody else, to be run by whoever installs into it. So this
 * block looks in the catalog alone, calls nothing that it finds there and changes nothing. Trusted are the current
 * user and superusers. Theirs have to be:
 *
 *   - the schema, and every relation, function, type and operator in it;
 *   - every function, type and operator that a trigger, rule, default, constraint, policy, index or column uses;
 *   - the right to create in it.
 *
 * The setting audit_stream.checked_schema names the schema; audit_stream when it is not set. It passes where there is
 * no such schema. For the rest of the transaction search_path is pg_catalog, so that no function of another schema
 * stands in for one of PostgreSQL's.
 */
DO $check$
DECLARE
    v_schema text := coalesce(
        nullif(pg_catalog.current_setting('audit_stream.checked_schema', true), ''), 'audit_stream'
    );
    v_suspects text[];
    v_owner text;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    WITH trusted AS (
        SELECT r.oid FROM pg_roles r WHERE r.rolsuper OR r.rolname = current_user
    ), here AS (
        SELECT n.oid, n.nspowner, n.nspacl FROM pg_namespace n WHERE n.nspname = v_schema
    ), relations AS (
        SELECT c.oid, c.relowner, c.relkind, c.reltype FROM pg_class c JOIN here ON c.relnamespace = here.oid
    ), things (rank, classid, objid, owner) AS (
        SELECT 1, 'pg_namespace'::regclass, oid, nspowner FROM here
        UNION ALL SELECT 2, 'pg_class'::regclass, oid, relowner FROM relations WHERE relkind NOT IN ('i', 'I', 'c')
        UNION ALL SELECT 3, 'pg_proc'::regclass, p.oid, p.proowner
            FROM pg_proc p JOIN here ON p.pronamespace = here.oid
        -- A table's row type and every array follow what they are made of.
        UNION ALL SELECT 4, 'pg_type'::regclass, t.oid, t.typowner
            FROM pg_type t JOIN here ON t.typnamespace = here.oid
            WHERE t.typcategory <> 'A' AND t.oid NOT IN (SELECT reltype FROM relations WHERE relkind <> 'c')
        UNION ALL SELECT 5, 'pg_operator'::regclass, o.oid, o.oprowner
            FROM pg_operator o JOIN here ON o.oprnamespace = here.oid
    ), parts (classid, objid) AS (
        SELECT 'pg_class'::regclass, oid FROM relations
        UNION ALL SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger t JOIN relations r ON t.tgrelid = r.oid
        UNION ALL SELECT 'pg_rewrite'::regclass, w.oid FROM pg_rewrite w JOIN relations r ON w.ev_class = r.oid
        UNION ALL SELECT 'pg_attrdef'::regclass, a.oid FROM pg_attrdef a JOIN relations r ON a.adrelid = r.oid
        UNION ALL SELECT 'pg_policy'::regclass, p.oid FROM pg_policy p JOIN relations r ON p.polrelid = r.oid
        UNION ALL SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint c JOIN here ON c.connamespace = here.oid
    ), used (classid, objid, usedclass, used, owner) AS (
        SELECT parts.classid, parts.objid, d.refclassid, d.refobjid, o.owner
            FROM parts JOIN pg_depend d ON d.classid = parts.classid AND d.objid = parts.objid
            CROSS JOIN LATERAL (
                SELECT p.proowner FROM pg_proc p WHERE d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
                UNION ALL SELECT t.typowner FROM pg_type t
                    WHERE d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid
                UNION ALL SELECT o.oprowner FROM pg_operator o
                    WHERE d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
            ) AS o (owner)
    ), suspects (rank, owner, text) AS (
        SELECT t.rank, t.owner, format('%s %s', i.type, i.identity)
            FROM things t CROSS JOIN LATERAL pg_identify_object(t.classid, t.objid, 0) AS i
        UNION SELECT 6, u.owner, format('%s %s, which uses the %s %s', i.type, i.identity, j.type, j.identity)
            FROM used u CROSS JOIN LATERAL pg_identify_object(u.classid, u.objid, 0) AS i
            CROSS JOIN LATERAL pg_identify_object(u.usedclass, u.used, 0) AS j
        UNION SELECT 7, a.grantee, 'the right to create in the schema'
            FROM here CROSS JOIN LATERAL aclexplode(here.nspacl) AS a
            WHERE a.privilege_type = 'CREATE' AND a.grantee <> here.nspowner
    )
    SELECT
        array_agg(
            format('%s (of %s)', s.text, CASE WHEN s.owner = 0 THEN 'PUBLIC' ELSE s.owner::regrole::text END)
            ORDER BY s.rank, s.text
        ),
        (SELECT here.nspowner::regrole::text FROM here)
        INTO v_suspects, v_owner
        FROM suspects s WHERE s.owner NOT IN (SELECT oid FROM trusted);
    IF v_suspects IS NOT NULL THEN
        RAISE EXCEPTION 'the schema % is not only of % or of superusers: %', v_schema, quote_ident(current_user),
            array_to_string(v_suspects[1:20], '; ')
            || CASE WHEN cardinality(v_suspects) > 20 THEN format('; and %s more', cardinality(v_suspects) - 20) ELSE '' END
            USING HINT = format(
                'Nothing there was called, and nothing was changed. If it is an installation that belongs to %s, do this'
                ' as that role. Otherwise look at what these are; then REVOKE the right, DROP them, or DROP SCHEMA %I'
                ' CASCADE, and do this again.', v_owner, v_schema
            );
    END IF;
END $check$;
