"""Check an evidence pack with nothing but Python's standard library: `python -I -S check.py [--key FILE]`.

Lies in the pack, beside chain.py, which holds the chain's own proof. Says of each part whether it is what the manifest
names, recomputes every event and every bus line, and compares where they end with heads.json.
Exit code: 0 all of it holds, 1 something does not, 2 it could not be checked.
"""

import hmac
import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.dont_write_bytecode = True  # nothing is to be in the pack that is not in its manifest


def main(arguments: list[str]) -> int:
    try:
        keys = read_keys(Path(arguments[1])) if arguments[:1] == ["--key"] else {}
        manifest, heads = (
            json.loads((HERE / "manifest.json").read_bytes()),
            json.loads((HERE / "heads.json").read_bytes()),
        )
        troubles = list(check_parts(manifest))
        if manifest["events"]:
            troubles += check_events(heads["events"])
        for part in heads["bus"]:
            troubles += check_bus(part, keys)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        print(f"cannot tell: {type(error).__name__}: {error}")
        return 2
    for trouble in troubles:
        print(f"BROKEN  {trouble}")
    print("broken" if troubles else "intact", f"  the pack of {manifest['made_at']}", sep="")
    return 1 if troubles else 0


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


def check_events(heads: dict[str, Any]) -> Iterator[str]:
    import chain  # type: ignore[import-not-found]  # the copy in the pack

    start = chain.Head(heads["before"]["event_id"], heads["before"]["hash"].encode())
    with (HERE / "events.jsonl").open("rb") as lines:
        try:
            verdict = chain.verify(map(chain.parse, lines), start=start)
        except ValueError as error:
            yield f"events.jsonl: {error}"
            return
    seq, hash_ = verdict.head.event_id, verdict.head.hash.decode()
    if not verdict.valid:
        yield f"events.jsonl: {verdict.reason}"
    elif (seq, hash_) != (heads["head"]["event_id"], heads["head"]["hash"]):
        yield f"events.jsonl ends with event #{seq}, and heads.json names #{heads['head']['event_id']}"
    else:
        print(f"ok      events.jsonl: {verdict.checked} events, to #{seq}")


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
    sys.exit(main(sys.argv[1:]))
