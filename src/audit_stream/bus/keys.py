"""Keys that sign lines. A secret is in a file or in the environment, never in the log, a message or a `repr`."""

import hmac
import os
import re
import secrets
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Self

from audit_stream.errors import Misconfigured

KEY = "AUDIT_STREAM_BUS_KEY"
KEY_FILE = "AUDIT_STREAM_BUS_KEY_FILE"
SHORTEST_BYTES = 16
HOW = "write it as ID:SECRET, the secret as 32 or more hex digits; `audit-stream bus keygen FILE` makes one"


def generate_secret(nbytes: int = 32) -> str:
    """A new secret, as hex digits."""
    if nbytes < SHORTEST_BYTES:
        raise ValueError(f"nbytes: {nbytes} is too short; {SHORTEST_BYTES} is the least that cannot be guessed")
    return secrets.token_hex(nbytes)


def sign_message(payload: str, secret: str) -> str:
    """Return the HMAC-SHA256 of the text as hex digits, made as the published bus makes it.

    The secret is taken as text, not as hex. Lines of a bus are signed otherwise: by a Key, over their hash.
    """
    return hmac.digest(secret.encode(), payload.encode(), "sha256").hex()


def verify_message(payload: str, signature: str, secret: str) -> bool:
    """Return whether `sign_message` gives this signature, in a time that does not depend on where they differ."""
    return hmac.compare_digest(sign_message(payload, secret).encode(), signature.encode(errors="surrogatepass"))


class Key:
    """A secret and the name that stands in the lines it signs."""

    __slots__ = ("id", "secret")

    def __init__(self, id_: str, secret: bytes) -> None:
        self.id, self.secret = id_, secret

    def __repr__(self) -> str:
        return f"Key({self.id!r})"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ID:SECRET, or a secret alone: its id then is made from its hash. Raises ValueError."""
        name, _, digits = text.strip().rpartition(":")
        try:
            secret = bytes.fromhex(digits)
        except ValueError:
            secret = b""
        if len(secret) < SHORTEST_BYTES:
            # Without the text: it may well be most of a secret.
            raise ValueError(HOW)
        if not name:
            name = sha256(b"audit-stream bus key id" + secret).hexdigest()[:8]
        if not re.fullmatch(r"[A-Za-z0-9._@/-]{1,64}", name):
            raise ValueError("a key's id is 1 to 64 letters, digits or any of . _ - @ /")
        return cls(name, secret)


class Keyring:
    """The keys that are known. The last one signs; the others check what they have signed before it."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys: dict[str, Key] = {}
        for key in keys:
            if key.id in self._keys:
                raise ValueError(f"the key {key.id!r} is there twice")
            self._keys[key.id] = key
        if not self._keys:
            raise ValueError("no key is there")

    def __repr__(self) -> str:
        return f"Keyring({', '.join(map(repr, self._keys))})"

    @property
    def current(self) -> Key:
        return list(self._keys.values())[-1]

    def get(self, id_: str) -> Key | None:
        return self._keys.get(id_)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a key a line; blank lines and those that begin with # are skipped. Raises Misconfigured."""
        keys = []
        where = str(path)
        try:
            for number, text in enumerate(Path(path).read_text().splitlines(), start=1):
                where = f"{path}, line {number}"
                if text.strip() and not text.lstrip().startswith("#"):
                    keys.append(Key.parse(text))
            return cls(keys)
        except OSError as error:
            raise Misconfigured(f"key: {path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise Misconfigured(f"key: {where}: {error}") from error

    @classmethod
    def from_environment(cls) -> Self | None:
        """AUDIT_STREAM_BUS_KEY_FILE names a file, or AUDIT_STREAM_BUS_KEY is a key itself. Raises Misconfigured."""
        if path := os.environ.get(KEY_FILE):
            return cls.from_file(path)
        if text := os.environ.get(KEY):
            try:
                return cls([Key.parse(text)])
            except ValueError as error:
                raise Misconfigured(f"{KEY}: {error}") from error
        return None


def add_key(path: Path, key: Key) -> None:
    """Append the key to the file, made for its owner alone; from now on it is the one that signs. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "ab") as file:
        size = file.tell()
        ends = not size or os.pread(fd, 1, size - 1) == b"\n"
        file.write(b"%b%b:%b\n" % (b"" if ends else b"\n", key.id.encode(), key.secret.hex().encode()))
        file.flush()
        os.fsync(fd)
