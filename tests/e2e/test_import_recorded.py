"""Histories of the published 0.1.0: the array that it answers, and timestamps that nobody may send today."""

import json
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from audit_stream.chain import GENESIS, link_hash
from tests.e2e.terminal import ids, on_terminal, run
from tests.harness import ServerProcess

TIMESTAMPS = ["2026-05-15T03:14:15+00:00", "yesterday", "2026-05-15T03:14:15", "", "2026-05-15 03:14:15Z"]


def history(*timestamps: str) -> list[dict[str, Any]]:
    """What the published server answers: hashed as it hashed, the payload's keys in the order they were sent in."""
    events: list[dict[str, Any]] = []
    prev = GENESIS.decode()
    for number, timestamp in enumerate(timestamps, start=1):
        payload = {"z": 1.0, "a": "ü", "n": number}
        text = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()
        hash_ = link_hash(number, timestamp.encode(), b"other", b"repo", text, prev.encode()).decode()
        events.append(
            {"event_id": number, "timestamp": timestamp, "kind": "other", "source": "repo", "payload": payload,
             "prev_hash": prev, "hash": hash_}
        )  # fmt: skip
        prev = hash_
    return events


def written(path: Path, events: list[dict[str, Any]], indent: int | None = None) -> Path:
    path.write_text(json.dumps(events, indent=indent))
    return path


@pytest.mark.parametrize("indent", [None, 2])
def test_the_array_that_get_events_answers_is_imported_and_verified(
    server: ServerProcess, tmp_path: Path, indent: int | None
) -> None:
    events = history(*["2026-05-15T03:14:15Z"] * 5)
    path = written(tmp_path / "events.json", events, indent)
    checked = run("verify", str(path))
    assert (checked.returncode, json.loads(checked.stdout)["checked"]) == (0, 5)
    done = run("import", str(path), url=server.url)
    assert done.returncode == 0, done.stderr
    assert server.get("/events").json() == events
    path.write_text(path.read_text()[:-3])
    done = run("import", str(path), url=server.url)
    assert (done.returncode, b"it begins as a JSON array of events, and is none" in done.stderr) == (1, True)


def test_the_servers_own_array_can_be_imported(
    server: ServerProcess, redis_url: str, chain: str, tmp_path: Path
) -> None:
    server.post_batch([{"kind": "other", "source": "ü", "payload": {"n": n}} for n in range(3)]).raise_for_status()
    (tmp_path / "x.json").write_bytes(server.get("/events").content)
    done = run("import", str(tmp_path / "x.json"), "--redis-url", redis_url, "--chain", f"{chain}.other")
    assert json.loads(done.stdout)["head"]["hash"] == server.get("/events/3").json()["hash"]


def test_timestamps_that_no_producer_may_send_need_the_flag(
    server: ServerProcess, redis_url: str, chain: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "events.json", history(*TIMESTAMPS))
    for where in (("--url", server.url), ("--redis-url", redis_url, "--chain", chain)):
        done = run("import", str(path), *where)
        assert done.returncode == 1
        said = done.stderr.decode()
        assert "4 events have timestamps that are not RFC 3339 with offset, the first of them #2: 'yesterday'" in said
        assert "--redis-url … --as-recorded" in said
    done = run("import", str(path), "--as-recorded", "--url", server.url)
    assert (done.returncode, b"--as-recorded needs --redis-url" in done.stderr) == (2, True)
    assert server.get("/stats").json()["count"] == 0


def test_events_are_stored_as_recorded_and_everything_that_reads_survives_them(
    server: ServerProcess, redis_url: str, chain: str, tmp_path: Path
) -> None:
    events = history(*TIMESTAMPS)
    path = written(tmp_path / "events.json", events)
    done = run("import", str(path), "--as-recorded", "--redis-url", redis_url, "--chain", chain)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["as_recorded"] == 4
    assert "stored as recorded: 4 events have timestamps" in done.stderr.decode()

    assert server.get("/events").json() == events
    assert server.get("/events?since=2020-01-01T00:00:00Z&kind=other").json() == events
    assert [server.get(f"/events/{n}").json() for n in range(1, 6)] == events
    cloud_events = server.get("/events", Accept="application/cloudevents-batch+json")
    assert cloud_events.status_code == 200, cloud_events.text
    assert server.verify()["valid"]
    assert ids(run("tail", "--from-start", "--limit", "5", url=server.url).stdout) == [1, 2, 3, 4, 5]
    _, shown = on_terminal("query", url=server.url)
    assert "yesterday" in shown

    for name in ("x.jsonl", "x.csv"):
        flags = ("--format", "csv") if name.endswith("csv") else ()
        assert run("export", "--out", str(tmp_path / name), *flags, url=server.url).returncode == 0
        assert b"yesterday" in (tmp_path / name).read_bytes()
    assert run("verify", str(tmp_path / "x.jsonl")).returncode == 0
    assert run("evidence", "--out", str(tmp_path / "p.zip"), url=server.url).returncode == 0

    copied = ("--redis-url", redis_url, "--chain", f"{chain}.copy")
    assert run("import", str(tmp_path / "x.jsonl"), "--as-recorded", *copied).returncode == 0
    assert run("reindex", "--yes", *copied).returncode == 0
    assert run("verify", *copied).returncode == 0

    refused = server.post({"kind": "other", "source": "repo", "timestamp": "yesterday"})
    assert (refused.status_code, refused.json()["field"]) == (422, "timestamp")


def test_what_json_cannot_hold_is_refused_before_anything_is_written(
    server: ServerProcess, redis_url: str, chain: str, tmp_path: Path
) -> None:
    line = history("2026-05-15T03:14:15Z")[0]
    line["payload"] = {"n": float("nan")}
    text = json.dumps(line["payload"]).encode()
    line["hash"] = link_hash(1, b"2026-05-15T03:14:15Z", b"other", b"repo", text.replace(b" ", b""), GENESIS).decode()
    (tmp_path / "x").write_text(json.dumps(line))
    done = run("import", str(tmp_path / "x"), "--as-recorded", "--redis-url", redis_url, "--chain", chain)
    assert done.returncode == 1
    assert b"event #1 cannot be stored as it was recorded" in done.stderr
    client = redis_py.Redis.from_url(redis_url)
    assert not client.exists(f"{{{chain}}}:events")
    client.close()
