import pytest

from audit_stream.promise import describe, judge
from audit_stream.settings import FSYNC, Ack

MEMORY = Ack(fsync=False, replicas=0)
ON_TWO = Ack(fsync=True, replicas=2)

KEEPS = {
    "redis_version": "7.2.4",
    "role": "master",
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "aof_last_write_status": "ok",
    "maxmemory-policy": "noeviction",
    "maxmemory": "0",
    "connected_slaves": "0",
}
"""What a Redis says of itself that keeps the promise to fsync."""

# What differs from that; the promise; what is found, fatal (True) or not.
FINDINGS: dict[str, tuple[dict[str, str | None], Ack, dict[str, bool]]] = {
    "keeps fsync": ({}, FSYNC, {}),
    "keeps memory": ({}, MEMORY, {}),
    "no append-only file": ({"appendonly": "no"}, FSYNC, {"appendonly": True}),
    "no append-only file, for memory": ({"appendonly": "no", "appendfsync": "no"}, MEMORY, {}),
    "its first file not written yet": ({"aof_synced": "no"}, FSYNC, {"appendonly": True}),
    "its first file not written yet, for memory": ({"aof_synced": "no"}, MEMORY, {}),
    "synced each second": ({"appendfsync": "everysec"}, FSYNC, {"appendfsync": True}),
    "synced each second, for memory": ({"appendfsync": "everysec"}, MEMORY, {}),
    "neither of the two": (
        {"appendonly": "no", "appendfsync": "everysec"}, FSYNC, {"appendonly": True, "appendfsync": True},
    ),
    "not synced while rewriting": (
        {"no-appendfsync-on-rewrite": "yes"}, FSYNC, {"no-appendfsync-on-rewrite": True},
    ),
    "rewriting not readable": ({"no-appendfsync-on-rewrite": None}, FSYNC, {}),
    "no setting readable": (
        {"appendonly": None, "appendfsync": None, "no-appendfsync-on-rewrite": None, "maxmemory-policy": None},
        FSYNC, {"appendonly": True, "appendfsync": True},
    ),
    "no setting readable, for memory": (
        {"appendonly": None, "appendfsync": None, "no-appendfsync-on-rewrite": None, "maxmemory-policy": None},
        MEMORY, {},
    ),
    "INFO tells of the file where CONFIG may not": ({"appendonly": None, "aof_enabled": "1"}, FSYNC, {}),
    "INFO tells that there is none": ({"appendonly": None, "aof_enabled": "0"}, FSYNC, {"appendonly": True}),
    "the last write failed": ({"aof_last_write_status": "err"}, FSYNC, {"aof_last_write_status": True}),
    "too old": ({"redis_version": "6.0.16"}, MEMORY, {"version": True}),
    "older still": ({"redis_version": "5.0.14"}, FSYNC, {"version": True}),
    "just new enough": ({"redis_version": "6.2.0"}, FSYNC, {}),
    "two digits": ({"redis_version": "10.0.1"}, FSYNC, {}),
    "a replica": ({"role": "slave"}, MEMORY, {"role": True}),
    "a primary by its new name": ({"role": "primary"}, FSYNC, {}),
    "drops any key": ({"maxmemory-policy": "allkeys-lru", "maxmemory": "1048576"}, FSYNC, {"maxmemory-policy": True}),
    "drops any key, for memory": (
        {"maxmemory-policy": "allkeys-random", "maxmemory": "1048576"}, MEMORY, {"maxmemory-policy": True},
    ),
    "would drop any key": ({"maxmemory-policy": "allkeys-lru"}, FSYNC, {"maxmemory-policy": False}),
    "drops keys that expire": (
        {"maxmemory-policy": "volatile-ttl", "maxmemory": "1048576"}, FSYNC, {"maxmemory-policy": False},
    ),
    "INFO's name of the policy": (
        {"maxmemory-policy": None, "maxmemory_policy": "allkeys-lfu", "maxmemory": "1"},
        FSYNC, {"maxmemory-policy": True},
    ),
    "no replicas": ({}, ON_TWO, {"replicas": False}),
    "one replica too few": ({"connected_slaves": "1"}, ON_TWO, {"replicas": False}),
    "replicas enough": ({"connected_slaves": "2"}, ON_TWO, {}),
    "replicas that wait for their first copy": (
        {"connected_slaves": "2", "slave0": "ip=::1,state=wait_bgsave", "slave1": "ip=::1,state=online"},
        ON_TWO, {"replicas": False},
    ),
    "replicas that nothing waits for": ({"connected_slaves": "1"}, FSYNC, {"failover": False}),
    "fatal and not": (
        {"maxmemory-policy": "volatile-lru", "appendfsync": "no"},
        ON_TWO, {"appendfsync": True, "maxmemory-policy": False, "replicas": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDINGS)
def test_the_findings_are_what_falls_short_of_the_promise(name: str) -> None:
    differs, ack, expected = FINDINGS[name]
    facts = {fact: value for fact, value in (KEEPS | differs).items() if value is not None}
    found = judge(facts, ack)
    assert {finding.setting: finding.fatal for finding in found} == expected
    assert len(found) == len(expected)


def test_what_is_fatal_comes_first() -> None:
    found = judge(KEEPS | {"maxmemory-policy": "volatile-lru", "appendonly": "no", "redis_version": "6.0.0"}, ON_TWO)
    assert [finding.fatal for finding in found] == [True, True, False, False]


def test_a_finding_says_what_is_what_should_be_and_what_to_type() -> None:
    (finding,) = judge(KEEPS | {"appendfsync": "everysec"}, FSYNC)
    for part in ("appendfsync is everysec", "should be always", "CONFIG SET appendfsync always"):
        assert part in str(finding)


def test_a_setting_that_may_not_be_read_leaves_a_way_out() -> None:
    facts = {name: value for name, value in KEEPS.items() if name != "appendfsync"}
    (finding,) = judge(facts, FSYNC)
    assert "CONFIG GET" in str(finding)
    assert "AUDIT_STREAM_ACK=memory" in str(finding)


def test_a_server_that_says_nothing_is_too_old_rather_than_trusted() -> None:
    assert {finding.setting for finding in judge({}, FSYNC) if finding.fatal} == {
        "version", "appendonly", "appendfsync",
    }  # fmt: skip


def test_valkey_is_called_by_its_own_name_and_version() -> None:
    assert describe({"redis_version": "7.2.4", "valkey_version": "9.1.2"}) == "Valkey 9.1.2"
    assert describe({"redis_version": "7.2.4"}) == "Redis 7.2.4"
    assert describe({}) == "Redis ?"


def test_an_operator_may_vouch_for_what_is_hidden_and_not_against_what_is_shown() -> None:
    hidden = {name: value for name, value in KEEPS.items() if not name.startswith("append")}
    assert judge(hidden, FSYNC, trusted={"fsync"}) == []
    (finding,) = judge(hidden | {"appendfsync": "everysec"}, FSYNC, trusted={"fsync"})
    assert finding.fatal


def test_a_failover_that_loses_by_design_is_named_with_what_prevents_it() -> None:
    (finding,) = judge(KEEPS, FSYNC, fails_over=True)
    assert not finding.fatal
    assert "AUDIT_STREAM_ACK=fsync,replicas=1" in str(finding)
    assert judge(KEEPS | {"connected_slaves": "1"}, Ack(fsync=True, replicas=1), fails_over=True) == []
