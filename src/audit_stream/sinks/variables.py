"""The names, defaults and meanings of the projections' settings. It loads nothing: the help shows them."""

from audit_stream.daemon import Variable

VARIABLES = {
    "PROJECT_TO": Variable(
        "",
        "postgres, purview, trust, jsonl; not set: postgres with DATABASE_URL, purview and trust with LOG_DIR",
    ),
    "AUDIT_STREAM_URL": Variable("http://127.0.0.1:8093", "the spine"),
    "AUDIT_STREAM_TOKEN": Variable("", "sent to the spine as Authorization: Bearer"),
    "DATABASE_URL": Variable("", "the database: postgresql://user@host/name, or what else libpq takes"),
    "LOG_DIR": Variable("", "the folder in which purview, trust and jsonl have theirs"),
    "TENANT_ID": Variable("", "the tenant of events that name none"),
    "PURVIEW_FORMAT": Variable(
        "published",
        "published: audit-event-system's names; azure: Azure Monitor resource logs;"
        " o365: Office 365 Management Activity",
    ),
    "JSONL_ROTATE": Variable("day", "day, or a size such as 100M: when jsonl begins a new file"),
    "LOG_GZIP": Variable("off", "on: files of past days, or full ones, become .gz"),
    "LOG_LEVEL": Variable("INFO", "least severe message to log: DEBUG, INFO, WARNING or ERROR"),
    "METRICS_LISTEN": Variable("127.0.0.1:8095", "where GET /metrics is answered: host:port, or off"),
}
