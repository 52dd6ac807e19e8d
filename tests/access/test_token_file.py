"""The token file: what is read, what is refused and how that is said, and what a change does."""

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_stream.access.entry import PREFIX, SCOPES, Entry, digest_of, new_token, parse_entries, read_entries, to_toml
from audit_stream.access.limit import Limit
from audit_stream.access.table import Tokens
from audit_stream.errors import Misconfigured
from tests.access.holders import Holder, write_tokens

ALICE = '[[token]]\nname = "alice"\nsha256 = "{}"\nscopes = ["read"]\n'.format("a" * 64)
BOB = ALICE.replace("alice", "bob").replace("a" * 64, "b" * 64)

MISTAKES = [
    ("", "has no token; `audit-stream token new"),
    ("token = []", "has no token"),
    ("[[token]", "is not TOML: "),
    ("\udcff", "is not TOML: "),
    ("a = " + "[" * 5000, "nested too deep"),
    ("[token]\nname = 'a'", "token: every token begins with a line [[token]], in two brackets"),
    ("token = 'a'", "token: every token begins"),
    ("token = ['a']", "token 1: Expected `object`, got `str`"),
    (f"{ALICE}\n[limits]\n", "limits: no such key"),
    (ALICE.replace("scopes", "scope"), "token 1 (alice): Object contains unknown field `scope`"),
    (ALICE.replace('scopes = ["read"]', ""), "token 1 (alice): Object missing required field `scopes`"),
    (ALICE.replace('["read"]', "[]"), "token 1 (alice): scopes: Expected `array` of length >= 1"),
    (
        BOB + ALICE.replace('"read"', '"raed"'),
        "token 2 (alice): scopes[0]: Invalid enum value 'raed'; scopes are append,",
    ),
    (ALICE.replace('["read"]', '"read"'), "token 1 (alice): scopes: Expected `array`, got `str`"),
    (ALICE.replace("alice", "al ice"), "token 1 (al ice): name: Expected `str` matching"),
    (ALICE.replace("alice", "a" * 65), "name: Expected `str` matching"),
    (ALICE.replace("alice", "alice\\n"), "name: Expected `str` matching"),
    (ALICE.replace('"alice"', "7"), "token 1: name: Expected `str`, got `int`"),
    (ALICE.replace("a" * 64, "a" * 63), "token 1 (alice): sha256: Expected `str` matching"),
    (ALICE.replace("a" * 64, "g" * 64), "token 1 (alice): sha256: Expected `str` matching"),
    (f"{ALICE}sources = []", "token 1 (alice): sources: Expected `array` of length >= 1"),
    (f"{ALICE}sources = ['']", "token 1 (alice): sources[0]: Expected `str` of length >= 1"),
    (f"{ALICE}requests_per_second = 0", "token 1 (alice): requests_per_second: Expected `float` > 0.0"),
    (f"{ALICE}bytes_per_second = nan", "token 1 (alice): bytes_per_second: Expected `float` > 0.0"),
    (f"{ALICE}bytes_per_second = inf", "token 1 (alice): bytes_per_second: Expected `float` <= "),
    (f"{ALICE}bytes_per_second = true", "token 1 (alice): bytes_per_second: Expected `float | null`, got `bool`"),
    (ALICE + BOB.replace("bob", "Alice"), "token 2 (Alice): name: token 1 has the same one"),
    (ALICE + BOB.replace("b" * 64, "A" * 64), "token 2 (bob): sha256: token 1 has the same one"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_a_mistake_is_named_with_the_file_the_entry_and_the_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Misconfigured) as caught:
        read_entries(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_a_token_in_the_place_of_its_hash_is_refused_and_not_repeated() -> None:
    secret = new_token()
    with pytest.raises(Misconfigured) as caught:
        parse_entries(ALICE.replace("a" * 64, secret).encode(), "tokens.toml")
    assert "this is a token, and the file is to keep its SHA-256" in str(caught.value)
    assert secret not in str(caught.value)


@pytest.mark.parametrize("what", ["missing", "directory", "huge"])
def test_a_file_that_cannot_be_one_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "directory":
        path.mkdir()
    elif what == "huge":
        path.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    with pytest.raises(Misconfigured, match=str(path)):
        read_entries(path)


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)
rates = st.none() | st.floats(1e-9, 1e12)
entries = st.builds(
    Entry,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:@/-]{0,63}", fullmatch=True),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    scopes=st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3).map(tuple),
    sources=st.none() | st.lists(text, min_size=1, max_size=3).map(tuple),
    requests_per_second=rates,
    bytes_per_second=rates,
)


@given(st.lists(entries, min_size=1, max_size=4, unique_by=(lambda e: e.name.lower(), lambda e: e.sha256)))
@settings(max_examples=50, deadline=None)
def test_entries_one_after_the_other_are_a_file_that_says_the_same(written: list[Entry]) -> None:
    assert parse_entries("".join(map(to_toml, written)).encode(), "f") == tuple(written)


