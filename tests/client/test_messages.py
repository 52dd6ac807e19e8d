"""What a producer that makes a mistake is told: what is wrong, where, and what to do."""

import math
from collections import ChainMap
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from audit_stream.client import AuditClient
from audit_stream.client.arguments import ROUTES
from audit_stream.errors import Misconfigured, Refused
from audit_stream.server import routes
from tests.client.front import front_of
from tests.e2e.terminal import run
from tests.harness import ServerProcess


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int


MISTAKES: list[tuple[Any, str]] = [
    (["l"], "payload: a list is not a JSON object; give a dict"),
    ("text", "payload: a str is not a JSON object; give a dict"),
    ({"id": UUID(int=1)}, "payload.id is a UUID, which JSON has no form for; use str()"),
    (
        {"a": {"b": [{"at": datetime.now(UTC)}]}},
        "payload.a.b[0].at is a datetime, which JSON has no form for; use .iso",
    ),
    ({"a b": [Decimal(1)]}, "payload['a b'][0] is a Decimal, which JSON has no form for; use str()"),
    ({"t": timedelta(1)}, "payload.t is a timedelta, which JSON has no form for; use .total_seconds()"),
    ({"c": Colour.RED}, "payload.c is a Colour, which JSON has no form for; use its .value"),
    ({"p": Path("x")}, "payload.p is a PosixPath, which JSON has no form for; use str()"),
    ({"s": {1}}, "payload.s is a set, which JSON has no form for; use list()"),
    ({"m": ChainMap()}, "payload.m is a ChainMap, which JSON has no form for; use dict()"),
    ({"b": b"x"}, "payload.b is a bytes, which JSON has no form for; decode it to text"),
    ({"d": Point(1)}, "payload.d is a Point, which JSON has no form for; use dataclasses.asdict()"),
    ({"o": object()}, "payload.o is an object, which JSON has no form for; make it of dict, list and text"),
    ({"n": [0, math.nan]}, "payload.n[1] is nan, which is not a JSON number; use None or a text"),
    ({"a": {1: "one"}}, "payload.a: the key 1 is an int; keys are strings: use str()"),
]


@pytest.mark.parametrize(("payload", "said"), MISTAKES, ids=[said.partition(" is ")[0] for _, said in MISTAKES])
def test_what_json_cannot_hold_is_named_with_its_place_and_what_to_do(payload: Any, said: str) -> None:
    with front_of("http://127.0.0.1:1") as front, AuditClient(front.url) as client:
        for send in (
            lambda: client.append("other", "s", payload),
            lambda: client.append_many([{"kind": "other", "source": "s", "payload": payload}]),
        ):
            with pytest.raises(Refused) as raised:
                send()
            assert str(raised.value).startswith(said)
            assert raised.value.field == "payload"
        assert front.seen == []


def test_the_address_of_a_route_is_refused_before_anything_is_sent(server: ServerProcess) -> None:
    for path in ("/events", "/events/", "/events/1", "/dashboard/login"):
        with pytest.raises(Misconfigured) as raised:
            AuditClient(server.url + path)
        assert str(raised.value).startswith(f"url: it has a path, {path},")
        assert str(raised.value).endswith(f"leave the path out: {server.url}")
    done = run("stats", "--url", f"{server.url}/events")
    assert done.returncode == 2
    assert f"--url: it has a path, /events, which is one of the server's routes; leave the path out: {server.url}" in (
        done.stderr.decode()
    )


def test_a_path_that_leads_nowhere_is_named(server: ServerProcess) -> None:
    with AuditClient(f"{server.url}/audit", patience_s=0) as client:
        for ask in (client.stats, lambda: client.append("other", "s"), lambda: client.get(1)):
            with pytest.raises(Refused, match="The url has a path, /audit; without it the server may be there"):
                ask()


def test_the_routes_that_no_address_begins_with_are_the_server_s() -> None:
    first = {path.split("/")[1] for handler in routes.ROUTES for path in handler.paths} | {"schema"}
    assert first - {""} == ROUTES
