"""The projection's process: killed at any moment, stopped in good order.

`make project-kills` is the long run: 30 SIGKILLs. AUDIT_STREAM_TEST_PROJECT_KILLS and AUDIT_STREAM_TEST_PROJECT_SEED
set another.
"""

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from tests.harness import ServerProcess
from tests.postgres.servers import Database
from tests.sinks.chains import lines_in
from tests.sinks.projecting import ALL, ProjectProcess, append, assert_each_once, environ_of, project_once

KILLS = int(os.environ.get("AUDIT_STREAM_TEST_PROJECT_KILLS", "2"))
SEED = os.environ.get("AUDIT_STREAM_TEST_PROJECT_SEED", "1")
EVENTS_A_KILL = 2_000


@pytest.mark.timeout(60 + 10 * KILLS)
def test_projections_that_are_killed_again_and_again_have_each_event_exactly_once(
    spine: ServerProcess, database: Database, tmp_path: Path
) -> None:
    rng = random.Random(f"{SEED} {KILLS}")
    environ = environ_of(ALL, spine.url, tmp_path, database.url, JSONL_ROTATE="200K")
    for _ in range(KILLS):
        newest = append(spine, EVENTS_A_KILL, federated_source="x", text="x" * rng.choice((0, 0, 500)))
        project = ProjectProcess(environ)
        project.wait_for("projecting")
        # From here on it writes; some of these moments are between two of its steps.
        killer = threading.Timer(rng.random() * 0.4, project.process.kill)
        killer.start()
        newest = append(spine, 500)
        killer.join()
        assert project.end(signal.SIGKILL) == -signal.SIGKILL
        for path in tmp_path.rglob("*.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                assert line.endswith(b"}")
    assert project_once(environ)[0] == {}
    assert_each_once(tmp_path, newest)
    assert database.run("SELECT count(*), max(event_id) FROM audit_events.events") == [(newest, newest)]
    assert database.run("SELECT * FROM audit_events.verify()") == []
    assert database.run("SELECT events FROM audit_events.federated_sources") == [(KILLS * EVENTS_A_KILL,)]
    assert sum(map(len, lines_in(tmp_path / "trust").values())) == newest
    print(f"{KILLS} kills, {newest} events, seed {SEED}: in each of four sinks once")


def test_sigterm_ends_it_and_the_next_one_goes_on(spine: ServerProcess, tmp_path: Path) -> None:
    append(spine, 5)
    environ = environ_of("jsonl,trust", spine.url, tmp_path, LOG_LEVEL="debug", METRICS_LISTEN="127.0.0.1:0")
    for _ in range(2):
        project = ProjectProcess(environ)
        assert "http://127.0.0.1:" in project.wait_for("metrics at")
        project.wait_for("projecting")
        assert project.end() == 0
    newest = append(spine, 5)
    assert project_once(environ) == ({}, {"jsonl": newest, "trust": newest})
    assert_each_once(tmp_path, newest)


def test_a_second_process_waits_for_the_place_of_the_first(spine: ServerProcess, tmp_path: Path) -> None:
    append(spine, 5)
    environ = environ_of("trust", spine.url, tmp_path)
    first = ProjectProcess(environ)
    first.wait_for("trust has all of the chain")
    second = ProjectProcess(environ)
    second.wait_for("another projection writes to")
    assert "waits for its place" in project_once(environ)[0]["trust"]
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    newest = append(spine, 5)
    second.wait_for(f"trust has all of the chain, up to #{newest}")
    assert second.end() == 0
    assert_each_once(tmp_path, newest)
