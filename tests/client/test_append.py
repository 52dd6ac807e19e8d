"""append and append_many: once, however often it takes."""

import asyncio
import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import pytest

from audit_stream.client import AsyncAuditClient, AuditClient
from audit_stream.client.http import Backoff
from audit_stream.errors import AuditStreamError, Misconfigured, Pushback, Refused, TooLarge, Unreachable
from audit_stream.event import PublishRequest
from tests.client.clients import UnhurriedWire, append_numbers, event, numbers_in
from tests.client.front import RETRY_AFTER_S, Behaviour, front_of
from tests.faults.processes import free_port
from tests.harness import ServerProcess

SECRET = "as_very_secret"


def test_a_receipt_is_the_event_that_is_in_the_chain(server: ServerProcess) -> None:
    with AuditClient(server.url) as client:
        receipt = event(client.append("request_denied", "café", {"n": 1, "f": 1e22}))
        assert client.get(receipt.event_id) == receipt
        assert client.check(receipt)
        assert (receipt.kind, receipt.source, receipt.payload) == ("request_denied", "café", {"n": 1, "f": 1e22})


def test_a_timestamp_is_kept_and_one_key_appends_once(server: ServerProcess) -> None:
    moment = datetime.fromisoformat("2026-05-15T03:14:15+02:00")
    with AuditClient(server.url) as client:
        first, second = (
            event(client.append("other", "s", {"n": 1}, timestamp=moment, idempotency_key="k")) for _ in range(2)
        )
    assert first.timestamp == "2026-05-15T03:14:15+02:00"
    assert (first.replayed, second.replayed) == (False, True)
    assert first.event_id == second.event_id == server.get("/stats").json()["count"]


async def once_despite(server: ServerProcess, *behaviours: Behaviour) -> tuple[list[float], list[str]]:
    """Append one event through this; return the pauses that were made and the keys that were sent."""
    with front_of(server.url, *behaviours) as front:
        async with AsyncAuditClient(front.url, wire=UnhurriedWire) as client:
            await client.append("other", "tests", {"n": 1})
            wire = client._http.wire
            assert isinstance(wire, UnhurriedWire)
            return wire.pauses_s, [json.loads(seen.body)["idempotency_key"] for seen in front.seen]


@pytest.mark.parametrize("behaviour", ["busy", "cut before", "cut after"])
def test_an_append_is_sent_again_under_its_key_and_stored_once(server: ServerProcess, behaviour: Behaviour) -> None:
    _, keys = asyncio.run(once_despite(server, behaviour, behaviour))
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert numbers_in(server) == [1]


def test_a_batch_whose_answer_is_lost_is_stored_once(server: ServerProcess) -> None:
    with front_of(server.url, "cut after") as front, AuditClient(front.url) as client:
        receipts = client.append_many({"kind": "other", "source": "s", "payload": {"n": n}} for n in range(3))
    assert [event(receipt).replayed for receipt in receipts] == [True] * 3
    assert numbers_in(server) == [0, 1, 2]


def test_two_appends_have_two_keys(server: ServerProcess) -> None:
    with front_of(server.url) as front, AuditClient(front.url) as client:
        append_numbers(client, 1, 1)
        assert len({json.loads(seen.body)["idempotency_key"] for seen in front.seen}) == 2
    assert numbers_in(server) == [1, 1]


def test_no_attempt_begins_before_retry_after(server: ServerProcess) -> None:
    pauses_s, _ = asyncio.run(once_despite(server, "busy", "cut before"))
    assert pauses_s[0] >= RETRY_AFTER_S
    assert pauses_s[1] < RETRY_AFTER_S


def test_pauses_grow_are_jittered_and_end_with_patience() -> None:
    pauses_s = [[backoff.pause_s() or 0 for _ in range(10)] for backoff in (Backoff(None), Backoff(None))]
    assert pauses_s[0] != pauses_s[1]
    assert all(0.05 <= first <= 0.1 and 2.5 <= last <= 5 for first, *_, last in pauses_s)
    assert Backoff(0).pause_s() is None
    assert Backoff(60).pause_s(at_least_s=61) is None


@pytest.mark.parametrize(("behaviour", "in_doubt"), [("cut after", True), ("busy", True)])
def test_who_gives_up_on_a_request_that_was_sent_is_in_doubt(
    server: ServerProcess, behaviour: Behaviour, in_doubt: bool
) -> None:
    with front_of(server.url, behaviour) as front, AuditClient(front.url, patience_s=0) as client:
        with pytest.raises(Unreachable) as raised:
            client.append("other", "s")
        assert raised.value.in_doubt is in_doubt
        assert len(front.seen) == 1


def test_where_nobody_listens_nothing_is_in_doubt() -> None:
    with AuditClient(f"http://127.0.0.1:{free_port()}", patience_s=0) as client:
        with pytest.raises(Unreachable, match="no server at") as raised:
            client.append("other", "s")
        assert not raised.value.in_doubt


