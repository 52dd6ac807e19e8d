"""What is sent: one typical event, the same for every side."""

import json
from typing import Any

KIND = "request_allowed"
RARE_KIND = "attestation_tampered"
SOURCE = "bench-gateway"
PAYLOAD: dict[str, Any] = {
    "actor": "user-4711",
    "action": "model.invoke",
    "resource": "models/credit-risk/42",
    "policy": "eu-ai-act/v3",
    "latency_ms": 12,
    "allowed": True,
}


def event(kind: str = KIND) -> dict[str, Any]:
    return {"kind": kind, "source": SOURCE, "payload": PAYLOAD}


def one(kind: str = KIND) -> bytes:
    return json.dumps(event(kind)).encode()


def batch(count: int, *, rare: int = 0) -> bytes:
    """A JSON array of `count` events, the first `rare` of them of the rare kind."""
    return json.dumps([event(RARE_KIND if i < rare else KIND) for i in range(count)]).encode()


def payload_text() -> str:
    return json.dumps(PAYLOAD, sort_keys=True, separators=(",", ":"))


def fields() -> list[bytes]:
    """The fields of a stored event, names and values in turn, for the peers that store it without a hash."""
    payload = payload_text().encode()
    values = (b"2026-05-15T03:14:15.123+00:00", KIND.encode(), SOURCE.encode(), payload, b"0" * 64, b"f" * 64)
    names = (b"timestamp", b"kind", b"source", b"payload", b"prev_hash", b"hash")
    return [part for pair in zip(names, values, strict=True) for part in pair]
