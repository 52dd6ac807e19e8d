"""Reading on through rotation, at whatever moment that comes."""

from pathlib import Path

import pytest

from audit_stream.bus import BusWriter, following
from audit_stream.bus.following import Follower, Place, Step


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
