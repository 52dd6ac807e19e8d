"""query, get, verify, stats and check."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from audit_stream.client import AuditClient, Event, Spooled, asynchronous, check
from audit_stream.errors import ChainBroken, Refused, Unreachable
from tests.client.clients import append_numbers, event
from tests.client.front import front_of
from tests.harness import ServerProcess

Vectors = dict[str, list[dict[str, Any]]]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynchronous, "PAGE", 3)


def filled(client: AuditClient, count: int) -> None:
    kinds = ("other", "request_denied")
    client.append_many({"kind": kinds[n % 2], "source": f"s{n % 3}", "payload": {"n": n}} for n in range(count))


@pytest.mark.usefixtures("small_pages")
def test_a_query_goes_through_all_pages_and_asks_for_no_more(server: ServerProcess) -> None:
    with front_of(server.url) as front, AuditClient(front.url) as client:
        filled(client, 9)
        del front.seen[:]
        assert [found.event_id for found in client.query()] == list(range(1, 10))
        assert len(front.seen) == 3


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"kind": "other"}, [1, 3, 5, 7, 9]),
    ({"kind": "other", "source": "s0"}, [1, 7]),
    ({"after": 4, "before": 9}, [5, 6, 7, 8]),
    ({"limit": 4}, [1, 2, 3, 4]),
    ({"limit": 0}, []),
    ({"until": datetime(2020, 1, 1, tzinfo=UTC)}, []),
    ({"since": "2020-01-01T00:00:00Z", "after": 8}, [9]),
]


@pytest.mark.usefixtures("small_pages")
def test_a_query_finds_what_its_filters_say(server: ServerProcess) -> None:
    with AuditClient(server.url) as client:
        filled(client, 9)
        for filters, ids in FILTERS:
            assert [found.event_id for found in client.query(**filters)] == ids, filters


def test_a_query_of_an_unknown_kind_or_without_a_time_zone_is_refused(server: ServerProcess) -> None:
    with AuditClient(server.url) as client:
        with pytest.raises(Refused, match="nonsense"):
            list(client.query(kind="nonsense"))
        with pytest.raises(Refused, match="time zone"):
            list(client.query(since=datetime(2026, 1, 1)))


def test_a_read_is_made_again_when_the_server_is_busy_or_the_connection_lost(server: ServerProcess) -> None:
    with front_of(server.url, "cut before", "cut after") as front, AuditClient(front.url) as client:
        assert client.stats().count == 0
        assert len(front.seen) == 3


def test_an_event_that_is_not_there_is_none(server: ServerProcess) -> None:
    with AuditClient(server.url) as client:
        assert client.get(1) is None
        with pytest.raises(Refused):
            client.get(-1)


def test_a_wrong_path_is_not_an_event_that_is_missing(server: ServerProcess) -> None:
    with AuditClient(f"{server.url}/elsewhere") as client:
        with pytest.raises(Refused, match=r"answered 404 to events/1: is it the address"):
            client.get(1)
        with pytest.raises(Refused, match=r"answered 404 to stats: is it the address"):
            client.stats()


def test_an_answer_of_something_else_is_no_answer(server: ServerProcess) -> None:
    with front_of(server.url, "portal", "portal", "portal") as front, AuditClient(front.url, patience_s=0) as client:
        for ask in (client.stats, client.verify, lambda: client.append("other", "s")):
            with pytest.raises(Unreachable, match="no answer of an audit-stream server"):
                ask()


def test_stats_and_the_verdict_agree_on_the_head(server: ServerProcess) -> None:
    with AuditClient(server.url) as client:
        assert client.stats().latest_hash is None
        filled(client, 5)
        stats, verdict = client.stats(), client.verify()
        assert (verdict.valid, verdict.checked, verdict.indexes) == (True, 5, "agree")
        assert (verdict.head.event_id, verdict.head.hash) == (stats.last_event_id, stats.latest_hash)
        assert client.verify(first=2, last=3).checked == 2
        assert client.verify(deep=True).valid
        with pytest.raises(Refused, match="the chain ends at event #5"):
            client.verify(first=7)


# --- check


def test_every_published_event_checks_in_every_form_a_receipt_has(vectors: Vectors) -> None:
    receipts = [vector["event"] | {"hash": vector["hash"]} for vector in vectors["events"]] + vectors["chain"]
    for receipt in receipts:
        # As Python writes it and as the server does: the vectors' payloads hold every kind of number and text.
        text = json.dumps(receipt)
        assert check(text)
        assert check(text.encode())
        assert check(json.loads(text))
        assert check(msgspec.json.decode(text, type=Event))


CHANGES: list[dict[str, Any]] = [
    {"event_id": 2},
    {"timestamp": "2026-05-15T03:14:15Z"},
    {"timestamp": '2026"'},
    {"kind": "request_allowed"},
    {"source": "other"},
    {"payload": {"n": 2}},
    {"prev_hash": "1" * 64},
    {"hash": "0" * 64},
]


def test_a_receipt_with_any_field_changed_does_not_check(server: ServerProcess) -> None:
    with AuditClient(server.url) as client:
        receipt = event(client.append("other", "s", {"n": 1}))
        for change in CHANGES:
            changed = msgspec.structs.replace(receipt, **change)
            with pytest.raises(ChainBroken) as raised:
                client.check(changed)
            assert raised.value.expected == changed.hash
            assert raised.value.found != changed.hash


@pytest.mark.parametrize("receipt", ["{", "[]", "{}", b"\xff", {"event_id": "1"}])
def test_what_is_no_event_is_refused(receipt: Any) -> None:
    with pytest.raises(Refused, match="not an event"):
        check(receipt)


def test_a_spooled_event_has_no_hash_to_check() -> None:
    with pytest.raises(Refused, match="no hash yet"):
        check(Spooled(idempotency_key="k", path="/p", reason="r"))


def test_the_chain_of_receipts_is_linked(server: ServerProcess) -> None:
    with AuditClient(server.url) as client:
        first, second = map(event, append_numbers(client, 1, 2))
    assert second.prev_hash == first.hash
