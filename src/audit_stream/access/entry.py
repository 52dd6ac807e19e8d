"""The token file: TOML, one [[token]] a token. It holds no token, only what is needed to recognise one."""

import base64
import hashlib
import json
import re
import secrets
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from audit_stream.errors import Misconfigured
from audit_stream.event import MAX_SOURCE_LENGTH

Scope = Literal["append", "read", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

PREFIX = "audit_"
"""What scanners for leaked secrets look for: `audit_[a-z2-7]{52}`."""

MAX_FILE_BYTES = 4 * 1024 * 1024

Source = Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE_LENGTH)]
Rate = Annotated[float, Meta(gt=0, le=1e12)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One token: how it is recognised, and what it allows."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@/-]{0,63}\Z")]
    """What logs and errors call it."""
    sha256: Annotated[str, Meta(pattern=r"^[0-9A-Fa-f]{64}\Z")]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    sources: Annotated[tuple[Source, ...], Meta(min_length=1)] | None = None
    """The only sources it may write and read as; None: all of them."""
    requests_per_second: Rate | None = None
    bytes_per_second: Rate | None = None

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.sha256)


def new_token() -> str:
    """A token of 256 random bits, so that its plain SHA-256 gives nothing away."""
    return PREFIX + base64.b32encode(secrets.token_bytes(32)).decode().rstrip("=").lower()


def digest_of(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def read_entries(path: Path) -> tuple[Entry, ...]:
    """Read a token file. Raises Misconfigured naming the file, the entry and the key that is wrong."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Misconfigured(f"the token file {path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise Misconfigured(f"{path} is over {MAX_FILE_BYTES} bytes: is it a token file?")
    return parse_entries(content, str(path))


def parse_entries(content: bytes, where: str) -> tuple[Entry, ...]:
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{where} is not TOML: {error}") from error
    except RecursionError as error:
        raise Misconfigured(f"{where} is nested too deep for a token file") from error
    for key in document:
        if key != "token":
            raise Misconfigured(f"{where}: {key}: no such key; every token begins with a line [[token]]")
    tables = document.get("token")
    if not tables:
        raise Misconfigured(f"{where} has no token; `audit-stream token new NAME --scope read` makes one")
    if not isinstance(tables, list):
        raise Misconfigured(f"{where}: token: every token begins with a line [[token]], in two brackets")
    entries = tuple(_entry(table, f"{where}: token {number}") for number, table in enumerate(tables, 1))
    for field in ("name", "sha256"):
        seen: dict[str, int] = {}
        for number, entry in enumerate(entries, 1):
            first = seen.setdefault(getattr(entry, field).lower(), number)
            if first != number:
                raise Misconfigured(f"{where}: token {number} ({entry.name}): {field}: token {first} has the same one")
    return entries


_AT = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)


def _entry(table: Any, where: str) -> Entry:
    if isinstance(table, dict) and isinstance(table.get("name"), str):
        where = f"{where} ({table['name'][:64]})"
        if str(table.get("sha256", "")).startswith(PREFIX):
            raise Misconfigured(
                f"{where}: sha256: this is a token, and the file is to keep its SHA-256."
                " Make a new one with `audit-stream token new`: this one has been written down."
            )
    try:
        return msgspec.convert(table, Entry)
    except msgspec.ValidationError as error:
        message = str(error)
        if match := _AT.fullmatch(message):
            message = f"{match[2]}: {match[1]}"
        if "enum value" in message:
            message = f"{message}; scopes are {', '.join(SCOPES)}"
        raise Misconfigured(f"{where}: {message}") from error


def to_toml(entry: Entry) -> str:
    """The entry as it stands in the file; several, one after the other, are a file."""
    lines = ["[[token]]"]
    for name, value in msgspec.to_builtins(entry).items():
        if value is not None:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # A basic string of TOML is a JSON string, but for this one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
