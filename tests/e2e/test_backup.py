"""backup and restore, as they are typed: what comes back is the chain, its commit times included."""

import asyncio
import gzip
import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from audit_stream.appender import Appender
from audit_stream.embedded import EmbeddedValkey
from audit_stream.event import PublishRequest, draft
from audit_stream.exported import format_ms
from audit_stream.kinds import BUILT_IN
from audit_stream.stream import Stream
from tests.e2e.terminal import on_terminal, run
from tests.e2e.test_evidence import plain, untimed
from tests.forking import Forked
from tests.harness import ServerProcess, clean_environ, running_server

DAY_MS = 86_400_000
BEGAN_MS = 1_700_000_000_123
BATCHES = (3, 1, 5, 2, 4)
EVENTS = sum(BATCHES)


class Site:
    """A chain of five batches, a day between each and the next, and a server on it."""

    def __init__(self, redis_url: str, chain: str, server: ServerProcess) -> None:
        self.redis_url, self.chain, self.server = redis_url, chain, server
        self.head: dict[str, Any] = server.verify()["head"]
        self.expect = f"{self.head['event_id']}:{self.head['hash']}"
        self.times = times_of(redis_url, chain)

    def backup(self, path: Path, *flags: str) -> Path:
        done = run("backup", str(path), "--redis-url", self.redis_url, "--chain", self.chain, *flags)
        assert done.returncode == 0, done.stderr
        return path


async def write(redis_url: str, chain: str) -> None:
    stream = Stream.at(redis_url, chain)
    kinds = frozenset({*BUILT_IN, "ours"})
    async with Appender(stream) as appender:
        for number, size in enumerate(BATCHES):
            requests = [PublishRequest("ours" if n else "other", f"s{n}", {"batch": number}) for n in range(size)]
            ms = BEGAN_MS + number * DAY_MS
            await appender.append([draft(request, kinds) for request in requests], committed=[ms] * size)
    await stream.close()


def times_of(redis_url: str, chain: str) -> list[bytes]:
    with redis.Redis.from_url(redis_url) as client:
        return [entry_id for entry_id, _ in client.xrange(f"{{{chain}}}:time")]


def written(redis_url: str, chain: str) -> int:
    with redis.Redis.from_url(redis_url) as client:
        return int(client.xlen(f"{{{chain}}}:events"))


@pytest.fixture(scope="module")
def site(redis_url: str) -> Iterator[Site]:
    chain = f"site.{secrets.token_hex(4)}"
    asyncio.run(write(redis_url, chain))
    with running_server(
        AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, AUDIT_STREAM_KINDS="ours"
    ) as server:
        yield Site(redis_url, chain, server)


@pytest.fixture
def to(redis_url: str, chain: str) -> tuple[str, ...]:
    """Where a restore goes: a chain that no other test has."""
    return ("--redis-url", redis_url, "--chain", chain)


