"""What somebody who may write to Redis can change, and what verify says about it.

Twelve events, changed with plain Redis commands in every way we could think of. Each way must be found at
its place and in the known words; the few that cannot be found from Redis alone stand at the end.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any, NamedTuple

import pytest

from audit_stream.stream import Stream
from audit_stream.verifier import Report, Verifier
from tests.harness import ServerProcess, running_server
from tests.tamper.stored import FIELDS, Entry, Stored, link, put, value

EVENTS = 12
KINDS = ("request_allowed", "request_denied", "other")
SOURCES = ("gate", "mesh")


def requests(count: int) -> list[dict[str, Any]]:
    pairs = islice(zip(cycle(KINDS), cycle(SOURCES), strict=False), count)
    return [
        {"kind": kind, "source": source, "payload": {"n": n}, "timestamp": "2026-05-15T03:14:15Z"}
        for n, (kind, source) in enumerate(pairs, start=1)
    ]


def kind_of(event_id: int) -> str:
    return KINDS[(event_id - 1) % len(KINDS)]


def source_of(event_id: int) -> str:
    return SOURCES[(event_id - 1) % len(SOURCES)]


class Intact(NamedTuple):
    """A server, its chain of twelve, and the backup that every test begins with."""

    server: ServerProcess
    stored: Stored
    redis_url: str
    chain: str
    dump: dict[bytes, bytes]


@pytest.fixture(scope="module")
def twelve(redis_url: str) -> Iterator[Intact]:
    chain = f"tamper.{secrets.token_hex(4)}"
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as server:
        assert server.post_batch(requests(EVENTS)).status_code == 201
        stored = Stored(redis_url, chain)
        yield Intact(server, stored, redis_url, chain, stored.dump())
        stored.close()


@pytest.fixture
def intact(twelve: Intact) -> Intact:
    twelve.stored.restore(twelve.dump)
    return twelve


# --- the ways


class Damage(NamedTuple):
    name: str
    do: Callable[[Stored], object]
    at: int
    reason: str
    checked: int


def edit(event_id: int, field: bytes, new: bytes) -> Callable[[Stored], object]:
    return lambda stored: stored.change(lambda entries: put(entries[event_id - 1], field, new))


def gone(*event_ids: int) -> Callable[[Stored], object]:
    return lambda stored: stored.delete(*event_ids)


def edits() -> Iterator[Damage]:
    changed = {
        b"timestamp": b"2026-05-15T03:14:16Z",
        b"kind": b"flag_swapped",
        b"source": b"nobody",
        b"payload": b'{"n":0}',
        b"prev_hash": b"f" * 64,
        b"hash": b"e" * 64,
    }
    assert set(changed) == set(FIELDS)
    for event_id in (1, 6, EVENTS):
        for field, new in changed.items():
            what = "prev_hash" if field == b"prev_hash" else "hash"
            yield Damage(
                f"{field.decode()} of #{event_id} is edited",
                edit(event_id, field, new),
                event_id,
                f"{what} mismatch at event #{event_id}",
                event_id - 1,
            )


def swap(entries: list[Entry]) -> None:
    (sixth, one), (seventh, two) = entries[5:7]
    entries[5:7] = (sixth, two), (seventh, one)


def insert(entry: Callable[[list[Entry]], Entry]) -> Callable[[list[Entry]], None]:
    """Put an entry in the place of #7 and move those behind it."""

    def change(entries: list[Entry]) -> None:
        entries.insert(6, entry(entries))
        entries[:] = [(b"%d-0" % number, fields) for number, (_, fields) in enumerate(entries, start=1)]

    return change


def well_linked(entries: list[Entry]) -> Entry:
    made = [*entries[:6], (b"7-0", list(entries[2][1]))]
    link(made, start=6)
    return made[6]


def relink(event_id: int) -> Callable[[list[Entry]], None]:
    """Edit an event and give it the hash of what it says now."""

    def change(entries: list[Entry]) -> None:
        put(entries[event_id - 1], b"payload", b'{"n":0}')
        made = entries[:event_id]
        link(made, start=event_id - 1)
        entries[event_id - 1] = made[-1]

    return change


