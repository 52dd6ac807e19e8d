"""lua/append.lua as its header describes it, called with keys and arguments made by hand."""

import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import pytest
import redis

from audit_stream.scripts import source

TEXT = source("sha256") + source("append")
GENESIS = b"0" * 64
AT = b"2026-05-15T03:14:15Z"
TTL_MS = 60_000
CHAIN = b"{lua.%d}:" % os.getpid()
EVENTS, TIME, TOKEN = CHAIN + b"events", CHAIN + b"time", CHAIN + b"batch:t"
KIND, SOURCE = CHAIN + b"kind:other", CHAIN + b"source:ci"
SHARED, OWN = CHAIN + b"once:k", CHAIN + b"once:ci\xffk"
DAY_MS = 86_400_000


def hashed(event_id: int, payload: bytes, prev: bytes, source_: bytes = b"ci") -> bytes:
    """The hash of an event, from its canonical text written out here."""
    text = (
        b'{"event_id":%d,"kind":"other","payload":%b,"prev_hash":"%b","source":"%b","timestamp":"2026-05-15T03:14:15Z"}'
    )
    return sha256(text % (event_id, payload, prev, source_)).hexdigest().encode()


FIRST = hashed(1, b'{"n":1}', GENESIS)
SECOND = hashed(2, b'{"n":2}', FIRST)


class Script:
    def __init__(self, client: Any) -> None:
        self.redis = client
        self.sha = client.script_load(TEXT)

    def __call__(self, keys: Sequence[bytes], *arguments: bytes | int) -> Any:
        return self.redis.execute_command("EVALSHA", self.sha, len(keys), *keys, *arguments)

    def ids(self, key: bytes = EVENTS) -> list[bytes]:
        return [entry_id for entry_id, _ in self.redis.xrange(key)]


@pytest.fixture
def script(redis_url: str) -> Iterator[Script]:
    with redis.Redis.from_url(redis_url) as client:
        yield Script(client)
        client.delete(*client.scan_iter(CHAIN + b"*", count=10_000), b"none")


def head(believed: int = 0, hash_: bytes = GENESIS, promised: int = 0, promised_hash: bytes = b"") -> list[bytes | int]:
    return [believed, hash_, promised, promised_hash, TTL_MS, b""]


def event(payload: bytes, hash_: bytes, once: bytes = b"", source_: bytes = b"ci") -> list[bytes]:
    return [AT, b"other", source_, payload, b"", hash_, once]


def first_two(script: Script) -> None:
    keys = [EVENTS, TIME, TOKEN, KIND, SOURCE, KIND, SOURCE]
    reply = script(keys, *head(), *event(b'{"n":1}', FIRST), *event(b'{"n":2}', SECOND))
    assert reply == [b"appended", 1, b"", GENESIS]


# --- answers


def test_appended_with_offered_hashes_names_the_first_id_and_the_hash_before_it(script: Script) -> None:
    first_two(script)
    assert script.redis.xrange(EVENTS)[1] == (
        b"2-0",
        {
            b"timestamp": AT,
            b"kind": b"other",
            b"source": b"ci",
            b"payload": b'{"n":2}',
            b"prev_hash": FIRST,
            b"hash": SECOND,
        },
    )
    assert script.ids(KIND) == script.ids(SOURCE) == [b"1-0", b"2-0"]
    assert [entry_id.partition(b"-")[2] for entry_id in script.ids(TIME)] == [b"1", b"2"]
    assert not script.redis.exists(TOKEN)


def test_appended_with_hashes_of_its_own_gives_them_and_keeps_the_token_for_ten_minutes(script: Script) -> None:
    keys = [EVENTS, TIME, TOKEN, KIND, SOURCE, KIND, SOURCE]
    reply = script(keys, *head(0, b""), *event(b'{"n":1}', b""), *event(b'{"n":2}', b""))
    assert reply == [b"appended", 1, b"", GENESIS, FIRST, SECOND]
    # A batch can be stuck in a stalled Redis for longer than its server asks about it.
    assert 9 * 60_000 < script.redis.pttl(TOKEN) <= 10 * 60_000
    assert script.redis.get(TOKEN) == b"1"


def test_landed_names_the_batch_that_was_appended_before_under_this_token(script: Script) -> None:
    arguments = *head(0, b""), *event(b'{"n":1}', b"")
    script([EVENTS, TIME, TOKEN, KIND, SOURCE], *arguments)
    assert script([EVENTS, TIME, TOKEN, KIND, SOURCE], *arguments) == [b"landed", 1]
    assert script.ids() == [b"1-0"]


def test_the_source_is_hashed_as_it_is_given_in_quotes(script: Script) -> None:
    first = [AT, b"other", 'é"'.encode(), b"{}", b'"\\u00e9\\""', b"", b""]
    *_, hash_ = script([EVENTS, TIME, TOKEN, KIND, SOURCE], *head(0, b""), *first)
    assert hash_ == hashed(1, b"{}", GENESIS, b'\\u00e9\\"')


