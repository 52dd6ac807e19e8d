"""How long the memory of Redis lasts: the arithmetic, and what it is fed with."""

from datetime import timedelta

import pytest

from audit_stream.capacity import DAY, FEWEST, SHORTEST, SOON_DAYS, Growth, Memory, days_until_full, memory
from audit_stream.cli.capacity import shown
from audit_stream.cli.doctor import _capacity

MB = 1_000_000
INFO = {"used_memory": "4000000", "maxmemory": "104000000", "total_system_memory": "9999999999"}


def test_the_memory_that_is_free_is_divided_by_what_a_day_takes() -> None:
    # 10,000 events in 4 MB are 400 bytes each; 25,000 of them a day are 10 MB.
    found = days_until_full(Memory(4 * MB, 104 * MB, 4 * MB), Growth(10_000, 25_000, DAY))
    assert found == pytest.approx(10)


def test_a_younger_chain_s_rate_is_that_of_its_own_age() -> None:
    a_day = Growth(10_000, 10_000, DAY)
    six_hours = Growth(10_000, 10_000, DAY / 4)
    room = Memory(4 * MB, 104 * MB, 4 * MB)
    assert days_until_full(room, six_hours) == pytest.approx((days_until_full(room, a_day) or 0) / 4)


def test_what_an_empty_redis_takes_is_not_charged_to_the_events() -> None:
    charged = days_until_full(Memory(4 * MB, 104 * MB, 4 * MB), Growth(10_000, 25_000, DAY))
    spared = days_until_full(Memory(4 * MB, 104 * MB, 2 * MB), Growth(10_000, 25_000, DAY))
    assert [charged, spared] == pytest.approx([10, 20])


@pytest.mark.parametrize(
    "growth",
    [
        pytest.param(Growth(0, 0, timedelta(0)), id="no events"),
        pytest.param(Growth(10_000, 0, DAY), id="none of them new"),
        pytest.param(Growth(FEWEST - 1, FEWEST - 1, DAY), id="a few"),
        pytest.param(Growth(10_000, 10_000, SHORTEST - timedelta(seconds=1)), id="too young"),
        pytest.param(Growth(10_000, -3, DAY), id="a time index that lost its newest entries"),
    ],
)
def test_without_a_rate_nobody_says_when_it_is_full(growth: Growth) -> None:
    assert days_until_full(Memory(4 * MB, 104 * MB, 4 * MB), growth) is None


@pytest.mark.parametrize("used", [104 * MB, 110 * MB])
def test_what_is_full_already_is_full_in_no_time_also_without_a_rate(used: int) -> None:
    assert days_until_full(Memory(used, 104 * MB, used), Growth(0, 0, timedelta(0))) == 0


def test_maxmemory_is_the_limit_and_without_one_the_machine_is() -> None:
    assert memory(INFO) == Memory(4 * MB, 104 * MB, 4 * MB)
    assert memory({**INFO, "maxmemory": "0"}) == Memory(4 * MB, 9_999_999_999, 4 * MB)
    assert memory({**INFO, "used_memory_dataset": "3000000"}) == Memory(4 * MB, 104 * MB, 3 * MB)


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({}, id="INFO denied"),
        pytest.param({"maxmemory": "104000000"}, id="used_memory hidden"),
        pytest.param({"used_memory": "4000000", "maxmemory": "0"}, id="no limit to be seen"),
        pytest.param({**INFO, "used_memory": "n/a"}, id="not a number"),
    ],
)
def test_a_provider_that_hides_its_memory_leaves_the_capacity_out(facts: dict[str, str]) -> None:
    assert memory(facts) is None


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (None, "12.3 MB of 2.0 GB, too little was appended to say when it is full"),
        (37.4, "12.3 MB of 2.0 GB, full in 37 days"),
        (0.4, "12.3 MB of 2.0 GB, full within a day"),
    ],
)
def test_capacity_in_words(days: float | None, words: str) -> None:
    assert shown({"used_bytes": 12_300_000, "limit_bytes": 2_000_000_000, "days_until_full": days}) == words


@pytest.mark.parametrize(("days", "fine"), [(None, True), (SOON_DAYS, True), (SOON_DAYS - 0.1, False), (0.0, False)])
def test_doctor_finds_fault_with_a_redis_that_is_full_soon(days: float | None, fine: bool) -> None:
    check = _capacity({"used_bytes": 1_000_000, "limit_bytes": 2_000_000, "days_until_full": days})
    assert check.fine is fine
    assert fine or check.wanted == "14 days or more"