def split_elsewhere(entries: list[Entry]) -> None:
    """Move bytes from a field to its neighbours so that all of them, read in order, are as before.

    For this the payload of #6 was made to hold what follows a payload.
    """
    linked_to = value(entries[4], b"hash")
    put(entries[5], b"payload", b'{"a":1,"prev_hash":"%b","source":"x","timestamp":"y"}' % linked_to)
    link(entries, start=5)
    behind = b'y"},"prev_hash":"%b","source":"%b","timestamp":"%b' % tuple(
        value(entries[5], name) for name in (b"prev_hash", b"source", b"timestamp")
    )
    put(entries[5], b"payload", b'{"a":1')
    put(entries[5], b"source", b"x")
    put(entries[5], b"timestamp", behind)


def chain_damages() -> Iterator[Damage]:
    yield from edits()
    for event_id in (1, 6, 11):
        yield Damage(
            f"#{event_id} is deleted",
            gone(event_id),
            event_id,
            f"event_id should be {event_id}, got {event_id + 1}",
            event_id - 1,
        )
    for cut in (1, 3):
        end = EVENTS - cut
        yield Damage(
            f"the last {cut} are deleted",
            gone(*range(end + 1, EVENTS + 1)),
            end + 1,
            f"chain ends at event #{end}, but #{EVENTS} was written",
            end,
        )
    yield Damage(
        "all are deleted",
        gone(*range(1, EVENTS + 1)),
        1,
        f"chain ends at event #0, but #{EVENTS} was written",
        0,
    )

    def rebuilt(name: str, change: Callable[[list[Entry]], object], at: int, reason: str, checked: int) -> Damage:
        return Damage(name, lambda stored: stored.change(change), at, reason, checked)

    yield rebuilt("#6 and #7 are swapped", swap, 6, "prev_hash mismatch at event #6", 5)
    yield rebuilt("a copy of #3 is inserted", insert(lambda e: (b"", e[2][1])), 7, "prev_hash mismatch at event #7", 6)
    yield rebuilt("a well linked one is inserted", insert(well_linked), 8, "prev_hash mismatch at event #8", 7)
    yield rebuilt("#6 is edited and hashed again", relink(6), 7, "prev_hash mismatch at event #7", 6)
    yield rebuilt("the fields of #6 are split elsewhere", split_elsewhere, 6, "hash mismatch at event #6", 5)

    def entry(name: str, place: int, made: Callable[[Entry], list[Entry]], at: int, entry_id: str, what: str) -> Damage:
        def change(entries: list[Entry]) -> None:
            entries[place : place + 1] = made(entries[place])

        return rebuilt(name, change, at, f"entry {entry_id} is not an event: its {what} not an event's", at - 1)

    foreign_id, foreign_fields = "id is", "fields are"
    yield entry("0-1 stands before #1", 0, lambda e: [(b"0-1", e[1]), e], 1, "0-1", foreign_id)
    yield entry("5-1 stands behind #5", 4, lambda e: [e, (b"5-1", e[1])], 6, "5-1", foreign_id)
    yield entry("12-1 stands behind #12", 11, lambda e: [e, (b"12-1", e[1])], 13, "12-1", foreign_id)
    yield entry("#6 has other fields", 5, lambda e: [(e[0], [b"say", b"hello"])], 6, "6-0", foreign_fields)
    yield entry(
        "#6 has its fields in another order", 5, lambda e: [(e[0], e[1][2:] + e[1][:2])], 6, "6-0", foreign_fields
    )
    yield entry("#6 has a field too many", 5, lambda e: [(e[0], [*e[1], b"a", b"b"])], 6, "6-0", foreign_fields)
    yield entry("#6 has a field too few", 5, lambda e: [(e[0], e[1][:-2])], 6, "6-0", foreign_fields)
    yield entry("#12 has other fields", 11, lambda e: [(e[0], [b"say", b"hello"])], 12, "12-0", foreign_fields)


