"""A sample of `make faults`, the same one each time: every kind of fault that is cheap, once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import redis

from audit_stream.chain import Event
from tests.faults.campaign.faults import FAULTS
from tests.faults.campaign.ledger import Ledger
from tests.faults.campaign.prober import Prober
from tests.faults.campaign.readers import Reader
from tests.faults.campaign.run import Row, plan, run_round, table
from tests.faults.campaign.site import Kind
from tests.faults.load import Answer
from tests.faults.processes import needs_linux
from tests.harness import ROOT, ServerProcess

SEED = 7
TOO_SLOW = {
    "half-open connections to Redis": "the live tail notices after 15 s",
    "10,000 idle connections": "so many take their time",
    "slow Redis": "slower than a server waits, it takes seconds",
    "Redis' settings changed": "a server looks at them every ten seconds",
}
ON_THE_PAIR = ("failover to the replica", "SIGKILL the replica", "SIGKILL a server", "cut before the reply arrives")


def sample(kind: Kind) -> list[str]:
    if kind == "pair":
        return list(ON_THE_PAIR)
    return [name for name, fault in FAULTS.items() if "one" in fault.sites and name not in TOO_SLOW]


@needs_linux
@pytest.mark.parametrize("kind", ["one", "pair"])
def test_every_invariant_holds_after_each_of_these_faults(tmp_path: Path, kind: Kind) -> None:
    rows = {name: Row() for name in FAULTS}
    names = sample(kind)
    run_round(tmp_path / "site", kind, names, f"{SEED} {kind}", rows, print)
    print(table(rows))
    for name in names:
        assert rows[name].recoveries or rows[name].not_here, name


def test_a_plan_has_every_fault_on_every_site_and_as_many_as_asked_for() -> None:
    rounds = list(plan(SEED, 200))
    planned = [(name, kind) for kind, names in rounds for name in names]
    assert len(planned) == 200
    assert set(planned) == {(name, kind) for name, fault in FAULTS.items() for kind in fault.sites}
    assert rounds == list(plan(SEED, 200))
    assert rounds != list(plan(SEED + 1, 200))


def test_the_documentation_names_every_fault_with_its_sites() -> None:
    table = (ROOT / "docs/failures.md").read_text().partition("| faults | sites |\n|---|---|\n")[2].partition("\n\n")[0]
    documented = {}
    for row in table.splitlines():
        names, where = row.strip("| ").split(" | ")
        for name in names.partition(":")[0].split("; "):
            documented[name] = get_args(Kind) if where == "all" else tuple(where.split(", "))
    assert documented == {name: fault.sites for name, fault in FAULTS.items()}


# --- it would find what it looks for


class Wronged(NamedTuple):
    answers: list[Answer]
    server: ServerProcess
    client: Any
    events: str


def _lost(on: Wronged) -> None:
    on.client.xdel(on.events, "2-0")


def _lost_at_the_end(on: Wronged) -> None:
    on.client.xdel(on.events, "3-0")


def _other_than_answered(on: Wronged) -> None:
    on.answers[1].events[0]["hash"] = "0" * 64


def _stored_twice(on: Wronged) -> None:
    again = {"request": on.answers[0].request, "place": 0, "size": 1}
    on.server.post({"kind": "other", "source": "probe", "payload": again}).raise_for_status()


@pytest.mark.parametrize("wrong", [_lost, _lost_at_the_end, _other_than_answered, _stored_twice])
def test_the_ledger_finds_what_is_wrong(
    server: ServerProcess, redis_url: str, chain: str, wrong: Callable[[Wronged], None]
) -> None:
    prober = Prober()
    for _ in range(3):
        prober.until_appended(server.url)
    prober.close()
    assert Ledger(chain).check(redis_url, prober.answers) == 3
    with redis.Redis.from_url(redis_url) as client:
        wrong(Wronged(prober.answers, server, client, f"{{{chain}}}:events"))
    with pytest.raises(AssertionError):
        Ledger(chain).check(redis_url, prober.answers)


@pytest.mark.parametrize("seen", [[1, 3], [1, 1, 2, 3], [2, 1, 3], [1, 2, 4]])
def test_a_reader_that_missed_or_saw_twice_or_out_of_order_is_found(seen: list[int]) -> None:
    events = [Event(n, b"", b"", b"", b"", b"", b"%d" % n) for n in range(1, len(seen) + 1)]
    reader = Reader(["nowhere"])
    for number in seen:
        reader.note(f"{number} {number}")
    with pytest.raises(AssertionError, match="saw"):
        reader.check(events)
