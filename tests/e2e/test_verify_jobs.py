"""`audit-stream verify --jobs`: many processes say word for word what one says."""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from audit_stream import split_walk
from audit_stream.chain import Verdict
from audit_stream.errors import AuditStreamError
from audit_stream.parallel import Tell
from audit_stream.split_walk import SplitWalk
from audit_stream.stream import Stream
from audit_stream.verifier import Report, Walk
from tests.e2e.terminal import on_terminal, run
from tests.harness import ServerProcess, running_server
from tests.tamper.stored import Entry, Stored, link, put
from tests.tamper.test_tamper import DAMAGES, EVENTS, requests

NO_REDIS = "redis://127.0.0.1:1/0"
JOBS = (1, 2, 3)


@pytest.fixture
def stored(server: ServerProcess, redis_url: str, chain: str) -> Iterator[Stored]:
    """A chain of twelve; two parts meet between #6 and #7, three behind #4 and #8."""
    server.post_batch(requests(EVENTS)).raise_for_status()
    opened = Stored(redis_url, chain)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shared(redis_url: str) -> Iterator[tuple[Stored, str, dict[bytes, bytes]]]:
    chain = f"jobs.{secrets.token_hex(4)}"
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as server:
        server.post_batch(requests(EVENTS)).raise_for_status()
    opened = Stored(redis_url, chain)
    yield opened, chain, opened.dump()
    opened.close()


@pytest.fixture
def backed_up(shared: tuple[Stored, str, dict[bytes, bytes]]) -> tuple[Stored, str]:
    """The same twelve for every test, whole again each time."""
    stored, chain, dump = shared
    stored.restore(dump)
    return stored, chain


async def one_after_another(work: Callable[[Any, Tell], Any], parts: Sequence[Any], tell: Tell) -> list[Any]:
    """The parts without the processes."""
    return [await asyncio.to_thread(work, part, tell) for part in parts]


def walked(redis_url: str, chain: str, jobs: int | None, first: int = 1, last: int | None = None) -> Report:
    async def walk() -> Report:
        stream = Stream.at(redis_url, chain)
        try:
            if jobs is None:
                return await Walk(stream, first, last).run()
            return await SplitWalk(redis_url, stream, first, last, jobs=jobs).run()
        finally:
            await stream.close()

    return asyncio.run(walk())


def words(report: Report) -> tuple[Verdict, int, str]:
    return report.verdict, report.first, report.indexes


def edit(event_id: int) -> Callable[[Stored], object]:
    return lambda stored: stored.change(lambda entries: put(entries[event_id - 1], b"payload", b'{"n":0}'))


def hash_again(event_id: int) -> Callable[[Stored], object]:
    """Edit an event and give it the hash of what it says now, so that the link to the next one breaks."""

    def change(entries: list[Entry]) -> None:
        put(entries[event_id - 1], b"payload", b'{"n":0}')
        made = entries[:event_id]
        link(made, start=event_id - 1)
        entries[event_id - 1] = made[-1]

    return lambda stored: stored.change(change)


def squeeze_in(event_id: int) -> Callable[[Stored], object]:
    def change(entries: list[Entry]) -> None:
        entries.insert(event_id, (b"%d-1" % event_id, entries[event_id - 1][1]))

    return lambda stored: stored.change(change)


WAYS: dict[str, Callable[[int], Callable[[Stored], object]]] = {
    "edited": edit,
    "deleted": lambda event_id: lambda stored: stored.delete(event_id),
    "hashed again": hash_again,
    "followed by a stranger": squeeze_in,
}


