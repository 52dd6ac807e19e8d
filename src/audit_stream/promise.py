"""What a 201 promises, and whether the Redis behind it can keep that."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from audit_stream.facts import version_of
from audit_stream.settings import Ack

OLDEST = (6, 2)
"""XRANGE with exclusive bounds came with Redis 6.2; Valkey started from Redis 7.2."""


class Finding(NamedTuple):
    """A setting that falls short."""

    setting: str
    found: str
    wanted: str
    why: str
    mend: str
    """What to type, or whom to ask."""
    fatal: bool
    """The promise cannot be kept, so the server refuses to start."""

    def __str__(self) -> str:
        return f"{self.setting} is {self.found}, should be {self.wanted}: {self.why}. {self.mend}"


def judge(
    facts: Mapping[str, str], ack: Ack, *, trusted: Collection[str] = (), fails_over: bool = False
) -> list[Finding]:
    """Compare what Redis says of itself with what a 201 means; the worst findings first.

    `facts` are INFO's fields and the settings of CONFIG GET; a setting that may not be read is missing. With "fsync"
    among the `trusted` the operator vouches for those. `fails_over`: a Sentinel promotes replicas by itself.
    """
    findings = [
        *_server(facts),
        *(_disk(facts, vouched="fsync" in trusted) if ack.fsync else ()),
        *_eviction(facts),
        *_replicas(facts, ack),
        *_failover(facts, ack, fails_over),
    ]
    return sorted(findings, key=lambda finding: not finding.fatal)


def describe(facts: Mapping[str, str]) -> str:
    """Name the server: `Valkey 9.1.2`, `Redis 7.2.4`."""
    valkey = facts.get("valkey_version")
    return f"Valkey {valkey}" if valkey else f"Redis {facts.get('redis_version', '?')}"


def connected_replicas(facts: Mapping[str, str]) -> int:
    """Return how many replicas follow the primary; one that still waits for its first copy does not."""
    connected = int(facts.get("connected_slaves", "0"))
    return sum("state=online" in facts.get(f"slave{n}", "state=online") for n in range(connected))


def _server(facts: Mapping[str, str]) -> list[Finding]:
    findings = []
    version = facts.get("redis_version", "")
    if not version:
        why = "what this Redis is, and whether it keeps what it is given, cannot be checked"
        mend = "Allow this user INFO: ACL SETUSER <user> +info."
        findings.append(Finding("version", "not readable", "6.2 or newer", why, mend, fatal=True))
    elif version_of(facts) < OLDEST:
        why = "streams are read with exclusive bounds, which older servers do not know"
        findings.append(
            Finding("version", version, "6.2 or newer", why, "Use Redis 6.2 or newer, or any Valkey.", fatal=True)
        )
    role = facts.get("role", "master")
    if role not in ("master", "primary"):
        why = "a replica takes no writes"
        mend = "Point AUDIT_STREAM_REDIS_URL at the primary, or use redis+sentinel://, which follows it."
        findings.append(Finding("role", role, "master", why, mend, fatal=True))
    return findings


def _disk(facts: Mapping[str, str], *, vouched: bool) -> list[Finding]:
    findings = []
    wanted = {
        "appendonly": ("yes", "without the append-only file nothing reaches the disk"),
        "appendfsync": ("always", "a 201 must mean that the event is on disk"),
        "no-appendfsync-on-rewrite": ("no", "while the log is rewritten, nothing would be synced"),
    }
    known = dict(facts)
    if "appendonly" not in known and "aof_enabled" in known:
        known["appendonly"] = "yes" if known["aof_enabled"] == "1" else "no"
    for setting, (value, why) in wanted.items():
        found = known.get(setting)
        if found == value or (found is None and setting == "no-appendfsync-on-rewrite"):
            continue
        if found is None and vouched:
            continue
        if found is None:
            mend = (
                "Allow this user CONFIG GET. Where the provider hides it and vouches for the disk, set"
                " AUDIT_STREAM_TRUST_REDIS=fsync; where it does not, AUDIT_STREAM_ACK=memory."
            )
            findings.append(Finding(setting, "not readable", value, why, mend, fatal=True))
        else:
            mend = f"CONFIG SET {setting} {value}, and the same in its configuration file."
            findings.append(Finding(setting, found, value, why, mend, fatal=True))
    if facts.get("aof_synced") == "no":
        why = "its file is being written from the start, and until that is done nothing survives a crash"
        mend = "Wait until the rewrite is done: aof_rewrite_in_progress in INFO is 0."
        findings.append(Finding("appendonly", "yes but not in effect yet", "in effect", why, mend, fatal=True))
    if facts.get("aof_last_write_status", "ok") != "ok":
        why = "the last write of the append-only file failed"
        mend = "Look at the disk and at Redis' log."
        findings.append(Finding("aof_last_write_status", facts["aof_last_write_status"], "ok", why, mend, fatal=True))
    return findings


def _eviction(facts: Mapping[str, str]) -> list[Finding]:
    policy = facts.get("maxmemory-policy", facts.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        return []
    mend = "CONFIG SET maxmemory-policy noeviction, and the same in its configuration file."
    if policy.startswith("allkeys"):
        limited = facts.get("maxmemory", "0") != "0"
        why = (
            "when memory runs out, Redis drops the chain" if limited else "with a maxmemory Redis would drop the chain"
        )
        return [Finding("maxmemory-policy", policy, "noeviction", why, mend, fatal=limited)]
    why = "when memory runs out, Redis forgets idempotency keys before their time"
    return [Finding("maxmemory-policy", policy, "noeviction", why, mend, fatal=False)]


def _replicas(facts: Mapping[str, str], ack: Ack) -> list[Finding]:
    connected = connected_replicas(facts)
    if connected >= ack.replicas:
        return []
    why = f"AUDIT_STREAM_ACK={ack} waits for {ack.replicas} before each 201"
    mend = "Connect the replicas (REPLICAOF), or lower the promise."
    return [Finding("replicas", str(connected), f"{ack.replicas} or more", why, mend, fatal=False)]


def _failover(facts: Mapping[str, str], ack: Ack, fails_over: bool) -> list[Finding]:
    if ack.replicas or not (fails_over or connected_replicas(facts)):
        return []
    why = "a failover loses the events that no replica has yet, after their 201"
    mend = (
        f"Set AUDIT_STREAM_ACK={ack},replicas=1; min-replicas-to-write 1 in Redis also ends a split brain."
        " docs/operators/durability.md compares them."
    )
    return [
        Finding("failover", f"possible, with AUDIT_STREAM_ACK={ack}", "covered by replicas=N", why, mend, fatal=False)
    ]
