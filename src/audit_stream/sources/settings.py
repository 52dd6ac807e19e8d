"""What the environment of every source says in the same way. Everything here raises Misconfigured."""

import re
from typing import NamedTuple

from audit_stream.client.arguments import address_of
from audit_stream.errors import Misconfigured

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class Variable(NamedTuple):
    default: str
    help: str


class Listen(NamedTuple):
    host: str
    port: int


def spine_url(text: str) -> str:
    try:
        # Those before us were given the address of POST /events, and people have it in their deployments.
        return address_of(re.sub(r"/events/?$", "", text))
    except Misconfigured as error:
        raise Misconfigured(f"AUDIT_STREAM_URL: {error}") from error


def level(text: str) -> str:
    if text.upper() not in LEVELS:
        raise Misconfigured(f"LOG_LEVEL: {text!r} is not one of {', '.join(LEVELS)}")
    return text.upper()


def listen(text: str) -> Listen | None:
    if text.lower() == "off":
        return None
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise Misconfigured(f"METRICS_LISTEN: {text!r} is no address; write it like 127.0.0.1:8094, or off")
    return Listen(host.strip("[]") or "127.0.0.1", int(port))
