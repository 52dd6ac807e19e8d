"""The names of keys: two things never share one."""

from itertools import product

from audit_stream.keys import LONGEST_SOURCE_BYTES, Keys

KEYS = Keys("audit")


def test_no_two_pairs_of_source_and_key_share_a_name_and_none_has_the_name_of_a_shared_key() -> None:
    texts = [text.encode() for text in ("a", "b", "a\x00", "\x00a", "a:b", ":", "é", "ÿ", "a" * LONGEST_SOURCE_BYTES)]
    sources = [*texts, b"a" * (LONGEST_SOURCE_BYTES + 1), b"b" * 1024]
    own = {KEYS.own_once(source) + key for source, key in product(sources, texts)}
    assert len(own) == len(sources) * len(texts)
    # A shared key's name holds any text, and text is UTF-8.
    assert not any(_is_text(name) for name in own)


def test_the_name_of_a_source_s_own_key_is_bounded_however_long_the_source_is() -> None:
    longest = max(len(KEYS.own_once(b"s" * length)) for length in range(1, 1025))
    assert longest <= len(KEYS.once(b"")) + LONGEST_SOURCE_BYTES + 2


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
