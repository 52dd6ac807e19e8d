"""BusWriter: what is posted comes back, and what cannot stand in the log is refused by name."""

import json
import logging
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from audit_stream.bus import BusWriter, Key, Keyring, PolicyLevel, generate_secret, sign_message, verify_message
from audit_stream.bus.keys import add_key
from audit_stream.errors import Misconfigured, Refused
from tests.harness import ROOT, clean_environ

SECRET = "5e" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "no" / "such" / "yet" / "bus.jsonl"


def quick(path: Path, **arguments: Any) -> BusWriter:
    return BusWriter(path, fsync="never", **arguments)


TEXTS = [
    "plain",
    "two\nlines\r\n",
    "\ttabs\t",
    "🎉 naïve 日本",
    ' "quoted" \\n ',
    "\x1b[31m\u202e",
    "x" * 65_536,
    "é" * 32_768,
]


def test_messages_come_back_exactly_as_given_and_in_order(path: Path) -> None:
    bus = quick(path)
    for text in TEXTS:
        bus.post("agent-1", "all", "STATUS", text)
    assert [message.message for message in bus.read_all()] == TEXTS
    assert bus.message_count() == len(TEXTS)
    assert bus.verify().valid
    assert len(path.read_text().split("\n")) == len(TEXTS) + 1
    (first, *_) = bus.read_all()
    assert (first.from_id, first.to_id, first.msg_type, first.seq, first.key_id) == (
        "agent-1",
        "all",
        "STATUS",
        1,
        None,
    )


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(dict.fromkeys(map(str, range(64)))),
        json.dumps(list(range(65))),
        "{" * 60_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        '{"' + "a" * 100,
    ],
)
def test_only_an_object_is_counted_for_its_fields(path: Path, text: str) -> None:
    bus = quick(path)
    bus.post("a", "b", "c", text)
    assert bus.read_all()[0].message == text


