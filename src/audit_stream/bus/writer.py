"""BusWriter: post messages to the bus, and read them back."""

import json
import logging
import os
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, overload

from audit_stream.bus.keys import Key, Keyring
from audit_stream.bus.line import OWN, Draft, Line
from audit_stream.bus.log import Fsync, Log
from audit_stream.bus.reading import read_lines
from audit_stream.bus.stamp import now
from audit_stream.bus.tsv import refuse_tsv
from audit_stream.bus.verifying import PolicyLevel, Verdict, verify
from audit_stream.chain import Head
from audit_stream.errors import Misconfigured, Refused, Unpostable
from audit_stream.timestamps import check_timestamp, instant

MAX_MESSAGE_BYTES = 64 * 1024
MAX_MESSAGE_FIELDS = 64
"""Of a message that is a JSON object."""
MAX_ID_LENGTH = 256

log = logging.getLogger("audit_stream.bus")


class Message(NamedTuple):
    timestamp: str
    from_id: str
    to_id: str
    msg_type: str
    message: str
    seq: int
    hash: str
    key_id: str | None
    """The key it says it is signed with; reading checks no signature, `verify` does."""


class BusWriter:
    """One bus, a file. Any number of threads and processes may write to it at once, each with a writer of its own
    or with a shared one.

    Every method raises OSError when the disk does not do its part.
    """

    def __init__(
        self,
        bus_path: str | os.PathLike[str],
        *,
        policy: PolicyLevel = PolicyLevel.PERMISSIVE,
        key: Key | Keyring | str | None = None,
        fsync: Fsync = "always",
    ) -> None:
        """`key` signs every line: a Key, the last of a Keyring, or "ID:SECRET"; when not given, that of
        AUDIT_STREAM_BUS_KEY_FILE or AUDIT_STREAM_BUS_KEY, if any. `fsync` "always": a message that `post` has returned
        from survives a power cut; "never": a crash of the process, not of the machine.

        The file is made at the first post. Raises Misconfigured for a key that cannot be read.
        """
        self._bus_path, self._policy = Path(bus_path), PolicyLevel(policy)
        self._keys = _keyring(key)
        self._log = Log(self._bus_path, fsync=fsync, key=self._keys.current if self._keys else None)

    def __repr__(self) -> str:
        return f"BusWriter({str(self._bus_path)!r}, policy={self._policy!r})"

    @property
    def bus_path(self) -> Path:
        return self._bus_path

    @property
    def policy(self) -> PolicyLevel:
        return self._policy

    def post(
        self,
        from_id: str,
        to_id: str,
        msg_type: str,
        message: str,
        *,
        timestamp: str | datetime | None = None,
        validate: bool = True,
    ) -> None:
        """Append one message; on return it is on disk. `timestamp` is RFC 3339 with offset, kept as given; else now.

        Raises Unpostable, a ValueError that names the field: blank, not text, with NUL, or over its limit (64 KiB of
        UTF-8 for the message, and 64 fields if it is a JSON object; 256 characters for the others). `validate=False`
        checks no more than that it can be written and read. Raises ChainBroken, and writes nothing, when the file's
        end is not what was written.
        """
        if isinstance(timestamp, datetime):
            timestamp = timestamp.isoformat()
        if not (type(from_id) is type(to_id) is type(msg_type) is type(message) is str):
            _check_types(from_id, to_id, msg_type, message)
        if validate:
            _check_ids(from_id, to_id, msg_type)
            _check_message(message)
            if timestamp is not None:
                _check_timestamp(timestamp)
        if msg_type.startswith(OWN):
            raise Unpostable(f"msg_type: {OWN!r} begins the types of the log's own lines", field="msg_type")
        draft = Draft(now() if timestamp is None else timestamp, from_id, to_id, msg_type, message)
        if not self._keys and self._policy > PolicyLevel.PERMISSIVE:
            self._unsigned(f"the message of {from_id!r} is not signed")
        if not (message.isascii() and from_id.isascii() and to_id.isascii() and msg_type.isascii()):
            _check_utf8(draft)
        self._log.append((draft,))

    def append(self, agent: str, action: str, resource: str, *, to_id: str = "all") -> None:
        """Post that `agent` did `action` to `resource`, as type LOG."""
        self.post(agent, to_id, "LOG", f"{action}:{resource}")

    def write(self, actor: str, action: str, scope: str, *, to_id: str = "all") -> None:
        """Post that `actor` did `action` in `scope`, as type LOG: another name of `append` in the published bus."""
        self.append(actor, action, scope, to_id=to_id)

    def read_all(self) -> list[Message]:
        """All messages in the order in which they were posted; none when there is no file yet.

        A line that does not hold by itself is left out and told in the log `audit_stream.bus`. Unless the policy is
        PERMISSIVE, lines that are not signed are told there too. `verify` gives the verdict. Raises Misconfigured for
        a .tsv file of the published bus.
        """
        return list(self.messages())

    @overload
    def read_since(self, timestamp: str | datetime) -> list[Message]: ...

    @overload
    def read_since(self, *, since: str | datetime) -> list[Message]: ...

    def read_since(
        self, timestamp: str | datetime | None = None, *, since: str | datetime | None = None
    ) -> list[Message]:
        """Return the messages of this instant and later ones, whatever zones they are written in.

        The published bus calls the argument `since`, its documentation `timestamp`. Raises Unpostable.
        """
        if (timestamp is None) == (since is None):
            raise TypeError("read_since() takes one instant: `timestamp`, or `since`, which is the same")
        moment = since if timestamp is None else timestamp
        text = moment.isoformat() if isinstance(moment, datetime) else str(moment)
        try:
            earliest = instant(text, field="timestamp")
        except Refused as refused:
            raise Unpostable(str(refused), field="timestamp") from refused
        return [message for message in self.messages() if _at(message, earliest) >= earliest]

    def messages(self) -> Iterator[Message]:
        """The same as `read_all`, one by one, in constant memory."""
        unsigned = 0
        refuse_tsv(self._bus_path)
        try:
            for line in read_lines(self._bus_path):
                if line.is_own:
                    continue
                unsigned += not line.key
                yield _message(line)
        except FileNotFoundError:
            return
        if unsigned and self._policy > PolicyLevel.PERMISSIVE:
            log.warning("%s: %d messages are not signed", self._bus_path, unsigned)

    def message_count(self) -> int:
        return sum(1 for _ in self.messages())

    def verify(self) -> Verdict:
        """Recompute every line and every signature, and under STRICT miss those that are not there."""
        return verify([self._bus_path], keys=self._keys, policy=self._policy)

    def head(self) -> Head:
        """The `seq` and the hash of the last line: what to keep elsewhere, as a pin."""
        return self._log.head()

    def rotate(self) -> Path:
        """Put the file aside as PATH.1, PATH.2, …, and go on in a new one, in the same chain. Returns which."""
        return self._log.rotate()

    def close(self) -> None:
        """Close the file. The next post opens it again."""
        self._log.close()

    def _unsigned(self, what: str) -> None:
        if self._policy >= PolicyLevel.STRICT:
            raise Unpostable(
                f"key: {what}, and the policy is STRICT; give a key, or name its file in AUDIT_STREAM_BUS_KEY_FILE",
                field="key",
            )
        log.warning("%s: %s", self._bus_path, what)


