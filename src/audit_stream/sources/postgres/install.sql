-- audit_stream without CREATE EXTENSION, for servers whose extension directory is not yours:
--
--     psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f install.sql
--
-- The same objects, from the same file. Run it again to upgrade. `audit-stream postgres install` does the same
-- without psql, and `audit-stream postgres install --print` prints one text to paste into a web console.
BEGIN;
SET LOCAL client_min_messages = warning;
-- First the schema, then the check of what it holds: nobody can put anything into a new one in between.
CREATE SCHEMA IF NOT EXISTS audit_stream;
\ir ../../schema_owners.sql
\ir audit_stream.sql
COMMIT;