@pytest.fixture(scope="module")
def lines(site: Site, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return site.backup(tmp_path_factory.mktemp("backup") / "x").read_bytes().splitlines(keepends=True)


# --- the round trip


@pytest.mark.parametrize(("how", "name"), [("url", "x.jsonl.gz"), ("redis", "x.jsonl")])
def test_what_is_restored_has_the_same_head_and_answers_since_and_until_the_same(
    site: Site, redis_url: str, chain: str, to: tuple[str, ...], tmp_path: Path, how: str, name: str
) -> None:
    path = tmp_path / name
    if how == "url":
        done = run("backup", str(path), url=site.server.url)
        assert json.loads(done.stdout) == {
            "events": EVENTS,
            "first": 1,
            "head": site.head,
            "without_commit_time": 0,
            "file": str(path),
        }
    else:
        site.backup(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (path.read_bytes()[:2] == b"\x1f\x8b") is name.endswith(".gz")
    restored = run("restore", str(path), *to)
    assert restored.returncode == 0, restored.stderr
    said = json.loads(restored.stdout)
    assert (said["restored"], said["head"], said["commit_times"]) == (EVENTS, site.head, "kept")
    assert run("verify", *to, "--expect", site.expect, "--deep").returncode == 0
    assert times_of(redis_url, chain) == site.times
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain, AUDIT_STREAM_KINDS="ours") as other:
        for number, edge in itertools.product(range(len(BATCHES) + 1), (-1, 0, 1)):
            moment = format_ms(BEGAN_MS + number * DAY_MS + edge)
            for query in (f"since={moment}", f"until={moment}", f"kind=ours&until={moment}&committed=true"):
                answer = site.server.get(f"/events?{query}").content
                assert other.get(f"/events?{query}").content == answer
        assert [len(other.get(f"/events?since={format_ms(BEGAN_MS + n * DAY_MS)}").json()) for n in range(5)] == [
            15, 12, 11, 6, 4
        ]  # fmt: skip


def test_increments_follow_the_backup_that_they_belong_to(
    site: Site, redis_url: str, chain: str, to: tuple[str, ...], tmp_path: Path, lines: list[bytes]
) -> None:
    first = tmp_path / "first"
    first.write_bytes(b"".join(lines[:6]))
    later, overlapping = site.backup(tmp_path / "later", "--from", "7"), site.backup(tmp_path / "over", "--from", "5")
    refused = run("restore", str(later), *to)
    assert refused.returncode == 1
    assert b"it begins with event #7, and the chain is empty; nothing was written" in refused.stderr
    for path, count in ((first, 6), (overlapping, 9), (later, 0)):
        assert json.loads(run("restore", str(path), *to).stdout)["restored"] == count
    assert times_of(redis_url, chain) == site.times
    beyond = tmp_path / "beyond"
    done = run("backup", str(beyond), "--from", str(EVENTS + 1), url=site.server.url)
    assert (done.returncode, json.loads(done.stdout)["file"], beyond.exists()) == (0, None, False)


def test_a_restore_that_was_killed_goes_on_when_it_is_run_again(redis_url: str, chain: str, tmp_path: Path) -> None:
    source, path, to = f"{chain}.source", tmp_path / "x.gz", ("--redis-url", redis_url, "--chain", chain)

    async def fill() -> None:
        stream = Stream.at(redis_url, source)
        async with Appender(stream) as appender:
            for n in range(10):
                drafts = [draft(PublishRequest("other", "s", {"n": m}), frozenset(BUILT_IN)) for m in range(1000)]
                await appender.append(drafts, committed=[BEGAN_MS + n] * 1000)
        await stream.close()

    asyncio.run(fill())
    assert run("backup", str(path), "--redis-url", redis_url, "--chain", source).returncode == 0
    environ = clean_environ()
    killed = Forked(["restore", str(path), *to], environ, stdout=1)
    while not written(redis_url, chain) and killed.poll() is None:
        time.sleep(0.001)
    killed.kill()
    killed.wait(10)
    before = written(redis_url, chain)
    assert 0 < before <= 10_000
    again = run("restore", str(path), *to)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["restored"] == 10_000 - before
    assert times_of(redis_url, chain) == times_of(redis_url, source)


def test_an_older_backup_is_restored_to_the_head_that_it_had(
    site: Site, to: tuple[str, ...], tmp_path: Path, lines: list[bytes]
) -> None:
    older = tmp_path / "older"
    older.write_bytes(b"".join(lines[:9]))
    assert json.loads(run("restore", str(older), *to).stdout)["head"]["event_id"] == 9
    # Which only a head that was kept elsewhere shows.
    assert run("verify", *to).returncode == 0
    assert run("verify", *to, "--expect", site.expect).returncode == 1


# --- what a file may lack


def test_an_export_without_commit_times_says_that_all_is_committed_now(
    redis_url: str, chain: str, to: tuple[str, ...], tmp_path: Path, lines: list[bytes]
) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"".join(untimed(line.strip()) + b"\n" for line in lines))
    now = int(time.time() * 1000)
    done = run("import", str(old), *to, "--kinds", "ours")
    assert done.returncode == 0
    assert b"the file has no commit times" in done.stderr
    assert json.loads(done.stdout)["commit_times"] == "now"
    assert int(times_of(redis_url, chain)[0].partition(b"-")[0]) >= now


