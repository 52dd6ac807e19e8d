"""`python -m audit_stream.bus FILE…`: the verdict on a bus, where there is Python and no other package.

The words and exit codes are those of `audit-stream bus verify`: 0 intact, 1 broken, 2 could not tell.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from audit_stream.bus.keys import Keyring
from audit_stream.bus.verifying import PolicyLevel, Verdict, verify
from audit_stream.errors import Misconfigured

INTACT, BROKEN, CANNOT_TELL = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    seq, hash_ = options.expect or (0, "")
    try:
        keys = Keyring.from_file(options.key) if options.key else Keyring.from_environment()
        policy = PolicyLevel.STRICT if keys else PolicyLevel.PERMISSIVE
        verdict = verify(options.files, keys=keys, policy=policy, asked=[seq])
    except OSError as error:
        print(f"cannot tell: {error.filename} cannot be read: {error.strerror}", file=sys.stderr)
        return CANNOT_TELL
    except Misconfigured as error:
        print(f"cannot tell: {error}", file=sys.stderr)
        return CANNOT_TELL
    if verdict.valid:
        print(f"intact  {_lines(verdict.checked)}")
    else:
        print(f"broken at {verdict.file}, {_plain(str(verdict.reason))}\n  {_lines(verdict.checked)} held before it")
    _tell(verdict, checked=keys is not None)
    holds = not options.expect or verdict.hashes.get(seq) == hash_
    if options.expect:
        print(f"the expected line {'holds' if holds else 'does not hold'}: line #{seq}")
    return INTACT if verdict.valid and holds else BROKEN


def _tell(verdict: Verdict, *, checked: bool) -> None:
    if verdict.keys:
        count = sum(verdict.keys.values())
        print(f"  signed    {count}, {'checked' if checked else 'not checked: give the keys with --key'}")
    if verdict.keys and verdict.unsigned:
        print(f"  unsigned  {verdict.unsigned}")
    if verdict.start.event_id:
        print(f"  behind    #{verdict.start.event_id} {verdict.start.hash.decode()}")
    print(f"  head      #{verdict.head.event_id}\n  hash      {verdict.head.hash.decode()}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m audit_stream.bus", description="Verify a bus, line by line.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="of a rotated log, all files in their order")
    parser.add_argument("--key", metavar="FILE", help="keys, one ID:SECRET a line; unsigned lines then do not hold")
    parser.add_argument("--expect", metavar="SEQ:HASH", type=_line, help="a line and its hash as noted earlier")
    return parser.parse_args(arguments)


def _line(text: str) -> tuple[int, str]:
    match = re.fullmatch(r"([1-9][0-9]{0,18}):([0-9a-f]{64})", text)
    if not match:
        raise argparse.ArgumentTypeError("write it as SEQ:HASH, a number and 64 hex digits")
    return int(match.group(1)), match.group(2)


def _lines(count: int) -> str:
    return f"{count} line{'' if count == 1 else 's'}"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
