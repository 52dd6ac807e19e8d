"""The wire format: the published vectors, and one form only for each message."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_stream.bus.keys import Key
from audit_stream.bus.line import Draft, from_object, link, parse
from audit_stream.chain import START, Head

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "bus.json").read_text())
LINES: list[dict[str, Any]] = VECTORS["lines"]
NAMES = [line["name"] for line in LINES]
PLAIN, SIGNED = LINES[0]["line"].encode(), LINES[6]["line"].encode()


@pytest.mark.parametrize("vector", LINES, ids=NAMES)
def test_a_published_line_is_read_and_written_byte_for_byte(vector: dict[str, Any]) -> None:
    line = parse(vector["line"].encode())
    assert line.computed_hash() == line.hash == vector["hash"].encode()
    assert line.text() == vector["line"].encode()
    assert from_object(json.loads(vector["line"])) == line


def test_the_published_lines_are_what_is_written_of_their_content() -> None:
    head = START
    for vector in LINES:
        body = json.loads(vector["line"])
        key = Key.parse(f"{body['key']}:{VECTORS['keys'][body['key']]}") if "key" in body else None
        draft = Draft(*(body[name] for name in ("timestamp", "from", "to", "type", "message")))
        (line,) = link([draft], head, key)
        assert line.text() == vector["line"].encode()
        head = Head(line.seq, line.hash)


@pytest.mark.parametrize("vector", LINES, ids=NAMES)
def test_a_vector_s_hash_is_that_of_its_preimage_in_plain_python(vector: dict[str, Any]) -> None:
    body = json.loads(vector["line"])
    body = {name: value for name, value in body.items() if name not in ("hash", "mac")}
    assert json.dumps(body, sort_keys=True, separators=(",", ":")) == vector["preimage"]


_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(_ids, _ids, _ids, st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.booleans())
def test_any_text_comes_back_as_it_was_given(from_id: str, to_id: str, type_: str, message: str, signed: bool) -> None:
    draft = Draft("2026-01-01T00:00:00Z", from_id, to_id, type_, message)
    (line,) = link([draft], START, Key("k", bytes(16)) if signed else None)
    text = line.text()
    assert text.isascii() or text.decode()
    assert b"\n" not in text
    assert parse(text) == line
    assert parse(text).content == draft
    assert json.loads(text)["message"] == message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (PLAIN.replace(b'{"v":1,', b'{"v": 1,'), "form in which lines are written"),
        (PLAIN.replace(b"Starting", b"\\u0053tarting"), "form in which lines are written"),
        (PLAIN.replace(b"all", b"a\\/l"), "form in which lines are written"),
        (PLAIN.replace(b'"seq":1,', b'"seq":1,"seq":1,'), "form in which lines are written"),
        (PLAIN.replace(b'"seq":1,', b'"seq":1.0,'), "wrong type"),
        (PLAIN.replace(b'"seq":1,', b'"seq":true,'), "wrong type"),
        (PLAIN.replace(b'"Starting task"', b"7"), "wrong type"),
        (PLAIN.replace(b'"Starting task"', b'{"a":NaN}'), "not JSON compliant"),
        (PLAIN.replace(b'"v":1', b'"v":2'), "version is 2"),
        (PLAIN.replace(b'"to":"all",', b""), "not those of a line"),
        (PLAIN.replace(b'"to":"all",', b'"to":"all","cc":"x",'), "not those of a line"),
        (
            PLAIN.replace(b'"from":"agent-claude-1","to":"all"', b'"to":"all","from":"agent-claude-1"'),
            "form in which lines are written",
        ),
        (PLAIN.replace(b'"hash":"', b'"hash":"G', 1), "not written like one"),
        (SIGNED.partition(b',"mac"')[0] + b"}", "not those of a line"),
        (PLAIN.replace(b"Starting", b"\\ud800"), "UTF-8"),
        (PLAIN.replace(b"Starting", b"\xff"), "UTF-8"),
        (PLAIN.replace(b'"Starting task"', b'{"a":' * 5000 + b"1" + b"}" * 5000), "too deep"),
        (PLAIN[:-1], "it is not JSON: .* delimiter"),
        (b"[]", "not those of a line"),
        (b"null", "not those of a line"),
        (b"", "it is not JSON"),
    ],
)
def test_what_no_writer_wrote_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)