def test_a_tsv_file_of_the_published_bus_is_not_read_as_an_empty_one(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("2026-01-01T00:00:00Z\ta\tb\tSTATUS\thello\n")
    bus = quick(path)
    for read in (bus.read_all, bus.message_count, lambda: bus.read_since(since="2026-01-01T00:00:00Z")):
        with pytest.raises(Misconfigured, match=r"is a \.tsv file.* `audit-stream bus convert .*bus\.jsonl OUT`"):
            read()


def test_a_bus_that_is_not_there_has_no_messages_and_reading_makes_none(path: Path) -> None:
    bus = quick(path)
    assert bus.read_all() == bus.read_since("2026-01-01T00:00:00Z") == []
    assert bus.message_count() == 0
    assert not path.exists()
    assert (bus.bus_path, bus.policy) == (path, PolicyLevel.PERMISSIVE)


def test_the_file_is_for_its_owner_alone_and_can_be_grepped(path: Path) -> None:
    before = os.umask(0)
    try:
        quick(path).post("agent-claude-1", "all", "STATUS", "Grüße")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for pattern in ('"from":"agent-claude-1"', '"message":"Grüße"', '"type":"STATUS"'):
        found = subprocess.run(["grep", "-c", pattern, path], capture_output=True, text=True, check=True).stdout
        assert found == "1\n"


def test_append_says_who_did_what_to_what(path: Path) -> None:
    quick(path).append("agent-1", "read", "docs/report.md")
    (message,) = quick(path).read_all()
    assert message[1:5] == ("agent-1", "all", "LOG", "read:docs/report.md")


def test_write_is_append_under_another_name(path: Path) -> None:
    quick(path).write(actor="agent-1", action="read", scope="docs", to_id="agent-2")
    (message,) = quick(path).read_all()
    assert message[1:5] == ("agent-1", "agent-2", "LOG", "read:docs")


@pytest.mark.parametrize("field", ["from_id", "to_id", "msg_type", "message"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "empty"),
        (" \t\n", "empty"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogate"),
        (7, "has to be text"),
        (None, "has to be text"),
    ],
)
def test_a_bad_field_is_refused_by_its_name_and_nothing_is_written(
    path: Path, field: str, value: Any, why: str
) -> None:
    fields: dict[str, Any] = {"from_id": "a", "to_id": "b", "msg_type": "c", "message": "d", field: value}
    with pytest.raises(ValueError, match=rf"^{field}: .*{why}") as caught:
        quick(path).post(**fields)
    assert isinstance(caught.value, Refused)
    assert not path.exists()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"message": "x" * 65_537}, "message: it has 65537 bytes, and 65536 is the limit"),
        ({"message": "é" * 32_769}, "message: it has 65538 bytes"),
        ({"message": json.dumps(dict.fromkeys(map(str, range(65))))}, "message: the object has 65 fields, and 64 is"),
        ({"message": "\n {" + ",".join(f'"{n}":0' for n in range(65)) + "} "}, "message: the object has 65 fields"),
        ({"from_id": "x" * 257}, "from_id: it has 257 characters"),
        ({"from_id": " \t"}, "from_id: it is empty"),
        ({"msg_type": "bus.torn"}, "msg_type: 'bus.' begins"),
        ({"timestamp": "yesterday"}, "timestamp: 'yesterday' is not an RFC 3339"),
        ({"timestamp": "2026-03-20T00:00:00"}, "timestamp: .* is not an RFC 3339 date-time with offset"),
        ({"timestamp": datetime(2026, 3, 20)}, "timestamp: .* is not an RFC 3339"),
    ],
)
def test_what_is_over_a_limit_is_refused_by_its_name(path: Path, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        quick(path).post(**{"from_id": "a", "to_id": "b", "msg_type": "c", "message": "d", **fields})
    assert not path.exists()


def test_without_validation_what_can_be_written_is_written_and_verifies(path: Path) -> None:
    bus = quick(path)
    bus.post("", "", "", "\0" + "x" * 70_000, timestamp="whenever", validate=False)
    with pytest.raises(ValueError, match="surrogate"):
        bus.post("\ud800", "b", "c", "d", validate=False)
    (message,) = bus.read_all()
    assert message[:5] == ("whenever", "", "", "", "\0" + "x" * 70_000)
    assert bus.verify().valid
    assert bus.read_since("2026-01-01T00:00:00Z") == [message]


def test_reading_since_compares_instants_and_not_texts(path: Path) -> None:
    bus = quick(path)
    times = [
        "2026-03-20T10:00:00+09:00",
        "2026-03-20T01:00:00.000001Z",
        "2026-03-20t00:59:59.999z",
        "2026-03-19T23:00:00-05:00",
    ]
    for number, timestamp in enumerate(times):
        bus.post("a", "b", "c", str(number), timestamp=timestamp)
    assert [message.timestamp for message in bus.read_all()] == times
    for since in ("2026-03-20T01:00:00Z", datetime(2026, 3, 20, 2, tzinfo=timezone(timedelta(hours=1)))):
        assert [message.message for message in bus.read_since(since)] == ["0", "1", "3"]
    assert bus.read_since(since=times[0]) == bus.read_since(timestamp=times[0]) == bus.read_since(times[0])
    with pytest.raises(ValueError, match="timestamp: 'now'"):
        bus.read_since("now")
    for given in ({}, {"timestamp": times[0], "since": times[0]}):
        with pytest.raises(TypeError, match="takes one instant"):
            bus.read_since(**given)


def test_a_clock_set_back_changes_no_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = quick(path)
    for number, moment in enumerate([2_000_000_000, 1_000_000_000, 3_000_000_000]):
        monkeypatch.setattr("time.time_ns", lambda moment=moment: moment * 10**9)
        bus.post("a", "b", "c", str(number))
    monkeypatch.undo()
    assert [message.message for message in bus.read_all()] == ["0", "1", "2"]
    assert bus.verify().valid
    assert [message.message for message in bus.read_since("2030-01-01T00:00:00Z")] == ["0", "2"]


def test_a_message_is_stamped_with_the_time_of_now(path: Path) -> None:
    before = datetime.now(UTC)
    quick(path).post("a", "b", "c", "d")
    stamped = datetime.fromisoformat(quick(path).read_all()[0].timestamp)
    assert before - timedelta(microseconds=1) <= stamped <= datetime.now(UTC)


# --- policies and keys


def test_the_policies_have_the_published_numbers_in_the_order_of_their_strictness(path: Path) -> None:
    assert {level.name: level.value for level in PolicyLevel} == {"PERMISSIVE": 1, "WARN": 2, "STRICT": 3}
    assert PolicyLevel.PERMISSIVE < PolicyLevel.WARN < PolicyLevel.STRICT
    assert quick(path, policy=PolicyLevel(2)).policy is PolicyLevel.WARN


def test_a_text_is_signed_as_the_published_bus_signs_it() -> None:
    # Made with hummbl-governance 1.5.1.
    signature = "ea4853aa7646aa033df4c0a52704b1c913f0e1540b982c31854db4e6482710e5"
    assert sign_message("2026-01-01T00:00:00Z\ta\tall\tSTATUS\tGrüße", "secret") == signature
    assert verify_message("2026-01-01T00:00:00Z\ta\tall\tSTATUS\tGrüße", signature, "secret")
    for wrong in (signature[:-1] + "0", "", "é", signature.upper()):
        assert not verify_message("2026-01-01T00:00:00Z\ta\tall\tSTATUS\tGrüße", wrong, "secret")


def test_strict_refuses_to_write_unsigned_and_finds_what_others_wrote(path: Path) -> None:
    strict = quick(path, policy=PolicyLevel.STRICT)
    with pytest.raises(ValueError, match="key: the message of 'a' is not signed, and the policy is STRICT"):
        strict.post("a", "b", "c", "d")
    assert not path.exists()
    signing = quick(path, policy=PolicyLevel.STRICT, key=SECRET)
    signing.post("a", "b", "c", "signed")
    assert signing.verify().valid
    quick(path).post("a", "b", "c", "unsigned")
    verdict = signing.verify()
    assert (verdict.valid, verdict.line, verdict.reason) == (False, 2, "line 2: it is not signed")


@pytest.mark.parametrize(("policy", "warnings"), [(PolicyLevel.PERMISSIVE, 0), (PolicyLevel.WARN, 2)])
def test_warn_writes_unsigned_and_says_so(
    path: Path, policy: PolicyLevel, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "audit_stream.bus"):
        bus = quick(path, policy=policy)
        bus.post("a", "b", "c", "d")
        assert len(bus.read_all()) == 1
    assert len(caplog.records) == warnings
    assert all("not signed" in record.getMessage() for record in caplog.records)


def test_a_rotated_key_signs_from_then_on_and_the_old_one_still_checks(path: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    for number in (1, 2):
        add_key(keys, Key.parse(f"k{number}:{generate_secret()}"))
        quick(path, key=Keyring.from_file(keys)).post("a", "b", "c", str(number))
    both = quick(path, key=Keyring.from_file(keys), policy=PolicyLevel.STRICT)
    assert [message.key_id for message in both.read_all()] == ["k1", "k2"]
    assert both.verify().valid
    assert dict(both.verify().keys) == {"k1": 1, "k2": 1}
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    keys.write_text(keys.read_text().splitlines()[1])
    reason = quick(path, key=Keyring.from_file(keys)).verify().reason
    assert reason == "line 1: it is signed with the key 'k1', which is not among those given"


def test_a_line_signed_with_another_secret_does_not_hold(path: Path) -> None:
    quick(path, key=f"k:{generate_secret()}").post("a", "b", "c", "d")
    assert quick(path).verify().valid  # without the key, nothing can be said about signatures
    reason = quick(path, key=f"k:{generate_secret()}").verify().reason
    assert reason == "line 1: it says that it is signed with the key 'k', and it is not"


@pytest.mark.parametrize("variable", ["AUDIT_STREAM_BUS_KEY", "AUDIT_STREAM_BUS_KEY_FILE"])
def test_the_key_comes_from_the_environment(
    path: Path, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(f"# the key of the night shift\n\nk:{SECRET}\n")
    monkeypatch.setenv(variable, str(tmp_path / "key") if variable.endswith("FILE") else f"k:{SECRET}")
    bus = quick(path)
    bus.post("a", "b", "c", "d")
    assert bus.read_all()[0].key_id == "k"
    assert quick(path, key=f"k:{SECRET}", policy=PolicyLevel.STRICT).verify().valid
    # A secret is nowhere but where it was put.
    shown = f"{bus!r} {Key.parse(SECRET)!r} {Keyring.from_environment()!r} {vars(bus)} {path.read_text()}"
    assert SECRET not in shown
    assert SECRET[:16] not in shown


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no key is there"),
        ("short:abcd", "line 1: write it as ID:SECRET"),
        (f"k:{SECRET}\nk:{SECRET}", "'k' is there twice"),
        (f"k k:{SECRET}", "line 1: a key's id is"),
        (f"# fine\nk:{'zz' * 32}", "line 2: write it as ID:SECRET"),
    ],
)
def test_a_bad_key_file_is_refused_without_a_word_of_its_secrets(
    path: Path, tmp_path: Path, text: str, why: str
) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(Misconfigured, match=f"key: .*{why}") as caught:
        Keyring.from_file(tmp_path / "keys")
    assert SECRET[:8] not in str(caught.value)
    assert "zzzz" not in str(caught.value)


def test_a_missing_key_file_and_a_bad_key_are_said_at_once(path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"key: .*nowhere cannot be read"):
        Keyring.from_file("nowhere")
    with pytest.raises(Misconfigured, match="key: write it as"):
        BusWriter(path, key="not hex")
    with pytest.raises(ValueError, match="fsync: 'sometimes'"):
        BusWriter(path, fsync="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nbytes: 8"):
        generate_secret(8)


# --- on its own


def test_the_bus_works_with_nothing_but_the_standard_library(path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from audit_stream.bus import BusWriter;"
        "b = BusWriter(sys.argv[2], key='k:' + '0' * 64); b.post('a', 'b', 'c', 'd'); assert b.verify().valid;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] not in sys.stdlib_module_names and m != '__main__'))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, ROOT / "src", path],
        env=clean_environ(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = json.loads(done.stdout.replace("'", '"'))
    assert "audit_stream.bus" in loaded
    assert all(name.startswith("audit_stream") for name in loaded)
