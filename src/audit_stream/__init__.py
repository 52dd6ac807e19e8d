"""audit-stream: the shared, append-only, hash-chained spine of governance events."""

__version__ = "0.2.0"
