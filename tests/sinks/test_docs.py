GRANTS: list[str] = [
    "CREATE ROLE audit_project LOGIN",
    "GRANT USAGE ON SCHEMA audit_events TO audit_project",
    "GRANT SELECT ON audit_events.migrations TO audit_project",
    "GRANT SELECT, INSERT ON audit_events.events TO audit_project",
    "GRANT SELECT, INSERT, UPDATE ON audit_events.federated_sources TO audit_project",
]