def test_a_line_without_its_commit_time_gets_that_of_a_neighbour(
    site: Site, redis_url: str, chain: str, to: tuple[str, ...], tmp_path: Path, lines: list[bytes]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(
        b"".join(untimed(line.strip()) + b"\n" if n in (0, 7, 8) else line for n, line in enumerate(lines))
    )
    done = run("restore", str(path), *to)
    assert done.returncode == 0, done.stderr
    assert b"3 lines have no commit time" in done.stderr
    assert times_of(redis_url, chain) == site.times  # their neighbours were of the same batch


def test_a_backup_of_a_chain_whose_time_index_is_damaged_can_be_restored(
    site: Site, redis_url: str, chain: str, to: tuple[str, ...], tmp_path: Path, lines: list[bytes]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"".join(lines))
    assert run("restore", str(path), *to).returncode == 0
    with redis.Redis.from_url(redis_url) as client:
        client.xdel(f"{{{chain}}}:time", *site.times[3:5])
    done = run("backup", str(path), *to)
    assert b"2 events are without the time of their commit" in done.stderr
    assert json.loads(done.stdout)["without_commit_time"] == 2
    assert run("restore", str(path), *to[:2], "--chain", f"{chain}.again").returncode == 0


# --- what is refused, before anything is written


def swapped_times(lines: list[bytes]) -> None:
    times = [line[-27:] for line in lines]
    lines[3], lines[4] = lines[3][:-27] + times[8], lines[4][:-27] + times[3]


def at_line(number: int, committed_at: bytes) -> Callable[[list[bytes]], None]:
    def change(lines: list[bytes]) -> None:
        lines[number - 1] = untimed(lines[number - 1].strip())[:-1] + b',"committed_at":%b}\n' % committed_at

    return change


TIMES: dict[str, tuple[Callable[[list[bytes]], None], int, str]] = {
    "out of order": (swapped_times, 5, "2023-11-15T22:13:20.123Z, is earlier than that of the line before"),
    "in the future": (at_line(12, b'"2999-01-01T00:00:00.000Z"'), 12, "2999-01-01T00:00:00.000Z, lies in the future"),
    "another form": (at_line(2, b'"2023-11-14 22:13:20"'), 2, "'2023-11-14 22:13:20', is not a UTC time such as"),
    "no such day": (at_line(2, b'"2023-02-30T00:00:00.000Z"'), 2, "'2023-02-30T00:00:00.000Z', is not a UTC time"),
    "before 1970": (at_line(1, b'"1969-12-31T23:59:59.999Z"'), 1, "'1969-12-31T23:59:59.999Z', is not a UTC time"),
    "a number": (at_line(7, b"1700000000123"), 7, "'1700000000123', is not a UTC time"),
    "nothing": (at_line(15, b"null"), 15, "'null', is not a UTC time"),
}


def test_a_commit_time_that_cannot_be_right_is_named_with_its_line_and_nothing_is_written(
    redis_url: str, chain: str, to: tuple[str, ...], tmp_path: Path, lines: list[bytes]
) -> None:
    path = tmp_path / "x"
    for change, line, says in TIMES.values():
        changed = list(lines)
        change(changed)
        path.write_bytes(b"".join(changed))
        done = run("restore", str(path), *to)
        assert done.returncode == 1
        assert f"line {line}: its committed_at, {says}" in done.stderr.decode()
        assert b"nothing was written" in done.stderr
        assert written(redis_url, chain) == 0
    # No hash covers it, so the file still verifies; and there is a way on.
    assert run("verify", str(path)).returncode == 0
    assert run("restore", str(path), "--without-times", *to).returncode == 0


def test_a_damaged_file_is_refused_and_so_is_a_chain_that_is_not_its_beginning(
    site: Site, redis_url: str, chain: str, to: tuple[str, ...], tmp_path: Path, lines: list[bytes]
) -> None:
    path = tmp_path / "x"
    for data, says in (
        (b"".join(lines).replace(b'{"batch":2}', b'{"batch":9}'), b"line 5: hash mismatch at event #5"),
        (b"".join([*lines[:4], *lines[5:]]), b"line 5: event_id should be 5, got 6"),
        (gzip.compress(b"".join(lines))[:-20], b"is cut off"),
        (b"", b"it holds no event"),
    ):
        path.write_bytes(data)
        done = run("restore", str(path), *to)
        assert says in done.stderr
        assert done.returncode == 1
        assert written(redis_url, chain) == 0
    path.write_bytes(b"".join(lines))
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as other:
        other.post({"kind": "other", "source": "another"}).raise_for_status()
        for command in (("restore", *to), ("import", "--url", other.url), ("import", *to)):
            done = run(command[0], str(path), *command[1:])
            assert done.returncode == 1
            assert b"the chain is another one: its event #1 is not the one in the file" in done.stderr
    path.write_bytes(b"".join(lines[:4]))
    longer = run("restore", str(path), "--redis-url", redis_url, "--chain", site.chain)
    assert b"the chain ends at event #15 already, and the file at #4; nothing was written" in longer.stderr
    assert written(redis_url, chain) == 1


# --- the embedded Valkey


def test_the_set_up_of_two_commands_is_backed_up_while_it_runs_and_restored_into_a_new_folder(tmp_path: Path) -> None:
    data, again, path = tmp_path / "data", tmp_path / "again", tmp_path / "x.gz"
    with running_server(AUDIT_STREAM_DATA_DIR=str(data)) as server:
        server.post({"kind": "other", "source": "s"}).raise_for_status()
        assert run("backup", str(path), url=server.url).returncode == 0
        for command in (("backup", str(tmp_path / "y")), ("restore", str(path))):
            done = run(*command, "--data-dir", str(data))
            assert done.returncode == 2
            assert f"is in use by audit-stream process {server.pid}".encode() in done.stderr
        assert b"leave --data-dir out, or give --url" in run("backup", "y", "--data-dir", str(data)).stderr
    code, shown = on_terminal("backup", str(tmp_path / "z.gz"), "--data-dir", str(data), width=200)
    assert code == 0
    assert (tmp_path / "z.gz").read_bytes() == path.read_bytes()
    verify = next(line for line in plain(shown).splitlines() if line.startswith("audit-stream verify"))
    assert run(*verify.split()[1:]).returncode == 0
    code, shown = on_terminal("restore", str(path), "--data-dir", str(again), width=200)
    assert code == 0, shown
    assert "the chain is verified, all of it" in shown
    assert "idempotency keys" in shown
    assert "accept-loss" in shown
    with EmbeddedValkey(data) as ours, EmbeddedValkey(again) as theirs:
        assert times_of(ours.url, "audit") == times_of(theirs.url, "audit")


def test_a_backup_that_cannot_be_made_leaves_what_was_there(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("as it was")
    for flags, says, code in (
        (("--url", "http://127.0.0.1:1"), b"The chain of a stopped server is backed up with --data-dir DIR", 1),
        (("--redis-url", site.redis_url, "--chain", "nothing.there"), b"the chain is empty", 1),
        (("--data-dir", str(tmp_path)), b"holds no chain", 2),
        (("--data-dir", str(tmp_path), "--redis-url", site.redis_url), b"Choose one of", 2),
    ):
        done = run("backup", str(path), *flags)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
        assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]
    path.chmod(0o644)
    assert site.backup(path).stat().st_mode & 0o777 == 0o600
    assert run("backup", "-").returncode == run("restore", str(path)).returncode == 2