def test_a_new_token_is_its_own_and_looks_like_one() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(len(token) == len(PREFIX) + 52 and token.startswith(PREFIX) for token in made)


# --- in force


def test_a_token_is_found_by_itself_alone(tmp_path: Path) -> None:
    alice, bob = Holder("alice", "read"), Holder("bob", "append")
    write_tokens(tmp_path / "t", alice, bob)
    tokens = Tokens(tmp_path / "t")
    for holder in (alice, bob):
        found = tokens.find(holder.token.encode())
        assert found is not None
        assert (found.name, found.scopes) == (holder.name, frozenset(holder.entry.scopes))
    wrong = [b"", b"x", alice.token.encode()[:-1], alice.token.encode() + b"a", alice.token.upper().encode()]
    wrong += [alice.entry.sha256.encode(), bytes.fromhex(alice.entry.sha256), b"a" * 100_000]
    assert [tokens.find(token) for token in wrong] == [None] * len(wrong)


def test_a_change_adds_takes_away_and_keeps_what_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "t"
    kept, gone, changed, new = (
        Holder("kept", "read"),
        Holder("gone", "read"),
        Holder("changed", "read"),
        Holder("n", "read"),
    )
    write_tokens(path, kept, gone, changed)
    tokens = Tokens(path)
    before = {holder.name: tokens.find(holder.token.encode()) for holder in (kept, gone, changed)}
    changed.entry = Entry(name="changed", sha256=changed.entry.sha256, scopes=("append",))
    write_tokens(path, kept, changed, new)
    tokens.look()
    assert tokens.find(kept.token.encode()) is before["kept"]
    assert tokens.find(gone.token.encode()) is None
    found = tokens.find(changed.token.encode())
    assert found is not None
    assert found.scopes == {"append"}
    assert tokens.find(new.token.encode()) is not None
    revoked = {name: grant.revoked.is_set() for name, grant in before.items() if grant}
    assert revoked == {"kept": False, "gone": True, "changed": True}


@pytest.mark.parametrize("mistake", ["emptied", "removed", "misspelt", "cut"])
def test_a_mistake_in_a_change_keeps_the_last_good_file_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mistake: str
) -> None:
    path = tmp_path / "t"
    alice, bob = Holder("alice", "read"), Holder("bob", "read")
    write_tokens(path, alice)
    tokens = Tokens(path)
    if mistake == "removed":
        path.unlink()
    else:
        whole = to_toml(bob.entry)
        path.write_text({"emptied": "", "misspelt": whole.replace("scopes", "scope"), "cut": whole[:60]}[mistake])
    with caplog.at_level(logging.INFO):
        tokens.look()
        tokens.look()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert str(path) in record.getMessage()
    assert "The tokens stay as they were." in record.getMessage()
    assert tokens.find(alice.token.encode()) is not None
    write_tokens(path, bob)
    tokens.look()
    assert tokens.find(alice.token.encode()) is None
    assert tokens.find(bob.token.encode()) is not None


def test_a_token_s_own_limit_comes_before_the_server_s(tmp_path: Path) -> None:
    own, others = Holder("own", "read", requests_per_second=5), Holder("others", "read")
    write_tokens(tmp_path / "t", own, others)
    tokens = Tokens(tmp_path / "t", requests_per_second=50, bytes_per_second=1000)
    found = [tokens.find(holder.token.encode()) for holder in (own, others)]
    limits = [(g.requests and g.requests.per_second, g.bytes and g.bytes.per_second) for g in found if g]
    assert limits == [(5, 1000), (50, 1000)]


def test_the_digest_is_what_sha256sum_prints() -> None:
    assert digest_of(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- limits


def test_a_limit_gives_a_second_s_worth_at_once_and_its_rate_from_then_on() -> None:
    limit = Limit(5)
    assert [limit.take(1, 100.0) for _ in range(5)] == [0.0] * 5
    assert limit.take(1, 100.0) > 0.0
    taken = sum(limit.take(1, 100.0 + step / 1000) == 0.0 for step in range(1, 10_001))
    assert taken == 50


def test_what_is_larger_than_a_second_s_worth_passes_and_is_owed_by_what_follows() -> None:
    limit = Limit(1000)
    assert limit.take(5000, 10.0) == 0.0
    assert limit.take(1, 10.0) == pytest.approx(4.0)
    assert limit.take(1, 13.9) == pytest.approx(0.1)
    assert limit.take(1, 14.1) == 0.0


def test_what_was_refused_is_not_charged() -> None:
    limit = Limit(1)
    assert limit.take(1, 10.0) == 0.0
    assert all(limit.take(1, 10.0) == 1e-9 for _ in range(100))
    assert limit.take(1, 10.1) == 0.0