def test_what_the_server_refuses_is_not_sent_again_and_says_why(server: ServerProcess) -> None:
    with front_of(server.url) as front, AuditClient(front.url) as client:
        with pytest.raises(Refused, match="'nonsense' is not a kind") as raised:
            client.append("nonsense", "s")
        assert raised.value.field == "kind"
        with pytest.raises(Refused, match=r"line 2 of the body \(index 1\)") as raised:
            client.append_many([{"kind": kind, "source": "s"} for kind in ("other", "nonsense")])
        assert raised.value.index == 1
        assert len(front.seen) == 2
    assert numbers_in(server) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"payload": {"n": math.nan}},
        {"payload": {"n": object()}},
        {"payload": {"n": [{1: "one"}]}},
        {"payload": {"n": "\ud800"}},
        {"payload": [1]},
        {"source": ""},
        {"sauce": "s"},
        {"timestamp": "yesterday"},
        {"timestamp": datetime(2026, 1, 1)},
        {"idempotency_key": "k" * 256},
    ],
)
def test_what_every_server_would_refuse_is_not_even_sent(fields: dict[str, Any]) -> None:
    with front_of("http://127.0.0.1:1") as front, AuditClient(front.url) as client:
        with pytest.raises(Refused):
            client.append_many([{"kind": "other", "source": "s", **fields}])
        assert front.seen == []


def test_more_than_a_batch_is_sent_in_parts_only_when_told(server: ServerProcess) -> None:
    requests = [PublishRequest("other", "s", {"n": n}) for n in range(2_001)]
    with front_of(server.url) as front, AuditClient(front.url) as client:
        with pytest.raises(TooLarge, match="2001 events"):
            client.append_many(requests)
        assert front.seen == []
        receipts = client.append_many(requests, split="when larger")
        assert [seen.path for seen in front.seen] == ["/events/batch", "/events"]
    assert [event(receipt).event_id for receipt in receipts] == list(range(1, 2_002))
    assert numbers_in(server) == list(range(2_001))


def test_when_a_later_part_is_refused_the_error_says_what_was_taken(server: ServerProcess) -> None:
    requests = [PublishRequest("other", "s", {"n": n}) for n in range(2_000)] + [PublishRequest("nonsense", "s")]
    with AuditClient(server.url) as client, pytest.raises(Refused) as raised:
        client.append_many(requests, split="when larger")
    assert raised.value.__notes__ == ["2000 of 2001 events were taken before"]


def test_a_batch_over_4_mib_is_cut_by_its_size(server: ServerProcess) -> None:
    requests = [PublishRequest("other", "s", {"n": n, "text": "x" * 200_000}) for n in range(25)]
    with front_of(server.url) as front, AuditClient(front.url) as client:
        client.append_many(requests, split="when larger")
        assert all(len(seen.body) <= 4 * 1024 * 1024 for seen in front.seen)
        assert len(front.seen) == 2
    assert numbers_in(server) == list(range(25))


def test_no_events_are_no_request() -> None:
    with AuditClient("http://127.0.0.1:1") as client:
        assert client.append_many([]) == []


# --- the token


def test_the_token_goes_with_every_request_and_nowhere_else(
    server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with front_of(server.url, "busy") as front, AuditClient(front.url, token=SECRET, patience_s=0) as client:
        with pytest.raises(Unreachable) as raised:
            client.append("other", "s")
        client.stats()
        assert [seen.headers["authorization"] for seen in front.seen] == [f"Bearer {SECRET}"] * 2
        assert repr(client) == f"AuditClient({front.url!r})"
    assert SECRET not in f"{raised.value!r} {raised.getrepr(showlocals=False)}"
    assert SECRET not in caplog.text


def test_the_token_may_come_from_the_environment(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIT_STREAM_TOKEN", f"{SECRET}\n")
    with front_of(server.url) as front:
        monkeypatch.setenv("AUDIT_STREAM_URL", front.url)
        with AuditClient() as client:
            client.stats()
        assert front.seen[0].headers["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "make",
    [
        lambda: AuditClient("http://h", token=f"{SECRET}\r\nX-Other: 1"),
        lambda: AuditClient(f"http://me:{SECRET}@h"),
        lambda: AuditClient("ftp://h"),
        lambda: AuditClient("8093"),
    ],
)
def test_an_address_or_token_that_cannot_work_says_so_at_start(make: Callable[[], AuditClient]) -> None:
    with pytest.raises(Misconfigured) as raised:
        make()
    assert SECRET not in str(raised.value)


def test_too_many_requests_is_pushback() -> None:
    from audit_stream.client.http import Answer, Http
    from audit_stream.client.wire import Request

    answer = Answer(429, httpx.Headers({"Retry-After": "9"}), b"")
    error: AuditStreamError = Http(UnhurriedWire("http://h", {}, httpx.Timeout(1)), "http://h").error(
        answer, Request("POST", "events")
    )
    assert isinstance(error, Pushback)
    assert error.retry_after == 9