def test_commit_times_are_restored_in_order_and_none_from_the_future(script: Script) -> None:
    keys = [EVENTS, TIME, TOKEN, KIND, SOURCE, KIND, SOURCE]
    believed = [*head()[:5], b"1000,99999999999999"]
    script(keys, *believed, *event(b'{"n":1}', FIRST), *event(b'{"n":2}', SECOND))
    first, second = script.ids(TIME)
    assert first == b"1000-1"
    assert int(second.partition(b"-")[0]) < 99999999999999


def test_moved_names_the_head_and_writes_nothing(script: Script) -> None:
    first_two(script)
    offer = event(b'{"n":1}', FIRST)
    assert script([EVENTS, TIME, TOKEN, KIND, SOURCE], *head(), *offer) == [b"moved", 2, SECOND]
    assert script([EVENTS, TIME, TOKEN, KIND, SOURCE], *head(2, FIRST), *offer) == [b"moved", 2, SECOND]
    assert script.ids() == [b"1-0", b"2-0"]


def test_seen_names_every_event_that_was_appended_before_and_writes_nothing(script: Script) -> None:
    keys = [EVENTS, TIME, TOKEN, KIND, SOURCE, SHARED, OWN]
    assert script(keys, *head(), *event(b'{"n":1}', FIRST, b"2"))[:2] == [b"appended", 1]
    assert 0 < script.redis.pttl(SHARED) <= TTL_MS
    two = *event(b'{"n":2}', SECOND), *event(b'{"n":1}', b"0" * 64, b"2")
    assert script([*keys[:5], *keys[3:]], *head(1, FIRST), *two) == [b"seen", 2, 1]
    assert script.ids() == [b"1-0"]


def test_a_refused_index_is_reported_and_the_events_are_appended(script: Script) -> None:
    script.redis.set(KIND, "not an index")
    answer, first_id, refused, _ = script([EVENTS, TIME, TOKEN, KIND, SOURCE], *head(), *event(b'{"n":1}', FIRST))
    assert (answer, first_id) == (b"appended", 1)
    assert refused.startswith(KIND + b": WRONGTYPE")
    assert script.ids(SOURCE) == [b"1-0"]


def test_ready_is_the_answer_to_no_event_and_writes_nothing(script: Script) -> None:
    assert script([EVENTS, TIME, TOKEN], *head(0, b"")) == [b"ready", 0, GENESIS]
    assert not script.redis.exists(EVENTS, TIME, TOKEN)
    first_two(script)
    assert script([EVENTS, TIME, TOKEN], *head(0, b"", 2, SECOND)) == [b"ready", 2, SECOND]


# --- errors


def test_hashmismatch_for_an_offered_hash_that_is_not_the_event_s(script: Script) -> None:
    with pytest.raises(redis.ResponseError, match=rf"^HASHMISMATCH event 1 does not hash to {SECOND.decode()}"):
        script([EVENTS, TIME, TOKEN, KIND, SOURCE, SHARED, OWN], *head(), *event(b'{"n":1}', SECOND, b"2"))
    assert not script.redis.exists(EVENTS, TIME, KIND, SOURCE, SHARED, OWN)


@pytest.mark.parametrize("of", ["an append", "a dry run"])
def test_chainbroken_for_a_chain_that_does_not_reach_to_what_was_promised(script: Script, of: str) -> None:
    first_two(script)
    append = of == "an append"
    keys = [EVENTS, TIME, TOKEN, *([KIND, SOURCE] if append else [])]
    offer = event(b"{}", hashed(3, b"{}", SECOND)) if append else []
    with pytest.raises(redis.ResponseError, match=r"^CHAINBROKEN 2 3$"):
        script(keys, *head(2, SECOND, 3, b"f" * 64), *offer)
    with pytest.raises(redis.ResponseError, match=r"^CHAINBROKEN event #1 is not the one that was written$"):
        script(keys, *head(2, SECOND, 1, SECOND), *offer)
    script.redis.xdel(EVENTS, "2-0")
    with pytest.raises(redis.ResponseError, match=r"^CHAINBROKEN 1 2$"):
        script(keys, *head(1, FIRST), *offer if not append else event(b'{"n":2}', SECOND))
    assert script.ids() == [b"1-0"]


@pytest.mark.parametrize("entry", [("5-1", {"a": "b"}), ("5-0", {"timestamp": "x"})])
def test_chainbroken_for_a_last_entry_that_is_not_an_event(script: Script, entry: tuple[str, Any]) -> None:
    script.redis.xadd(EVENTS, entry[1], id=entry[0])
    with pytest.raises(redis.ResponseError, match=rf"^CHAINBROKEN the last entry, {entry[0]}, is not an event$"):
        script([EVENTS, TIME, TOKEN, KIND, SOURCE], *head(), *event(b'{"n":1}', FIRST))


