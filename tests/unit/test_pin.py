"""Pins: what they say against a chain, and the file that remembers one."""

from pathlib import Path

import pytest

from audit_stream.errors import Misconfigured
from audit_stream.pin import Pin, pin_file

HASH, OTHER = "a" * 64, "b" * 64


@pytest.mark.parametrize("text", [f"42:{HASH}", f"#42:{HASH}\n", f" 42:{HASH.upper()}"])
def test_a_pin_is_read_as_it_is_copied(text: str) -> None:
    assert Pin.parse(text) == Pin(42, HASH)


@pytest.mark.parametrize("text", ["", "42", f"0:{HASH}", f"-1:{HASH}", f"42:{HASH}0", f"42:{HASH[:-1]}", f"٤:{HASH}"])
def test_what_is_no_pin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ID:HASH"):
        Pin.parse(text)


def test_writing_a_pin_and_reading_it_gives_the_same() -> None:
    assert Pin.parse(str(Pin(42, HASH))) == Pin(42, HASH)


def test_a_pin_says_what_is_wrong() -> None:
    pin = Pin(42, HASH)
    assert pin.contradiction(HASH, end=50) is None
    assert "event #42 is not the pinned one" in str(pin.contradiction(OTHER, end=50))
    assert "event #42 is not the pinned one" in str(pin.contradiction(None, end=42))
    assert "chain is shorter than the pinned head" in str(pin.contradiction(None, end=41))


def test_the_file_remembers_the_last_head(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    for before, head in ((None, Pin(3, HASH)), (Pin(3, HASH), Pin(5, OTHER)), (Pin(5, OTHER), Pin(5, OTHER))):
        with pin_file(path) as kept:
            assert kept.pin == before
            kept.move_to(head)
        assert Pin.parse(path.read_text()) == head
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_moves_nothing_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    with pin_file(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pin_file(tmp_path / "link") as kept:
        kept.move_to(Pin(1, HASH))
    assert (tmp_path / "link").is_symlink()
    assert Pin.parse((tmp_path / "real").read_text()) == Pin(1, HASH)


@pytest.mark.parametrize("place", ["no/such/directory/pin", ".", "damaged"])
def test_a_file_that_cannot_hold_a_pin_is_refused_at_once(tmp_path: Path, place: str) -> None:
    (tmp_path / "damaged").write_text("nonsense")
    with pytest.raises(Misconfigured, match="--pin: "), pin_file(tmp_path / place):
        pytest.fail("it was opened")
