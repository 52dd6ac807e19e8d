"""The wire format of the bus, version 1: one message a line, each linked to the line before. No I/O.

    {"v":1,"seq":1,"timestamp":"2026-…","from":"agent-claude-1","to":"all","type":"STATUS","message":"Hello",
     "prev_hash":"000…","hash":"45d…"}                                             (on one line)

and with a key, at its end, `,"key":"<id>","mac":"…"`. The fields stand in this order, without white space, in UTF-8.
`hash` is the lower-case hex SHA-256 of the canonical JSON of the other fields but `mac`, built as the spine builds its
own: `json.dumps(body, sort_keys=True, separators=(",", ":"))`. `mac` is the lower-case hex HMAC-SHA256 of the text of
`hash`. `prev_hash` is the hash of the line before, and 64 zeros at `seq` 1.

A message has one form only: whatever is not byte for byte what `Line.text` writes was not written by it. The format
is frozen; another one would carry another `v`. docs/bus-format.md has all of it, with vectors.
"""

import hmac
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from audit_stream.bus.keys import Key
from audit_stream.chain import Head

VERSION = 1
OPENING = b'{"v":1,"seq":'
"""What every line begins with."""
OWN = "bus."
"""Types of the log's own lines begin like this; messages' types do not."""
CONTINUED = OWN + "continued"
"""The first line of a file that goes on where another one, rotated or moved away, has ended."""
BEGUN = OWN + "begun"
"""The first line of a file that is emptied again and again: a text that no other of them has."""
TORN = OWN + "torn"
"""Holds what a crash left of a line that was never finished."""

_OWN_TYPE = f'"{OWN}'.encode()
Message = str | dict[str, Any]


class Draft(NamedTuple):
    """What is to be said, before it has a place."""

    timestamp: str
    from_id: str
    to_id: str
    msg_type: str
    message: Message
    """Text, or an object where a program speaks to a program."""


class Line(NamedTuple):
    """One line, as the canonical JSON texts of its fields: what is hashed."""

    seq: int
    timestamp: bytes
    sender: bytes
    to: bytes
    type: bytes
    message: bytes
    prev_hash: bytes
    """Without quotes, as all that follow."""
    hash: bytes
    key: bytes
    """The id of the key it is signed with; nothing when it is not signed."""
    mac: bytes

    @property
    def content(self) -> Draft:
        return Draft(_value(self.timestamp), _name(self.sender), _name(self.to), _name(self.type), _value(self.message))

    @property
    def is_own(self) -> bool:
        """Whether it is the log's own, and nobody's message."""
        return self.type.startswith(_OWN_TYPE) and self.message[:1] == b'"'

    def computed_hash(self) -> bytes:
        return _hash(*self[:7], self.key)

    def is_signed_with(self, key: Key) -> bool:
        return hmac.compare_digest(_mac(key, self.hash), self.mac)

    def text(self) -> bytes:
        """The line as it stands in the file, without its end."""
        texts: tuple[bytes, ...] = self[1:6]
        if _shows_otherwise(b"".join(texts)):
            texts = tuple(map(_readable, texts))
        at, sender, to, type_, said = texts
        return _text(self.seq, at, sender, to, type_, said, *self[6:])

    def as_object(self) -> dict[str, Any]:
        """The line as a JSON object, its fields in order."""
        found: dict[str, Any] = json.loads(self.text())
        return found


def link(drafts: Sequence[Draft], head: Head, key: Key | None) -> list[Line]:
    """Make the lines that follow `head`. Raises ValueError for what has no canonical form."""
    lines = []
    for draft in drafts:
        sender, to, type_ = _ends(draft.from_id, draft.to_id, draft.msg_type)
        texts = canonical(draft.timestamp), sender, to, type_, canonical(draft.message)
        seal = _seal(head.event_id + 1, *texts, head.hash, key)
        lines.append(Line(head.event_id + 1, *texts, *seal))
        head = Head(head.event_id + 1, seal[1])
    return lines


def written(draft: Draft, head: Head, key: Key | None) -> tuple[bytes, Head]:
    """The text of the one line that follows `head`, and the new head: what `link` gives, for who is in a hurry."""
    timestamp, from_id, to_id, msg_type, message = draft
    seq, prev = head[0] + 1, head[1]
    sender, to, type_ = _ends(from_id, to_id, msg_type)
    said, at = canonical(message), canonical(timestamp)
    seal = _seal(seq, at, sender, to, type_, said, prev, key)
    if _shows_otherwise(said) or _shows_otherwise(sender + to + type_ + at):
        at, sender, to, type_, said = map(_readable, (at, sender, to, type_, said))
    return _text(seq, at, sender, to, type_, said, *seal), Head(seq, seal[1])


def parse(text: bytes) -> Line:
    """Read a line, which has no end any more. Raises ValueError for what no writer wrote.

    Whether it is what was written at this place, only its hash and its neighbours' show.
    """
    if match := _PLAIN.fullmatch(text):
        # Nothing in it that the file and the canonical form write differently.
        seq, *texts, key, mac = match.groups()
        timestamp, sender, to, type_, message, prev_hash, hash_ = texts
        return Line(int(seq), timestamp, sender, to, type_, message, prev_hash, hash_, key or b"", mac or b"")
    return _parse_any(text)