def index_damages() -> Iterator[Damage]:
    """The chain is whole, but who asks by kind, source or time would not be told so."""

    def damage(name: str, do: Callable[[Stored], object], at: int, says: str) -> Damage:
        return Damage(f"{name} index {says}", do, at, f"index {{}}:{name} {says}", EVENTS)

    def delete(name: str) -> Callable[[Stored], object]:
        return lambda stored: stored.client.delete(stored.key(name))

    def lack_sixth(name: str) -> Callable[[Stored], object]:
        return lambda stored: stored.change(lambda entries: entries.remove(sixth(entries)), stored.key(name))

    def sixth(entries: list[Entry]) -> Entry:
        return next(entry for entry in entries if b"6" in entry[0].removesuffix(b"-0").rpartition(b"-"))

    def seventh_as_well(name: str) -> Callable[[Stored], object]:
        def change(entries: list[Entry]) -> None:
            entries.insert(entries.index(sixth(entries)) + 1, (b"7-0", [b"", b""]))

        return lambda stored: stored.change(change, stored.key(name))

    def sixth_again(stored: Stored) -> None:
        newest = int(stored.entries(stored.key("time"))[-1][0].partition(b"-")[0])
        stored.client.execute_command("XADD", stored.key("time"), b"%d-6" % (newest + 1), "", "")

    for name, first in ((f"kind:{kind_of(6)}", 3), (f"source:{source_of(6)}", 2), ("time", 1)):
        yield damage(name, lack_sixth(name), 6, "lacks event #6")
        yield damage(name, delete(name), first, f"lacks event #{first}")
        if name != "time":
            yield damage(name, seventh_as_well(name), 7, "holds #7, which does not belong there")
    yield damage("time", sixth_again, 6, "holds #6, which does not belong there")


DAMAGES = [*chain_damages(), *index_damages()]
INDEX_DAMAGES = {damage.name for damage in index_damages()}
each_damage = pytest.mark.parametrize("damage", DAMAGES, ids=[damage.name for damage in DAMAGES])


# --- what verify says


def checked_directly(intact: Intact, first: int = 1, last: int | None = None) -> Report:
    async def walk() -> Report:
        stream = Stream.at(intact.redis_url, intact.chain)
        try:
            return await Verifier(stream).verify(first, last)
        finally:
            await stream.close()

    return asyncio.run(walk())


def test_the_untouched_chain_verifies_so_every_finding_below_is_the_damage(intact: Intact) -> None:
    for verdict in (intact.server.verify(), intact.server.get("/verify?deep=true").json()):
        assert (verdict["valid"], verdict["checked"], verdict["reason"]) == (True, EVENTS, None)
        assert verdict["indexes"] == "agree"
    assert checked_directly(intact).verdict.valid


@each_damage
def test_verify_finds_it_at_its_place_in_the_known_words(intact: Intact, damage: Damage) -> None:
    damage.do(intact.stored)
    reason = damage.reason.replace("{}", f"{{{intact.chain}}}")

    verdict = intact.server.verify()
    assert verdict["valid"] is False
    assert (verdict["first_break_at"], verdict["reason"]) == (damage.at, reason)
    assert verdict["checked"] == verdict["head"]["event_id"] == damage.checked
    assert verdict["indexes"] == ("disagree" if damage.name in INDEX_DAMAGES else "not checked")

    direct = checked_directly(intact).verdict
    assert (direct.valid, direct.first_break_at, direct.reason) == (False, damage.at, reason)
    assert (direct.checked, direct.head.event_id) == (damage.checked, damage.checked)


@pytest.mark.parametrize("name", ["time", "kind:other", "source:mesh"])
def test_verify_finds_an_index_that_is_no_stream(intact: Intact, name: str) -> None:
    key = intact.stored.key(name)
    intact.stored.client.set(key, "mine")
    verdict = intact.server.verify()
    assert (verdict["valid"], verdict["checked"], verdict["indexes"]) == (False, EVENTS, "disagree")
    assert key.decode() in verdict["reason"]
    assert checked_directly(intact).verdict.valid is False


