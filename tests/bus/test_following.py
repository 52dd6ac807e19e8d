"""Reading on through rotation, at whatever moment that comes."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from audit_stream.bus import BusWriter, following
from audit_stream.bus.following import Follower, Place, Step
from audit_stream.errors import ChainBroken, Misconfigured


def quick(path: Path) -> BusWriter:
    return BusWriter(path, fsync="never")


def said(steps: list[Step]) -> list[object]:
    return [step.line and step.line.content.message for step in steps]


def test_a_rotation_between_finding_the_file_and_opening_it_misleads_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, follower = quick(path), Follower(path)
    bus.post("a", "b", "c", "x" * 2_000)
    follower.read(count=10, size_bytes=1 << 20)
    bus.post("a", "b", "c", "before")
    found = Follower._found

    def and_then_rotated(self: Follower) -> tuple[Path, Place] | None:
        monkeypatch.undo()
        place = found(self)
        bus.rotate()
        bus.post("a", "b", "c", "y" * 4_000)
        return place

    monkeypatch.setattr(Follower, "_found", and_then_rotated)
    assert said(follower.read(count=10, size_bytes=1 << 20)) == ["before"]
    assert said(follower.read(count=10, size_bytes=1 << 20))[1:] == ["y" * 4_000]
    assert follower.read(count=10, size_bytes=1 << 20) == []


@pytest.mark.parametrize("look_back", [1 << 20, 500])
def test_to_begin_here_shows_only_what_comes_later_however_long_the_file(
    path: Path, look_back: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_LOOK_BACK_BYTES", look_back)
    bus, follower = quick(path), Follower(path)
    follower.begin_here()
    for number in range(9):
        bus.post("a", "b", "c", str(number))
    assert len(follower.read(count=100, size_bytes=1 << 20)) == 9
    late = Follower(path)
    late.begin_here()
    assert late.read(count=100, size_bytes=1 << 20) == []
    bus.rotate()
    bus.post("a", "b", "c", "later")
    assert said(late.read(count=100, size_bytes=1 << 20))[1:] == ["later"]


def after_the_first(patch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """Let this happen once, after the follower's method of that name has returned for the first time."""
    method: Callable[[Follower], object] = getattr(Follower, name)

    def and_then(self: Follower) -> object:
        patch.undo()
        result = method(self)
        act()
        return result

    patch.setattr(Follower, name, and_then)


def test_a_rotation_between_listing_and_looking_is_not_taken_for_a_missing_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, follower = quick(path), Follower(path)
    for text in "123":
        bus.post("a", "b", "c", text)
    assert said(follower.read(count=1, size_bytes=1 << 20)) == ["1"]
    after_the_first(monkeypatch, "_files", bus.rotate)
    assert said(follower.read(count=10, size_bytes=1 << 20)) == ["2", "3"]


def test_a_rotation_while_the_next_file_is_looked_for_is_not_taken_for_a_missing_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, follower = quick(path), Follower(path)
    bus.post("a", "b", "c", "1")
    follower.read(count=10, size_bytes=1 << 20)
    bus.rotate()
    bus.post("a", "b", "c", "2")
    looking = Follower._file_after

    def rotated_while_it_looks(self: Follower, place: Place) -> tuple[Path, Place] | None:
        monkeypatch.setattr(Follower, "_file_after", looking)
        after_the_first(monkeypatch, "_files", bus.rotate)
        return looking(self, place)

    monkeypatch.setattr(Follower, "_file_after", rotated_while_it_looks)
    steps = follower.read(count=10, size_bytes=1 << 20)
    assert said(steps)[1:] == ["2"]


@pytest.mark.parametrize("moment", range(1, 7))
def test_a_rotation_while_the_oldest_file_is_looked_for_leaves_no_line_out(
    path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, moments = quick(path), itertools.count(1)
    bus.post("a", "b", "c", "1")
    beginning = following._beginning

    def and_then_rotated(at: Path) -> bytes:
        text = beginning(at)
        if next(moments) == moment:
            bus.rotate()
            bus.post("a", "b", "c", "3")
        return text

    monkeypatch.setattr(following, "_beginning", and_then_rotated)
    follower, found = Follower(path), list[Step]()
    while not found or found[-1].after.seq < 3:
        found += follower.read(count=10, size_bytes=1 << 20)
    assert [step.after.seq for step in found] == [1, 2, 3]


def test_a_rotation_while_a_tail_begins_shows_no_old_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bus, follower = quick(path), Follower(path)
    bus.post("a", "b", "c", "old")
    steps = following._steps

    def rotated_before(*arguments: object) -> list[Step] | None:
        monkeypatch.undo()
        bus.rotate()
        return steps(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(following, "_steps", rotated_before)
    follower.begin_here()
    bus.post("a", "b", "c", "new")
    assert said(follower.read(count=10, size_bytes=1 << 20)) == ["new"]


def test_a_file_that_is_missing_for_good_is_still_said(path: Path) -> None:
    bus, follower = quick(path), Follower(path)
    for text in "12":
        bus.post("a", "b", "c", text)
    follower.read(count=1, size_bytes=1 << 20)
    bus.rotate().unlink()
    with pytest.raises(ChainBroken, match="does not go on behind line 1"):
        follower.read(count=10, size_bytes=1 << 20)


def test_a_tsv_file_that_comes_later_is_not_followed(path: Path) -> None:
    follower = Follower(path)
    follower.begin_here()
    path.write_text("2026-01-01T00:00:00Z\ta\tb\tSTATUS\thello\n")
    with pytest.raises(Misconfigured, match=r"is a \.tsv file of the published bus.*bus convert"):
        follower.read(count=10, size_bytes=1 << 20)