def test_what_redis_answers_to_a_command_that_it_refuses_comes_as_it_is_and_nothing_is_written(script: Script) -> None:
    script.redis.lpush(EVENTS, "no stream")
    with pytest.raises(redis.ResponseError, match=r"^WRONGTYPE"):
        script([EVENTS, TIME, TOKEN, KIND, SOURCE, SHARED, OWN], *head(), *event(b'{"n":1}', FIRST, b"2"))
    assert not script.redis.exists(SHARED, OWN, KIND)


def test_chainbroken_for_a_chain_whose_end_was_cut_leaves_no_idempotency_key(script: Script) -> None:
    """Redis refuses the first event when its keys are set already."""
    script.redis.xadd(EVENTS, {"any": "entry"}, id="5-0")
    script.redis.xdel(EVENTS, "5-0")
    with pytest.raises(redis.ResponseError, match=r"^CHAINBROKEN 0 5$"):
        script([EVENTS, TIME, TOKEN, KIND, SOURCE, SHARED, OWN], *head(), *event(b'{"n":1}', FIRST, b"2"))
    assert not script.redis.exists(SHARED, OWN, KIND)


# --- whose an idempotency key is


def test_the_first_source_has_the_shared_key_and_every_other_one_its_own(script: Script) -> None:
    ours = [EVENTS, TIME, TOKEN, KIND, SOURCE, SHARED, OWN]
    theirs = [*ours[:6], OWN.replace(b"ci", b"cd")]
    script(theirs, *head(0, b""), *event(b"{}", b"", b"2", b"cd"))
    script.redis.delete(TOKEN)
    assert script(ours, *head(0, b""), *event(b"{}", b"", b"2"))[:2] == [b"appended", 2]
    assert (script.redis.get(SHARED), script.redis.get(OWN)) == (b"1", b"2")
    for keys, source_, event_id in ((theirs, b"cd", 1), (ours, b"ci", 2)):
        script.redis.delete(TOKEN)
        assert script(keys, *head(0, b""), *event(b"{}", b"", b"2", source_)) == [b"seen", 1, event_id]
    assert not script.redis.exists(theirs[6])


def test_a_key_whose_event_is_gone_is_reported_and_not_used_again(script: Script) -> None:
    """The caller finds that the event is missing, which is evidence."""
    script.redis.set(SHARED, 7)
    keys = [EVENTS, TIME, TOKEN, KIND, SOURCE, SHARED, OWN]
    assert script(keys, *head(), *event(b'{"n":1}', FIRST, b"2")) == [b"seen", 1, 7]


# --- a server of 0.2.0, with this script


def test_a_caller_of_0_2_0_is_answered_as_by_its_own_script(script: Script) -> None:
    """Its KEYS and ARGV, literally: one key an event and "1" for it, which then counts whatever the source is."""
    keys = [
        CHAIN + b"events",
        CHAIN + b"time",
        CHAIN + b"batch:0123456789abcdef",
        CHAIN + b"kind:other",
        CHAIN + b"source:ci",
        CHAIN + b"once:k",
        CHAIN + b"kind:other",
        CHAIN + b"source:ci",
    ]
    batch = [AT, b"other", b"ci", b'{"n":1}', b"", FIRST, b"1", AT, b"other", b"ci", b'{"n":2}', b"", SECOND, b""]
    assert script(keys, 0, GENESIS, 0, b"", DAY_MS, b"", *batch) == [b"appended", 1, b"", GENESIS]
    assert script.redis.get(keys[5]) == b"1"
    assert DAY_MS - 60_000 < script.redis.pttl(keys[5]) <= DAY_MS
    another = [AT, b"other", b"cd", b"{}", b"", b"0" * 64, b"1"]
    assert script(keys[:6], 2, SECOND, 2, SECOND, DAY_MS, b"", *another) == [b"seen", 1, 1]
    assert script(keys[:6], 0, GENESIS, 0, b"", DAY_MS, b"", *batch[:7]) == [b"moved", 2, SECOND]


@pytest.mark.parametrize("first", ["1", "2"])
def test_a_retry_that_meets_the_other_version_is_stored_once(script: Script, first: str) -> None:
    offer = event(b'{"n":1}', FIRST)[:6]
    keys = {"1": [EVENTS, TIME, TOKEN, KIND, SOURCE, SHARED], "2": [EVENTS, TIME, TOKEN, KIND, SOURCE, SHARED, OWN]}
    assert script(keys[first], *head(), *offer, first.encode())[:2] == [b"appended", 1]
    for version in "12":
        assert script(keys[version], *head(1, FIRST), *offer, version.encode()) == [b"seen", 1, 1]
    assert script.ids() == [b"1-0"]
