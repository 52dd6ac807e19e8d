"""Postgres as a producer: an outbox, filled in the change's own transaction, and the relay that drains it."""