@pytest.mark.parametrize("damage", DAMAGES, ids=[damage.name for damage in DAMAGES])
def test_parts_say_of_every_damage_what_one_walk_says(
    backed_up: tuple[Stored, str], redis_url: str, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, chain = backed_up
    monkeypatch.setattr(split_walk, "in_processes", one_after_another)
    damage.do(stored)
    alone = words(walked(redis_url, chain, None))
    assert not alone[0].valid
    for jobs in JOBS:
        assert words(walked(redis_url, chain, jobs)) == alone


@pytest.mark.parametrize("way", WAYS)
def test_parts_find_a_damage_at_either_side_of_a_seam(
    stored: Stored, redis_url: str, chain: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_walk, "in_processes", one_after_another)
    backup = stored.dump()
    for event_id in range(1, EVENTS + 1):
        stored.restore(backup)
        WAYS[way](event_id)(stored)
        alone = words(walked(redis_url, chain, None))
        # The last link hashed again is a link like any other: only a pin tells.
        assert alone[0].valid is (way == "hashed again" and event_id == EVENTS)
        for jobs in JOBS:
            assert words(walked(redis_url, chain, jobs)) == alone, (event_id, jobs)
        for first, last in ((3, None), (1, 9), (5, 8)):
            part = words(walked(redis_url, chain, None, first, last))
            assert words(walked(redis_url, chain, 2, first, last)) == part, (event_id, first, last)


def test_many_events_gone_around_a_seam_are_found_at_the_first(stored: Stored, redis_url: str, chain: str) -> None:
    stored.delete(4, 5, 6, 7, 8)
    verdict = walked(redis_url, chain, 3).verdict
    assert (verdict.first_break_at, verdict.reason) == (4, "event_id should be 4, got 9")


def test_an_event_that_changed_while_the_parts_were_read_breaks_the_seam(
    stored: Stored, redis_url: str, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part holds, but the end of the first is not what the second is linked to."""

    async def with_a_change(work: Callable[[Any, Tell], Any], parts: Sequence[Any], tell: Tell) -> list[Any]:
        before = await asyncio.to_thread(work, parts[0], tell)

        def rewrite(entries: list[Entry]) -> None:
            put(entries[0], b"payload", b'{"n":"never happened"}')
            link(entries)

        stored.change(rewrite)
        behind = await asyncio.to_thread(work, parts[1], tell)
        assert before.verdict.valid
        assert behind.verdict.valid
        return [before, behind]

    monkeypatch.setattr(split_walk, "in_processes", with_a_change)
    verdict = walked(redis_url, chain, 2).verdict
    assert (verdict.valid, verdict.checked) == (False, 6)
    assert (verdict.first_break_at, verdict.reason) == (7, "prev_hash mismatch at event #7")


def test_events_appended_while_the_parts_were_read_are_checked_as_well(
    server: ServerProcess, stored: Stored, redis_url: str, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def with_more(work: Callable[[Any, Tell], Any], parts: Sequence[Any], tell: Tell) -> list[Any]:
        answers = await one_after_another(work, parts, tell)
        server.post_batch(requests(5)).raise_for_status()
        return answers

    monkeypatch.setattr(split_walk, "in_processes", with_more)
    report = walked(redis_url, chain, 2)
    assert (report.verdict.valid, report.verdict.checked, report.indexes) == (True, EVENTS + 5, "agree")


# --- the command, with its processes


@pytest.mark.parametrize("damage", [None, *(d for d in DAMAGES if "#6 and #7" in d.name or "last 3" in d.name)])
def test_the_command_answers_the_same_with_any_number_of_jobs(
    server: ServerProcess, stored: Stored, redis_url: str, chain: str, damage: Any
) -> None:
    if damage:
        damage.do(stored)
    expected = server.verify()
    del expected["took_ms"]
    for jobs in JOBS:
        done = run("verify", "--redis-url", redis_url, "--chain", chain, "--jobs", str(jobs))
        verdict = json.loads(done.stdout)
        assert done.stderr == b""
        assert done.returncode == (1 if damage else 0)
        del verdict["took_ms"]
        assert verdict == expected, jobs


def test_a_person_is_told_the_same_words(stored: Stored, redis_url: str, chain: str) -> None:
    shown = [on_terminal("verify", "--redis-url", redis_url, "--chain", chain, "--jobs", jobs)[1] for jobs in "12"]
    assert "intact" in shown[0]
    alone, shared = (text.partition("  indexes  ")[2] for text in shown)
    assert alone == shared


def test_redis_away_from_a_process_is_an_error_and_no_verdict(stored: Stored, redis_url: str, chain: str) -> None:
    async def walk() -> Report:
        stream = Stream.at(redis_url, chain)
        try:
            return await SplitWalk(NO_REDIS, stream, 1, None, jobs=2).run()
        finally:
            await stream.close()

    with pytest.raises(AuditStreamError, match="Redis is away"):
        asyncio.run(walk())


def test_jobs_are_for_those_who_compute(server: ServerProcess) -> None:
    done = run("verify", "--jobs", "2", url=server.url)
    assert done.returncode == 2
    assert b"--jobs needs --redis-url" in done.stderr


@pytest.mark.parametrize("how", ["url", "redis"])
def test_only_a_deep_verify_finds_entries_that_changed_places(
    server: ServerProcess, stored: Stored, redis_url: str, chain: str, how: str
) -> None:
    # Each index is as long as before, but #5 and #6 now stand under each other's source.
    for source, gone, there in (("gate", 5, 6), ("mesh", 6, 5)):
        key = stored.key(f"source:{source}")
        ids = [int(entry_id[:-2]) for entry_id, _ in stored.entries(key)]
        stored.rebuild([(b"%d-0" % (there if n == gone else n), [b"", b""]) for n in ids], key)
    flags = ("--url", server.url) if how == "url" else ("--redis-url", redis_url, "--chain", chain, "--jobs", "2")
    assert run("verify", *flags).returncode == 0
    deep = run("verify", "--deep", *flags)
    assert deep.returncode == 1
    assert json.loads(deep.stdout)["first_break_at"] == 5
