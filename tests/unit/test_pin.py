"""Pins: what they say against a chain, and the file that remembers one."""

import asyncio
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audit_stream.appender import Appender
from audit_stream.chain import Head
from audit_stream.errors import Misconfigured
from audit_stream.keeper import PinKeeper, check_pin, head_of
from audit_stream.pin import Pin, Pinned, advance, give_up, pin_file, read_pin
from audit_stream.settings import Settings
from audit_stream.stream import Stream

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


def test_a_pin_is_on_the_disk_before_it_takes_its_name_and_then_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(fd: int) -> None:
        status = os.fstat(fd)
        steps.append("fsync of the folder" if stat.S_ISDIR(status.st_mode) else f"fsync of {status.st_size} bytes")
        fsync(fd)

    def renamed(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    pin = Pin(42, HASH)
    advance(tmp_path / "pin", pin)
    assert steps == [f"fsync of {len(f'{pin}') + 1} bytes", "rename", "fsync of the folder"]


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


# --- a file that several processes move


def test_a_pin_is_moved_on_and_never_back(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    assert advance(path, Pin(3, HASH)).pin == Pin(3, HASH)
    assert advance(path, Pin(2, OTHER)).pin == Pin(3, HASH)
    assert advance(path, Pin(3, HASH)).pin == Pin(3, HASH)
    assert advance(path, Pin(9, OTHER)).pin == Pin(9, OTHER)
    with pytest.raises(ValueError, match="another event #9"):
        advance(path, Pin(9, HASH))
    assert path.read_text() == f"9:{OTHER}\n"
    assert list(tmp_path.iterdir()) == [path]


def test_of_many_that_move_it_at_once_the_newest_stays(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    with ThreadPoolExecutor(8) as threads:
        left = list(threads.map(lambda n: advance(path, Pin(n, HASH)).pin, [7, 3, 8, 1, 6, 2, 5, 4]))
    assert Pin.parse(path.read_text()) == Pin(8, HASH)
    assert Pin(8, HASH) in left
    assert list(tmp_path.iterdir()) == [path]


def test_a_verify_that_ends_late_does_not_move_a_server_s_pin_back(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    with pin_file(path) as kept:
        advance(path, Pin(9, HASH))
        kept.move_to(Pin(5, OTHER))
    assert Pin.parse(path.read_text()) == Pin(9, HASH)


# --- a head that was given up


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f"3:{HASH[:40]}",
        f"3:{HASH}\n5:{OTHER}",
        f"3:{HASH}\nlost",
        f"3:{HASH}\nlost 5:{OTHER[:9]}",
        f"3:{HASH}\nlost 5:{OTHER}\nlost 6:{OTHER}",
    ],
)
def test_a_file_that_was_cut_short_or_holds_more_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pin"
    path.write_text(text)
    with pytest.raises(Misconfigured, match=r"^--pin: .*/pin holds no pin"):
        read_pin(path, setting="--pin")
    assert path.read_text() == text


def test_a_file_of_two_lines_is_read_moved_on_and_given_up_again(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    path.write_text(f"9:{OTHER}\n")
    give_up(path, Pinned(Pin(9, OTHER)), Pin(4, HASH), lost=Pin(9, OTHER))
    assert path.read_text() == f"4:{HASH}\nlost 9:{OTHER}\n"
    assert read_pin(path, setting="--pin") == Pinned(Pin(4, HASH), Pin(9, OTHER))
    assert advance(path, Pin(5, HASH), lost=Pin(9, OTHER)) == Pinned(Pin(5, HASH), Pin(9, OTHER))
    with pin_file(path) as kept:
        kept.move_to(Pin(6, HASH))
    assert path.read_text() == f"6:{HASH}\nlost 9:{OTHER}\n"
    with pytest.raises(Misconfigured, match="was moved meanwhile"):
        give_up(path, Pinned(Pin(5, HASH), Pin(9, OTHER)), Pin(1, HASH), lost=Pin(5, HASH))


def test_a_head_that_was_given_up_is_not_pinned_again_by_those_who_do_not_know_yet(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    path.write_text(f"9:{OTHER}\n")
    with pin_file(path) as kept:
        give_up(path, Pinned(Pin(9, OTHER)), Pin(4, HASH), lost=Pin(9, OTHER))
        kept.move_to(Pin(10, OTHER))
    assert advance(path, Pin(10, OTHER)) == Pinned(Pin(4, HASH), Pin(9, OTHER))
    assert path.read_text() == f"4:{HASH}\nlost 9:{OTHER}\n"


# --- the keeper


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def kept(path: Path, pin: Pin | None = None) -> tuple[PinKeeper, Appender]:
    appender = Appender(Stream.at("unix:///nowhere"), promised=head_of(pin))
    return PinKeeper(path, Pinned(pin), appender), appender


@pytest.mark.anyio
async def test_the_keeper_pins_what_was_promised_and_takes_over_what_another_has_pinned(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    one, appender = await kept(path)
    other, elsewhere = await kept(path)
    await one.move()
    assert not path.exists(), "nothing was promised yet"
    appender.promise(Head(4, HASH.encode()))
    await one.move()
    assert one.pin == Pin(4, HASH) == Pin.parse(path.read_text())
    await other.move()
    assert elsewhere.promised == Head(4, HASH.encode())
    elsewhere.promise(Head(3, OTHER.encode()))
    assert elsewhere.promised == Head(4, HASH.encode())


@pytest.mark.anyio
async def test_the_keeper_gives_up_what_was_given_up_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    (keeper, appender), (ahead, knows_more) = await kept(path), await kept(path)
    for promised, pin_keeper, head in ((appender, keeper, 9), (knows_more, ahead, 9)):
        promised.promise(Head(head, OTHER.encode()))
        await pin_keeper.move()
    knows_more.promise(Head(12, OTHER.encode()))
    give_up(path, Pinned(Pin(9, OTHER)), Pin(4, HASH), lost=Pin(9, OTHER))
    await keeper.move()
    assert keeper.pin == Pin(4, HASH)
    assert appender.promised == Head(4, HASH.encode())
    appender.promise(Head(5, HASH.encode()))
    await keeper.move()
    assert read_pin(path, setting="--pin") == Pinned(Pin(5, HASH), Pin(9, OTHER))
    for _ in range(2):
        await ahead.move()
    assert knows_more.promised == Head(12, OTHER.encode())
    assert read_pin(path, setting="--pin").pin == Pin(12, OTHER), "nobody has given up events 10 to 12"


@pytest.mark.anyio
async def test_a_last_promise_is_pinned_when_the_keeper_is_left(tmp_path: Path) -> None:
    keeper, appender = await kept(tmp_path / "pin")
    async with keeper:
        appender.promise(Head(4, HASH.encode()))
    assert Pin.parse((tmp_path / "pin").read_text()) == Pin(4, HASH)


@pytest.mark.anyio
async def test_a_pin_that_cannot_be_moved_is_said_once_and_moved_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    keeper, appender = await kept(folder / "pin")
    appender.promise(Head(4, HASH.encode()))
    for _ in range(3):
        await keeper.move()
    assert "No such file" in keeper.trouble
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert keeper.trouble in caplog.text
    folder.mkdir()
    await keeper.move()
    assert keeper.trouble == ""
    assert keeper.pin == Pin(4, HASH)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    (folder / "pin").write_text("nonsense")
    await keeper.move()
    assert "holds no pin" in keeper.trouble
    assert (folder / "pin").read_text() == "nonsense", "evidence is left as it is"


@pytest.mark.parametrize(
    ("place", "ack", "words"),
    [
        ("no/such/directory/pin", "fsync", "cannot be written"),
        (".", "fsync", "cannot be read"),
        ("damaged", "fsync", "holds no pin"),
        ("cut short", "fsync", "holds no pin"),
        ("pin", "memory", "AUDIT_STREAM_ACK=memory promises nothing"),
    ],
)
def test_a_server_is_told_at_its_start_what_is_wrong_with_its_pin(
    tmp_path: Path, place: str, ack: str, words: str
) -> None:
    (tmp_path / "damaged").write_text("nonsense")
    (tmp_path / "cut short").write_text(f"3:{HASH[:40]}")
    settings = Settings.from_env({"AUDIT_STREAM_PIN": str(tmp_path / place), "AUDIT_STREAM_ACK": ack})
    with pytest.raises(Misconfigured, match=rf"^AUDIT_STREAM_PIN: .*{words}"):
        asyncio.run(check_pin(Stream.at("unix:///nowhere"), settings))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "damaged": "nonsense",
        "cut short": f"3:{HASH[:40]}",
    }
