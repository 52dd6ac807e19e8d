"""A connection of the tests, and what the triggers wrote."""

import json
from typing import Any

import psycopg

CARDS = "CREATE TABLE decisions (id text PRIMARY KEY, status text NOT NULL, vendor text)"


class Watched:
    def __init__(self, connection: "psycopg.Connection[tuple[Any, ...]]") -> None:
        self.connection = connection

    def run(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(statement.encode(), arguments or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *arguments: Any) -> Any:
        return self.run(statement, *arguments)[0][0]

    def refused(self, statement: str, *arguments: Any) -> "psycopg.errors.Diagnostic":
        """Run what has to fail; what the server said."""
        try:
            self.run(statement, *arguments)
        except psycopg.Error as error:
            return error.diag
        raise AssertionError(f"it was done: {statement}")

    def watch(self, options: str = "", *, table: str = "decisions") -> str:
        name: str = self.one(f"SELECT audit_stream.watch(%s, 'other', 'tests' {options})", table)
        return name

    def watch_decisions(self, options: str = "") -> None:
        self.run(CARDS)
        self.watch(options)

    @property
    def payloads(self) -> list[dict[str, Any]]:
        """What waits in the outbox, in order."""
        return [json.loads(payload) for (payload,) in self.run("SELECT payload FROM audit_stream.outbox ORDER BY id")]

    @property
    def operations(self) -> list[str]:
        return [payload["operation"] for payload in self.payloads]