def test_only_a_deep_verify_finds_two_index_entries_that_changed_places(intact: Intact) -> None:
    # Each index is as long as before, but #5 and #6 now stand under each other's source.
    for event_id, other in ((5, 6), (6, 5)):
        key = intact.stored.key(f"source:{source_of(event_id)}")
        there = [
            b"%d-0" % (other if entry[0] == b"%d-0" % event_id else int(entry[0][:-2]))
            for entry in intact.stored.entries(key)
        ]
        intact.stored.rebuild([(entry_id, [b"", b""]) for entry_id in there], key)
    assert intact.server.verify()["valid"]
    verdict = intact.server.get("/verify?deep=true").json()
    assert (verdict["valid"], verdict["first_break_at"], verdict["indexes"]) == (False, 5, "disagree")


@pytest.mark.parametrize(
    ("first", "last", "found"),
    [(1, 5, None), (1, 6, 6), (6, 6, 6), (6, None, 6), (7, None, None), (7, 12, None)],
)
def test_a_part_of_the_chain_is_judged_on_its_own(
    intact: Intact, first: int, last: int | None, found: int | None
) -> None:
    edit(6, b"payload", b'{"n":0}')(intact.stored)
    query = f"/verify?from={first}" + (f"&to={last}" if last else "")
    verdict = intact.server.get(query).json()
    assert (verdict["valid"], verdict["first_break_at"]) == (found is None, found)
    assert (verdict["first"], verdict["indexes"]) == (first, "not checked")
    assert verdict["checked"] == ((last or EVENTS) if found is None else found - 1) - first + 1
    assert checked_directly(intact, first, last).verdict.first_break_at == found


def test_a_part_cannot_begin_behind_an_event_that_is_gone(intact: Intact) -> None:
    intact.stored.delete(6)
    verdict = intact.server.get("/verify?from=7").json()
    assert (verdict["valid"], verdict["checked"], verdict["first_break_at"]) == (False, 0, 6)


@each_damage
def test_reading_around_it_is_never_a_server_error(intact: Intact, damage: Damage) -> None:
    damage.do(intact.stored)
    for path in (
        "/events",
        "/events?limit=3",
        "/events?after=4&limit=4",
        "/events?before=8&limit=4",
        f"/events?kind={kind_of(6)}",
        f"/events?source={source_of(6)}&kind={kind_of(6)}",
        "/events?since=2026-01-01T00:00:00Z",
        "/events?until=2999-01-01T00:00:00Z",
        *(f"/events/{event_id}" for event_id in (1, 5, 6, 7, 12, 13)),
        "/verify?from=3&to=9",
        "/verify?from=7",
        "/stats",
    ):
        response = intact.server.get(path)
        assert response.status_code < 500, (path, response.text)
        if response.status_code != 200:
            assert response.json()["status"] == response.status_code
    for after in (0, 4, 12):
        with intact.server.client.stream("GET", f"/stream?after={after}") as stream:
            assert stream.status_code in (200, 409)
            assert next(stream.iter_bytes())
    lines = intact.server.get("/verify", Accept="application/x-ndjson").text.splitlines()
    assert json.loads(lines[-1])["valid"] is False


@pytest.mark.parametrize("key", ["events", "time", "kind:other", "source:mesh"])
def test_a_key_of_another_type_is_never_a_server_error(intact: Intact, key: str) -> None:
    intact.stored.client.set(intact.stored.key(key), "mine")
    for path in (
        "/events",
        "/events?kind=other&source=mesh",
        "/events?since=2026-01-01T00:00:00Z",
        "/events/6",
        "/stats",
    ):
        assert intact.server.get(path).status_code < 500, path
    assert intact.server.get("/verify").status_code < 500


# --- nothing is built on a cut end


def refused_for_the_cut(server: ServerProcess, stored: Stored) -> None:
    before = stored.dump()
    for answer in (server.post(requests(1)[0]), server.post_batch(requests(3))):
        assert answer.status_code == 409
        assert answer.headers["content-type"] == "application/problem+json"
        body = answer.json()
        assert (body["status"], body["at"]) == (409, 10)
        assert body["detail"] == "chain ends at event #9, but #12 was written"
    assert stored.dump() == before


