"""lua/sha256.lua against hashlib, in each of the places where it runs."""

import random
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256

import pytest
import redis

from audit_stream.scripts import source
from tests.fake_redis import FakeRedis

EACH = "local hashes = {} for i, message in ipairs(ARGV) do hashes[i] = sha256(message) end return hashes"
CALL_BYTES = 4096
"""Hashed in one call, so that it does not hold up a Redis that others use as well."""

Hashes = Callable[[list[bytes]], list[bytes]]


@pytest.fixture(params=["redis", "fakeredis"])
def lua_sha256(request: pytest.FixtureRequest) -> Iterator[Hashes]:
    fake = request.param == "fakeredis"
    client = FakeRedis() if fake else redis.Redis.from_url(request.getfixturevalue("redis_url"))
    script = source("sha256") + EACH

    def hashes(messages: list[bytes]) -> list[bytes]:
        answer: list[bytes] = client.execute_command("EVAL", script, 0, *messages)
        return answer

    with client:
        yield hashes


def in_calls(messages: Iterable[bytes]) -> Iterator[list[bytes]]:
    call: list[bytes] = []
    for message in messages:
        if call and sum(map(len, call)) + len(message) > CALL_BYTES:
            yield call
            call = []
        call.append(message)
    yield call


def assert_agree(lua_sha256: Hashes, messages: Iterable[bytes]) -> None:
    for call in in_calls(messages):
        for message, found in zip(call, lua_sha256(call), strict=True):
            expected = sha256(message).hexdigest().encode()
            assert found == expected, f"{len(message)} bytes: {message[:80]!r}"


def test_every_length_from_0_to_300_hashes_as_hashlib_does(lua_sha256: Hashes) -> None:
    some = random.Random(1).randbytes(300)
    assert_agree(lua_sha256, (some[:length] for length in range(301)))


@pytest.mark.parametrize("filling", [b"\x00", b"\xff", b"\x80"])
def test_the_padding_is_right_around_each_block_boundary(lua_sha256: Hashes, filling: bytes) -> None:
    lengths = [block * 64 + beside for block in range(1, 9) for beside in (-9, -8, -1, 0, 1)]
    assert_agree(lua_sha256, (filling * length for length in lengths))


def test_every_byte_value_hashes_as_hashlib_does(lua_sha256: Hashes) -> None:
    assert_agree(lua_sha256, [bytes([value]) for value in range(256)] + [bytes(range(256))])


def test_random_bytes_hash_as_hashlib_does(lua_sha256: Hashes) -> None:
    dice = random.Random(20260515)
    assert_agree(lua_sha256, (dice.randbytes(dice.randrange(2000)) for _ in range(40)))


def test_a_message_of_100_kib_hashes_as_hashlib_does(lua_sha256: Hashes) -> None:
    assert_agree(lua_sha256, [random.Random(7).randbytes(100 * 1024)])


def test_the_vectors_of_the_standard_hash_as_published(lua_sha256: Hashes) -> None:
    # FIPS 180-4's examples, as NIST publishes them.
    published = {
        b"": b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        b"abc": b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
            b"248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
        ),
    }
    assert dict(zip(published, lua_sha256(list(published)), strict=True)) == published


def test_one_call_leaves_nothing_behind_for_the_next(lua_sha256: Hashes) -> None:
    # The message schedule is kept in one table between calls.
    long, short = random.Random(3).randbytes(500), b"x"
    assert lua_sha256([short, long, short])[0] == lua_sha256([long, short])[1]


def test_it_defines_one_local_function_and_no_global(redis_url: str) -> None:
    globals_set = "local before = {} for name in pairs(_G) do before[name] = true end\n"
    new = "local new = {} for name in pairs(_G) do if not before[name] then new[#new + 1] = name end end return new"
    with FakeRedis() as client:
        assert client.execute_command("EVAL", globals_set + source("sha256") + new, 0) == []
    # Redis itself refuses a script that sets a global.
    with redis.Redis.from_url(redis_url) as real:
        assert len(real.execute_command("EVAL", source("sha256") + "return sha256('')", 0)) == 64
