"""docs/projections.md and the README say what the code does, and the README's commands run."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from audit_stream.sinks import purview, trust
from audit_stream.sinks.postgres.rows import COLUMNS, FEDERATED_SOURCE_LENGTH
from audit_stream.sinks.projection import LONGEST_PAUSE_S
from audit_stream.sinks.projections import Projections
from audit_stream.sinks.record import Record, record_of
from audit_stream.sinks.variables import VARIABLES
from tests.harness import ROOT, ServerProcess, clean_environ
from tests.postgres.servers import Database, Postgres
from tests.sinks.chains import an_event, ids_in, settings
from tests.sinks.projecting import append

PAGE = (ROOT / "docs" / "projections.md").read_text()
README = (ROOT / "README.md").read_text()


def section(title: str, text: str = PAGE) -> str:
    return re.split(r"^##+ ", re.split(rf"^##+ {title}\n", text, flags=re.M)[1], maxsplit=1, flags=re.M)[0]


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", text, flags=re.M)


GRANTS = [line.strip(" ;") for line in section("postgres").splitlines() if re.match(r"    (CREATE ROLE|GRANT) ", line)]


def test_the_readme_s_commands_project_into_files_and_rows(
    spine: ServerProcess, postgres: Postgres, tmp_path: Path
) -> None:
    newest = append(spine, 7)
    database = postgres.database("readme_projections")
    *started, status = re.findall(r"^    (.+)$", section("Projections", README), flags=re.M)
    assert status.startswith("audit-stream project status")
    # The README's database is its reader's own.
    started = [command for command in started if not command.startswith("export DATABASE_URL=")]
    environ = clean_environ(AUDIT_STREAM_URL=spine.url, DATABASE_URL=database.url, METRICS_LISTEN="off")
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ["PATH"]])
    script = ["bash", "-ec", "\n".join([*started, "wait"])]
    typed = subprocess.Popen(
        script, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, process_group=0
    )
    try:
        left = {"purview", "trust", "jsonl", "postgres"}
        assert typed.stderr
        for line in typed.stderr:
            left -= {sink for sink in left if f" {sink} has all of the chain, up to #{newest}" in line}
            if not left:
                break
        said = subprocess.run(
            ["bash", "-c", status], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
        ).stdout
    finally:
        os.killpg(typed.pid, signal.SIGTERM)
        typed.wait(30)
        typed.stderr.close() if typed.stderr else None
    assert not left
    assert [(row["sink"], row["lag"], row["at_work"]) for row in json.loads(said)["sinks"]] == [
        ("postgres", 0, True),
        ("purview", 0, True),
    ]
    for ids in ids_in(tmp_path / "logs").values():
        assert ids == list(range(1, newest + 1))
    assert database.run("SELECT count(*) FROM audit_events.events") == [(newest,)]


def test_the_table_of_variables_is_the_code_s() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section("Running it"), flags=re.M)
    assert rows == [(name, variable.default or "–", variable.help) for name, variable in VARIABLES.items()]


def test_the_table_of_metrics_is_the_code_s() -> None:
    registry = CollectorRegistry()
    Projections(settings("trust", "/nowhere")).register(registry)
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|$", section("Metrics"), flags=re.M)
    assert rows == [
        (f"{family.name}_total" if family.type == "counter" else family.name, family.documentation)
        for family in registry.collect()
    ]


def test_every_field_has_its_default_on_the_page() -> None:
    named = first_cells(section("What an event says"))
    assert set(named) == {*Record._fields} - {"event", "result", "time"} | {"timestamp"}
    assert set(named) <= set(COLUMNS)


def test_every_object_of_the_schema_is_on_the_page(database: Database) -> None:
    objects = database.run(
        "SELECT relname FROM pg_class WHERE relnamespace = 'audit_events'::regnamespace AND relkind IN ('r', 'v')"
        " UNION SELECT proname FROM pg_proc WHERE pronamespace = 'audit_events'::regnamespace"
    )
    named = {re.sub(r"\(.*", "", cell) for cell in first_cells(section("postgres"))}
    assert named == {name for (name,) in objects} - {"migrations", "says_its_place"}


def test_every_field_of_a_line_is_on_the_page() -> None:
    record = record_of(an_event({}))
    assert re.findall(r"`(\w+)`", section("trust")) == list(trust.fields(record))
    for shape in (purview.published, purview.azure, purview.o365):
        for name in shape(record) or {}:
            assert re.search(rf"`{name}\b", section("purview")), name


def test_the_numbers_on_the_page_are_the_code_s() -> None:
    assert f"after {LONGEST_PAUSE_S:.0f} seconds at most" in PAGE
    assert f"cut at {FEDERATED_SOURCE_LENGTH} characters" in PAGE