def test_the_replica_that_wrote_the_cut_events_refuses_to_append(intact: Intact) -> None:
    intact.stored.delete(10, 11, 12)
    refused_for_the_cut(intact.server, intact.stored)


def test_a_replica_that_never_saw_the_cut_events_refuses_to_append(intact: Intact) -> None:
    intact.stored.delete(10, 11, 12)
    for hashing in ("checked", "script"):
        with running_server(
            AUDIT_STREAM_REDIS_URL=intact.redis_url,
            AUDIT_STREAM_CHAIN=intact.chain,
            AUDIT_STREAM_HASHING=hashing,
        ) as fresh:
            refused_for_the_cut(fresh, intact.stored)


def test_appending_goes_on_once_the_events_are_back(intact: Intact) -> None:
    intact.stored.delete(10, 11, 12)
    refused_for_the_cut(intact.server, intact.stored)
    intact.stored.restore(intact.dump)
    assert intact.server.post(requests(1)[0]).json()["event_id"] == EVENTS + 1
    assert intact.server.verify()["valid"]


def test_nothing_is_appended_behind_an_entry_that_is_no_event(intact: Intact) -> None:
    intact.stored.client.execute_command("XADD", intact.stored.events, "12-1", "say", "hello")
    before = intact.stored.dump()
    assert intact.server.post(requests(1)[0]).status_code == 409
    assert intact.stored.dump() == before


# --- what cannot be found from Redis alone: a checkpoint kept elsewhere finds it


@pytest.fixture
def receipts(server: ServerProcess) -> list[dict[str, Any]]:
    """What the producers were given: each is a checkpoint."""
    given: list[dict[str, Any]] = server.post_batch(requests(EVENTS)).json()
    return given


@pytest.fixture
def stored(redis_url: str, chain: str) -> Iterator[Stored]:
    opened = Stored(redis_url, chain)
    yield opened
    opened.close()


def test_a_wholly_rewritten_chain_verifies_but_its_head_is_not_the_receipts(
    server: ServerProcess, stored: Stored, receipts: list[dict[str, Any]]
) -> None:
    def rewrite(entries: list[Entry]) -> None:
        put(entries[0], b"payload", b'{"n":"never happened"}')
        link(entries)

    stored.change(rewrite)
    verdict = server.verify()
    assert (verdict["valid"], verdict["checked"]) == (True, EVENTS)
    assert verdict["head"]["event_id"] == receipts[-1]["event_id"]
    assert verdict["head"]["hash"] != receipts[-1]["hash"]


def test_an_old_backup_verifies_but_it_ends_before_the_receipts(
    server: ServerProcess, stored: Stored, receipts: list[dict[str, Any]]
) -> None:
    backup = stored.dump()
    later = server.post_batch(requests(3)).json()
    stored.restore(backup)
    verdict = server.verify()
    assert (verdict["valid"], verdict["checked"]) == (True, EVENTS)
    assert verdict["head"] == {"event_id": EVENTS, "hash": receipts[-1]["hash"]}
    assert later[-1]["event_id"] > verdict["head"]["event_id"]
    # The replica that gave those receipts still knows, and builds nothing on the backup.
    assert server.post(requests(1)[0]).status_code == 409


def test_an_end_cut_off_by_building_every_key_anew_verifies_but_it_ends_before_the_receipts(
    server: ServerProcess, stored: Stored, receipts: list[dict[str, Any]]
) -> None:
    for key in [key for key in stored.all_keys() if stored.client.type(key) == b"stream"]:
        place = 1 if key == stored.key("time") else 0
        entries = stored.entries(key)
        stored.rebuild([entry for entry in entries if int(entry[0].split(b"-")[place]) <= EVENTS - 3], key)
    verdict = server.verify()
    assert (verdict["valid"], verdict["checked"]) == (True, EVENTS - 3)
    assert receipts[-1]["event_id"] > verdict["head"]["event_id"]