def from_object(body: Any) -> Line:
    """Read a line that was parsed already, its fields in any order. Raises ValueError."""
    fields = set(body) if isinstance(body, dict) else set()
    if fields not in (set(_FIELDS), {*_FIELDS, "key", "mac"}):
        raise ValueError("its fields are not those of a line of the bus")
    version, seq, *content, prev_hash, hash_ = (body[name] for name in _FIELDS)
    signature = body.get("key", ""), body.get("mac", "")
    texts = [*content[:4], prev_hash, hash_, *signature]
    if type(version) is not int or version != VERSION:
        raise ValueError(f"its version is {version!r}, and this reads {VERSION}")
    if type(seq) is not int or not all(type(value) is str for value in texts) or type(content[4]) not in (str, dict):
        raise ValueError("a field has the wrong type")
    if not _LINKS.fullmatch(f"{prev_hash} {hash_} {' '.join(signature)}"):
        raise ValueError("a hash or a signature is not written like one")
    key, mac = signature
    timestamp, sender, to, type_, message = map(canonical, content)
    ends = prev_hash.encode(), hash_.encode(), key.encode(), mac.encode()
    return Line(seq, timestamp, sender, to, type_, message, *ends)


def _parse_any(text: bytes) -> Line:
    try:
        line = from_object(json.loads(text.decode()))
        written = line.text()
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except UnicodeError as error:
        raise ValueError(f"it is not UTF-8: {error}") from error
    if written != text:
        raise ValueError("it is not in the form in which lines are written")
    return line


_FIELDS = ["v", "seq", "timestamp", "from", "to", "type", "message", "prev_hash", "hash"]
_STRING = rb'("[^"\\\x00-\x1f\x7f-\xff]*(?:\\["\\nrtbf][^"\\\x00-\x1f\x7f-\xff]*)*")'
_PLAIN = re.compile(
    rb'\{"v":1,"seq":([1-9][0-9]{0,18}),"timestamp":%b,"from":%b,"to":%b,"type":%b,"message":%b,'
    rb'"prev_hash":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"(?:,"key":"([!#-\[\]-~]+)","mac":"([0-9a-f]{64})")?\}'
    % ((_STRING,) * 5)
)
_LINKS = re.compile(r"[0-9a-f]{64} [0-9a-f]{64} (?: |[!#-\[\]-~]+ [0-9a-f]{64})")
# What an editor would hide, or show elsewhere than it stands: controls, and marks of direction and line.
_HIDDEN = re.compile("[\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


def canonical(value: Message) -> bytes:
    """The canonical JSON text. Raises ValueError for NaN, and for what is not UTF-8."""
    if type(value) is str:
        if not value.isascii():
            value.encode()  # a lone surrogate has no UTF-8
        return _quoted(value).encode()
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


_quoted = json.JSONEncoder().encode


@lru_cache(maxsize=1024)
def _ends(from_id: str, to_id: str, msg_type: str) -> tuple[bytes, bytes, bytes]:
    # The same over and over.
    return canonical(from_id), canonical(to_id), canonical(msg_type)


def _value(text: bytes) -> Any:
    return json.loads(text) if b"\\" in text or text[:1] != b'"' else text[1:-1].decode()


_name = lru_cache(maxsize=4096)(_value)  # names and types repeat


def _shows_otherwise(text: bytes) -> bool:
    """Whether the file may write it differently than the canonical form does."""
    return b"\\u" in text or b"\x7f" in text


def _readable(text: bytes) -> bytes:
    value = json.loads(text)
    shown = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return _HIDDEN.sub(lambda found: f"\\u{ord(found.group()):04x}", shown).encode()


def _hash(
    seq: int, timestamp: bytes, sender: bytes, to: bytes, type_: bytes, message: bytes, prev: bytes, key: bytes
) -> bytes:
    # Sorted by key, as json.dumps(…, sort_keys=True) does.
    signed = b'"key":"%b",' % key if key else b""
    preimage = b'{"from":%b,%b"message":%b,"prev_hash":"%b","seq":%d,"timestamp":%b,"to":%b,"type":%b,"v":1}' % (
        sender,
        signed,
        message,
        prev,
        seq,
        timestamp,
        to,
        type_,
    )
    return sha256(preimage).hexdigest().encode()


def _mac(key: Key, hash_: bytes) -> bytes:
    return hmac.digest(key.secret, hash_, "sha256").hex().encode()


def _seal(
    seq: int, timestamp: bytes, sender: bytes, to: bytes, type_: bytes, message: bytes, prev: bytes, key: Key | None
) -> tuple[bytes, bytes, bytes, bytes]:
    """`prev_hash`, `hash`, `key` and `mac`."""
    if not key:
        return prev, _hash(seq, timestamp, sender, to, type_, message, prev, b""), b"", b""
    key_id = key.id.encode()
    hash_ = _hash(seq, timestamp, sender, to, type_, message, prev, key_id)
    return prev, hash_, key_id, _mac(key, hash_)


def _text(
    seq: int,
    timestamp: bytes,
    sender: bytes,
    to: bytes,
    type_: bytes,
    message: bytes,
    prev: bytes,
    hash_: bytes,
    key: bytes,
    mac: bytes,
) -> bytes:
    signature = b',"key":"%b","mac":"%b"' % (key, mac) if key else b""
    return (
        b'{"v":1,"seq":%d,"timestamp":%b,"from":%b,"to":%b,"type":%b,"message":%b,"prev_hash":"%b","hash":"%b"%b}'
        % (seq, timestamp, sender, to, type_, message, prev, hash_, signature)
    )
