"""The keys of a chain in Redis."""

from hashlib import sha256
from typing import NamedTuple

LONGEST_SOURCE_BYTES = 64
"""A longer source stands in the names of its own idempotency keys by its SHA-256."""
_NOT_UTF8 = b"\xff"
"""A byte that neither a source nor an idempotency key has, so that no two pairs of them share a name."""


class Keys(NamedTuple):
    """The keys of one chain. One hash tag, so one slot in a cluster."""

    chain: str

    @property
    def events(self) -> bytes:
        return b"{%b}:events" % self.chain.encode()

    @property
    def time(self) -> bytes:
        return b"{%b}:time" % self.chain.encode()

    def kind(self, kind: bytes) -> bytes:
        return b"{%b}:kind:%b" % (self.chain.encode(), kind)

    def source(self, source: bytes) -> bytes:
        return b"{%b}:source:%b" % (self.chain.encode(), source)

    @property
    def sources(self) -> bytes:
        """Every source that has an event, so that they can be counted."""
        return b"{%b}:sources" % self.chain.encode()

    def once(self, key: bytes) -> bytes:
        """Holds the event_id of the idempotency key of the first source that uses it."""
        return b"{%b}:once:%b" % (self.chain.encode(), key)

    def own_once(self, source: bytes) -> bytes:
        """What the same is called, up to the idempotency key, when another source uses it already.

        The shared name comes first because servers of 0.2.0 know no other: so a retry that meets one of them, or one
        that wrote before an upgrade, still finds its event.
        """
        if len(source) > LONGEST_SOURCE_BYTES:
            source = _NOT_UTF8 + sha256(source).hexdigest().encode()
        return self.once(source + _NOT_UTF8)

    def batch(self, token: bytes) -> bytes:
        """Names a batch that the script hashes, so that a lost reply can be settled."""
        return b"{%b}:batch:%b" % (self.chain.encode(), token)

    @property
    def verifier(self) -> bytes:
        """Names the server that verifies in the background."""
        return b"{%b}:verifier" % self.chain.encode()

    @property
    def verdict(self) -> bytes:
        """The last verdict of any server, so that a known break outlives them all."""
        return b"{%b}:verdict" % self.chain.encode()

    @property
    def session(self) -> bytes:
        """The secret that seals the sessions of browsers."""
        return b"{%b}:session" % self.chain.encode()

    def rebuilt(self, token: bytes, key: bytes) -> bytes:
        """Where the index that is to stand at `key` grows until it is whole."""
        return b"{%b}:rebuilt:%b:%b" % (self.chain.encode(), token, key.partition(b"}:")[2])


def literally(text: bytes) -> bytes:
    """Return the pattern for SCAN that matches this text and nothing else."""
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]\\" else bytes([c]) for c in text)
