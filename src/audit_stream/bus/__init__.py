"""The governance bus: a local, append-only log of one JSON message a line, hash-chained. Standard library only."""

from audit_stream.bus.keys import Key, Keyring, generate_secret, sign_message, verify_message
from audit_stream.bus.verifying import PolicyLevel, Verdict, verify
from audit_stream.bus.writer import BusWriter, Message

__all__ = [
    "BusWriter",
    "Key",
    "Keyring",
    "Message",
    "PolicyLevel",
    "Verdict",
    "generate_secret",
    "sign_message",
    "verify",
    "verify_message",
]
