"""README.md and docs/postgres.md say what the code does, and the README's commands run."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from audit_stream.sources.postgres import relay
from audit_stream.sources.postgres.metrics import Metrics
from audit_stream.sources.postgres.outbox import ASLEEP, LEAD
from audit_stream.sources.postgres.settings import VARIABLES
from tests.harness import ROOT, ServerProcess, clean_environ
from tests.postgres.servers import Database, Postgres
from tests.postgres.watched import Watched

PAGE = (ROOT / "docs" / "postgres.md").read_text()
README = (ROOT / "README.md").read_text()


def section(title: str, text: str = PAGE) -> str:
    return re.split(r"^##+ ", re.split(rf"^##+ {title}\n", text, flags=re.M)[1], maxsplit=1, flags=re.M)[0]


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", text, flags=re.M)


def test_the_readme_s_five_commands_lead_from_an_empty_database_to_the_event(
    postgres: Postgres, server: ServerProcess
) -> None:
    commands = re.findall(r"^    (.+)$", section("Postgres as a producer", README), flags=re.M)
    assert len(commands) == 5
    assert commands[-1].startswith("audit-stream tail")
    environ = clean_environ(
        DATABASE_URL=postgres.database("readme").url, AUDIT_STREAM_URL=server.url, METRICS_LISTEN="off", NO_COLOR="1"
    )
    folders = [Path(sys.executable).parent, postgres.bin_dir]
    environ["PATH"] = os.pathsep.join([*map(str, folders), environ["PATH"]])
    typed = subprocess.Popen(
        ["bash", "-ec", "\n".join(commands)], env=environ, stdout=subprocess.PIPE, text=True, process_group=0
    )
    try:
        assert typed.stdout
        event = next(msgspec.json.decode(line) for line in typed.stdout if line.startswith("{"))
    finally:
        os.killpg(typed.pid, signal.SIGTERM)  # the bridge and the tail
        typed.wait(30)
        typed.stdout.close() if typed.stdout else None
    assert (event["kind"], event["source"]) == ("decision_card_status_changed", "procurement-api")
    assert event["payload"]["new"] == {"id": "DEC-001", "status": "approved"}


def test_the_table_of_variables_is_the_code_s() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section("The relay"), flags=re.M)
    assert rows == [(name, variable.default or "–", variable.help) for name, variable in VARIABLES.items()]


def test_the_table_of_metrics_is_the_code_s() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|$", section("Metrics"), flags=re.M)
    collected = [
        (f"{family.name}_total" if family.type == "counter" else family.name, family.documentation)
        for family in Metrics().registry.collect()
    ]
    assert sorted(rows) == sorted(collected)


def test_every_function_and_option_for_people_is_in_its_table(database: Database) -> None:
    functions = dict(
        database.run("SELECT proname, proargnames FROM pg_proc WHERE pronamespace = 'audit_stream'::regnamespace")
    )
    inner = {"record", "emit", "check_watch", "chosen_columns", "primary_key_columns", "primary_key_of"}
    inner |= {"watched_root", "full_name", "readings", "find_table", "partitions", "check_casts", "notification"}
    inner |= {"set_triggers", "objection", "unusable", "trigger_arguments"}
    named = re.findall(r"^\| `audit_stream\.(\w+)\(", section("Watching"), flags=re.M)
    assert set(named) == set(functions) - inner
    options = [name for name in first_cells(section("Watching")) if "(" not in name]
    assert options == functions["watch"][3:]


def test_every_field_of_the_payload_is_in_the_table_and_the_other_way_round(database: Database) -> None:
    with database.connect() as connection:
        db = Watched(connection)
        db.run("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        db.run("CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (10)")
        db.run("SELECT audit_stream.watch('parts', 'other')")
        db.run("CREATE ROLE somebody; GRANT ALL ON parts TO somebody; SET ROLE somebody")
        db.run("INSERT INTO parts VALUES (1)")
        db.run("UPDATE parts SET id = 2")
        db.run("RESET ROLE; DROP OWNED BY somebody; DROP ROLE somebody")
        assert set(db.payloads[1]) == set(first_cells(section("What an event holds")))


def test_the_numbers_on_the_page_are_the_code_s() -> None:
    text = re.sub(r"\s+", " ", PAGE)
    assert f"after {relay.GRACE_S:.0f} seconds at the latest" in text
    assert f"{LEAD} (who leads) and {ASLEEP} (it sleeps)" in text
    assert f"up to one batch ({relay.BATCH_EVENTS} changes)" in text
