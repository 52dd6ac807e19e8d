"""Check an evidence pack with nothing but Python's standard library:

    python3 -I -S check.py [--expect ID:HASH] [--manifest SHA256] [--key FILE]

Lies in the pack, beside chain.py, which holds the chain's own proof. Says of each part whether it is what the manifest
names, recomputes every event and every bus line, and compares where they end with heads.json. With what was noted
elsewhere, it compares that too: --expect takes an event and its hash, --manifest the SHA-256 of manifest.json.
Exit code: 0 all of it holds, 1 something does not, 2 it could not be checked.
"""

import sys

if sys.version_info < (3, 10):
    # This line is reached on every Python 3: what is above and below it is written for old ones as well.
    sys.stderr.write("check.py needs Python 3.10 or newer; this is Python %d.%d\n" % sys.version_info[:2])
    sys.exit(2)

import hmac
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

USAGE = "usage: python3 -I -S check.py [--expect ID:HASH] [--manifest SHA256] [--key FILE]"
LIMITS = """\
This shows that the parts agree with each other. It does not show who made the pack, when, or that it was not made
anew as a whole. Compare the head and the manifest with what you were told by another way."""
COMPARED = """\
This shows that the parts agree with each other and with what you noted. It does not show who made the pack, or when."""


class Noted:
    """What the command line gives: what was noted elsewhere, and the keys. Raises ValueError, OSError."""

    def __init__(self, arguments: list[str]) -> None:
        given: dict[str, str] = {}
        rest = list(arguments)
        while rest:
            flag, _, value = rest.pop(0).partition("=")
            if flag not in ("--expect", "--manifest", "--key"):
                raise ValueError(f"unknown argument {flag!r}")
            if not value and not rest:
                raise ValueError(f"{flag} needs a value")
            if flag in given:
                raise ValueError(f"{flag} is given twice")
            given[flag] = value or rest.pop(0)
        self.expect: tuple[int, str] | None = None
        if "--expect" in given:
            if not re.fullmatch(r"[1-9][0-9]{0,18}:[0-9a-f]{64}", given["--expect"]):
                raise ValueError(f"--expect: {given['--expect']!r} is not ID:HASH, a number and 64 hex digits")
            event_id, _, hash_ = given["--expect"].partition(":")
            self.expect = int(event_id), hash_
        self.manifest = given.get("--manifest", "")
        if self.manifest and not re.fullmatch(r"[0-9a-f]{64}", self.manifest):
            raise ValueError(f"--manifest: {self.manifest!r} is not a SHA-256, 64 hex digits")
        self.keys = read_keys(Path(given["--key"])) if "--key" in given else {}


def main(arguments: list[str]) -> int:
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    try:
        noted = Noted(arguments)
    except (OSError, ValueError) as error:
        print(f"cannot tell: {error}\n{USAGE}")
        return 2
    try:
        manifest_bytes = (HERE / "manifest.json").read_bytes()
        manifest, heads = json.loads(manifest_bytes), json.loads((HERE / "heads.json").read_bytes())
        digest = sha256(manifest_bytes).hexdigest()
        breaks = list(check_parts(manifest))
        if noted.manifest and noted.manifest != digest:
            breaks.append(f"manifest.json has the SHA-256 {digest}, and {noted.manifest} was noted")
        if manifest["events"]:
            breaks += check_events(heads, noted.expect)
        elif noted.expect:
            print("cannot tell: the pack has no events, so --expect cannot be compared")
            return 2
        for part in heads["bus"]:
            breaks += check_bus(part, noted.keys)
    except NotInPack as error:
        print(f"cannot tell: {error}")
        return 2
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        print(f"cannot tell: {type(error).__name__}: {error}")
        return 2
    for reason in breaks:
        print(f"BROKEN  {reason}")
    compared = bool(noted.expect or noted.manifest)
    verdict = "broken" if breaks else "intact, and as noted" if compared else "consistent, not compared"
    print(f"{verdict}  the pack of {manifest['made_at']}")
    if manifest["events"]:
        print(f"head      {heads['events']['head']['event_id']}:{heads['events']['head']['hash']}")
    print(f"manifest  {digest}")
    print(COMPARED if compared and not breaks else LIMITS)
    return 1 if breaks else 0


class NotInPack(Exception):
    """What was noted lies outside of what is in the pack."""


def check_parts(manifest: dict[str, Any]) -> Iterator[str]:
    named = {part["name"]: part for part in manifest["parts"]}
    there = {path.relative_to(HERE).as_posix() for path in HERE.rglob("*") if path.is_file()}
    for name in sorted(there - set(named) - {"manifest.json"}):
        yield f"{name} is not in the manifest"
    for name, part in named.items():
        digest = sha256()
        if name not in there:
            yield f"{name} is missing"
            continue
        with (HERE / name).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() == part["sha256"]:
            print(f"ok      {name}: SHA-256 as in the manifest")
        else:
            yield f"{name} has another SHA-256 than the manifest names"