def _keyring(key: Key | Keyring | str | None) -> Keyring | None:
    if key is None:
        return Keyring.from_environment()
    if isinstance(key, Keyring):
        return key
    try:
        return Keyring([Key.parse(key) if isinstance(key, str) else key])
    except ValueError as error:
        raise Misconfigured(f"key: {error}") from error


def _message(line: Line) -> Message:
    timestamp, from_id, to_id, msg_type, message = line.content
    text = message if isinstance(message, str) else line.message.decode()
    return Message(timestamp, from_id, to_id, msg_type, text, line.seq, line.hash.decode(), line.key.decode() or None)


def _at(message: Message, otherwise: datetime) -> datetime:
    try:
        return instant(message.timestamp, field="timestamp")
    except Refused:
        # Posted without validation: better shown once too often than never.
        return otherwise


# --- what can be posted


def _check_types(*values: object) -> None:
    for name, value in zip(("from_id", "to_id", "msg_type", "message"), values, strict=True):
        if not isinstance(value, str):
            raise Unpostable(f"{name}: it is {type(value).__name__}, and has to be text", field=name)


@lru_cache(maxsize=1024)
def _check_ids(from_id: str, to_id: str, msg_type: str) -> None:
    for name, text in (("from_id", from_id), ("to_id", to_id), ("msg_type", msg_type)):
        if not text or text.isspace():
            raise Unpostable(f"{name}: it is empty", field=name)
        if "\0" in text:
            raise Unpostable(f"{name}: it holds a NUL byte", field=name)
        if len(text) > MAX_ID_LENGTH:
            raise Unpostable(f"{name}: it has {len(text)} characters, and {MAX_ID_LENGTH} is the limit", field=name)


def _check_message(text: str) -> None:
    if not text or text.isspace():
        raise Unpostable("message: it is empty", field="message")
    if "\0" in text:
        raise Unpostable("message: it holds a NUL byte", field="message")
    # A character has four bytes at most.
    if len(text) > MAX_MESSAGE_BYTES // 4:
        size = len(text.encode(errors="surrogatepass"))
        if size > MAX_MESSAGE_BYTES:
            raise Unpostable(f"message: it has {size} bytes, and {MAX_MESSAGE_BYTES} is the limit", field="message")

    if text.lstrip()[:1] == "{":
        _check_fields(text)


def _check_fields(text: str) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return  # text that begins like an object
    if len(value) > MAX_MESSAGE_FIELDS:
        raise Unpostable(
            f"message: the object has {len(value)} fields, and {MAX_MESSAGE_FIELDS} is the limit", field="message"
        )


def _check_timestamp(text: str) -> None:
    try:
        check_timestamp(text, field="timestamp")
    except Refused as refused:
        raise Unpostable(str(refused), field="timestamp") from refused


def _check_utf8(draft: Draft) -> None:
    for name, value in zip(Draft._fields, draft, strict=True):
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise Unpostable(f"{name}: a lone surrogate has no UTF-8 form", field=name) from error