def check_events(heads: dict[str, Any], expect: "tuple[int, str] | None") -> Iterator[str]:
    import chain  # type: ignore[import-not-found]  # the copy in the pack

    before, head, whole = heads["events"]["before"], heads["events"]["head"], heads["chain"]
    start = chain.Head(before["event_id"], before["hash"].encode())
    hashes = {start.event_id: before["hash"]}
    in_file = 0

    def events(lines: Any) -> Iterator[Any]:
        nonlocal in_file
        for line in lines:
            in_file += 1
            event = chain.parse(line)
            if expect and event.event_id == expect[0]:
                hashes[event.event_id] = event.hash.decode()
            yield event

    with (HERE / "events.jsonl").open("rb") as lines:
        try:
            verdict = chain.verify(events(lines), start=start)
        except ValueError as error:
            held = in_file - 1
            in_file += sum(1 for _ in lines)
            yield f"events.jsonl, line {held + 1}: {error}; {in_file:,} events, the first {held:,} hold"
            return
        in_file += sum(1 for _ in lines)
    event_id, hash_ = verdict.head.event_id, verdict.head.hash.decode()
    if not verdict.valid:
        yield f"events.jsonl: {verdict.reason}; {in_file:,} events, the first {verdict.checked:,} hold"
    elif event_id != head["event_id"]:
        yield f"events.jsonl ends with event #{event_id}, and heads.json names #{head['event_id']}"
    elif hash_ != head["hash"]:
        yield f"events.jsonl ends with the hash {hash_}, and heads.json names {head['hash']}"
    else:
        print(f"ok      events.jsonl: {verdict.checked:,} events, to #{event_id}")
    print(f"scope   {scope(start.event_id + 1, start.event_id + in_file, whole['event_id'])}")
    if expect:
        yield from check_noted(expect, hashes, start.event_id, event_id, verdict.valid)


def check_noted(
    expect: "tuple[int, str]", hashes: dict[int, str], before: int, last: int, valid: bool
) -> Iterator[str]:
    event_id, noted = expect
    found = hashes.get(event_id)
    if found is None and event_id < before:
        raise NotInPack(f"the pack begins with event #{before + 1}, after the noted #{event_id}")
    if found is None:
        yield f"event #{event_id} was noted, and the events {'end' if valid else 'hold only'} to #{last}"
    elif found != noted:
        yield f"event #{event_id} has the hash {found}, and {noted} was noted"
    else:
        print(f"ok      event #{event_id} has the hash that was noted")


def scope(first: int, last: int, whole: int) -> str:
    """Say which part of the chain the pack holds, and what of it is left out."""
    said = f"events #{first} to #{last} of a chain of {whole}"
    left_out = []
    if first > 1:
        left_out.append(f"the {first - 1:,} before")
    if last < whole:
        left_out.append(f"the {whole - last:,} after")
    return f"{said}; {' and '.join(left_out)} are not in the pack" if left_out else said


def check_bus(part: dict[str, Any], keys: dict[str, bytes]) -> Iterator[str]:
    seq, prev = part["before"]["seq"], part["before"]["hash"]
    signed = 0
    with (HERE / part["name"]).open("rb") as lines:
        for number, text in enumerate(lines, start=1):
            line, why = {}, ""
            try:
                line = json.loads(text)
                why = why_not(line, seq + 1, prev, keys)
            except (ValueError, KeyError, TypeError) as error:
                why = f"it is no line of a bus: {error!r}"
            if why:
                yield f"{part['name']}, line {number}: {why}"
                return
            seq, prev, signed = line["seq"], line["hash"], signed + ("mac" in line)
    if (seq, prev) != (part["head"]["seq"], part["head"]["hash"]):
        yield f"{part['name']} ends with line #{seq}, and heads.json names #{part['head']['seq']}"
        return
    said = f", {signed} signed, signatures {'checked' if keys else 'not checked: give --key FILE'}" if signed else ""
    print(f"ok      {part['name']}: lines to #{seq}{said}")


def why_not(line: dict[str, Any], seq: int, prev: str, keys: dict[str, bytes]) -> str:
    body = {name: value for name, value in line.items() if name not in ("hash", "mac")}
    preimage = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    if line["seq"] != seq:
        return f"seq should be {seq}, got {line['seq']}"
    if line["prev_hash"] != prev:
        return "prev_hash mismatch"
    if sha256(preimage).hexdigest() != line["hash"]:
        return "hash mismatch"
    if keys:
        if line.get("key") not in keys:
            return "it is not signed with one of the keys"
        mac = hmac.new(keys[line["key"]], line["hash"].encode(), "sha256").hexdigest()
        if not hmac.compare_digest(mac, line["mac"]):
            return f"it says that it is signed with the key {line['key']!r}, and it is not"
    return ""


def read_keys(path: Path) -> dict[str, bytes]:
    texts = [text for text in path.read_text().split("\n") if text.strip() and not text.startswith("#")]
    return {name: bytes.fromhex(secret) for name, _, secret in (text.strip().rpartition(":") for text in texts)}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.dont_write_bytecode = True  # nothing is to be in the pack that is not in its manifest
    sys.exit(main(sys.argv[1:]))
