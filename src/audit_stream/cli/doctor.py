"""audit-stream doctor."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli import capacity as in_words
from audit_stream.cli.failures import Failed, words_of
from audit_stream.cli.local import with_stream
from audit_stream.cli.options import choose_one, json_option, redis_url_option, setting_option, url_option
from audit_stream.cli.output import console, printable, spoken, tell, until_reader_leaves, wants_json, write_lines
from audit_stream.errors import AuditStreamError, ChainBroken, Unreachable
from audit_stream.settings import Ack, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from audit_stream.promise import Finding
    from audit_stream.stream import Stream

FINE, FALLS_SHORT, CANNOT_TELL = 0, 1, 2
OLD_S = 24 * 3600

# What `promise.judge` looks at, by the names of its findings.
_ALWAYS = ("version", "role", "maxmemory-policy", "replicas")
_FOR_FSYNC = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "aof_last_write_status")
_ALSO_CALLED = {
    "version": "redis_version",
    "replicas": "connected_slaves",
    "appendonly": "aof_enabled",
    "maxmemory-policy": "maxmemory_policy",
}


class Check(NamedTuple):
    name: str
    found: str
    fine: bool = True
    wanted: str | None = None
    why: str | None = None
    mend: str | None = None
    warning: bool = False
    """Worth a look, and nothing that falls short."""


class Diagnosis(NamedTuple):
    """What was looked at, and whether all of it is as it should be."""

    subject: str
    checks: list[Check]

    @property
    def fine(self) -> bool:
        return all(check.fine for check in self.checks)


@click.command()
@url_option()
@redis_url_option()
@setting_option("AUDIT_STREAM_CHAIN")
@setting_option("AUDIT_STREAM_ACK")
@setting_option("AUDIT_STREAM_TRUST_REDIS")
@json_option
@click.pass_context
def doctor(
    ctx: click.Context,
    url: str,
    redis_url: str | None,
    chain: str,
    ack: Ack,
    trust_redis: frozenset[str] | None,
    as_json: bool,
) -> int:
    """Say what falls short of the promise, and how to mend it.

    Exit code: 0 all is fine, 1 something falls short, 2 could not tell. A server says whether it is
    ready; with --redis-url each setting of Redis is looked at, and the chain in it. Nothing is changed.
    The chain is not verified here: the last verdict of a server is told.
    """
    choose_one(ctx, "url", "redis_url")
    try:
        if redis_url:
            settings = Settings(data_dir=Path(), redis_url=redis_url, ack=ack, trust_redis=trust_redis or frozenset())
            diagnosis = with_stream(redis_url, chain, lambda stream: _of_redis(stream, settings))
        else:
            diagnosis = _of_server(url)
    except Exception as error:
        tell(f"cannot tell: {words_of(error)}")
        return CANNOT_TELL
    with until_reader_leaves():
        if wants_json(as_json):
            checks = [check._asdict() for check in diagnosis.checks]
            body = {"fine": diagnosis.fine, "subject": diagnosis.subject, "checks": checks}
            write_lines([msgspec.json.encode(body)])
        else:
            _print(diagnosis)
    return FINE if diagnosis.fine else FALLS_SHORT


# --- a server


def _of_server(url: str) -> Diagnosis:
    from audit_stream.cli.remote import Remote

    with Remote(url) as remote:
        try:
            remote.get("readyz")
            checks = [Check("ready", "yes")]
        except Failed as failed:
            reasons = failed.problem.get("reasons")
            if not reasons:
                raise
            checks = [Check("ready", "no", False, "yes", str(reason)) for reason in reasons]
        try:
            found = remote.get("stats").json()
        except Failed:
            if checks[0].fine:
                raise
            return Diagnosis(remote.url, checks)  # Redis cannot be asked, and why stands there already
    trouble = found["index_trouble"]
    checks += [
        Check("redis", str(found["redis"])),
        Check("a 201 means", str(found["ack"])),
        Check("chain", f"{found['chain']}, {found['count']:,} events"),
        Check("head", _head(found["last_event_id"], found["latest_hash"])),
        last_verdict(found.get("last_verdict")),
        Check("indexes", "in trouble", False, "no trouble", str(trouble), "Run audit-stream reindex.")
        if trouble
        else Check("indexes", "no trouble"),
    ]
    checks += _capacity_of_server(found)
    if pin := found.get("pin"):
        mend = "Look at the disk that AUDIT_STREAM_PIN names; appends go on meanwhile."
        checks.append(
            Check("pin", "stands still", False, "moving", str(pin["trouble"]), mend)
            if pin["trouble"]
            else Check("pin", _head(pin["event_id"], pin["hash"]) if pin["event_id"] else "nothing yet")
        )
    return Diagnosis(remote.url, checks)


# --- a Redis


async def _of_redis(stream: "Stream", settings: Settings) -> Diagnosis:
    from audit_stream.promise import describe
    from audit_stream.spine import findings_on

    facts, ack = await stream.facts(), settings.ack
    findings = {finding.setting: finding for finding in findings_on(facts, settings)}
    names = (*_ALWAYS, *_FOR_FSYNC) if ack.fsync else _ALWAYS
    checks = [_setting(name, facts, findings.pop(name, None)) for name in names]
    # A finding of a name that is not listed above is still a finding.
    checks += [_setting(name, facts, finding) for name, finding in findings.items()]
    subject = f"{describe(facts)}, for a 201 that means {ack}"
    checks += [*await _chain(stream), *await _capacity_of_redis(stream, facts), await _kept_verdict(stream)]
    return Diagnosis(subject, checks)


def _setting(name: str, facts: "Mapping[str, str]", finding: "Finding | None") -> Check:
    if finding:
        # A failover may never come: it is for the operator to decide about beforehand.
        warning = name == "failover"
        return Check(name, finding.found, warning, finding.wanted, finding.why, finding.mend, warning)
    return Check(name, facts.get(name, facts.get(_ALSO_CALLED.get(name, ""), "as by default")))


async def _chain(stream: "Stream") -> list[Check]:
    key = stream.keys.events.decode()
    checks = [await _dry_run(stream)]
    try:
        kind = await stream.type_of(stream.keys.events)
        if kind not in ("none", "stream"):
            mend = "Choose another chain with AUDIT_STREAM_CHAIN, or remove the key."
            return [*checks, Check(key, f"a {kind}", False, "a stream", "it is not a chain", mend)]
        checks.append(Check(key, "not there yet" if kind == "none" else "a stream"))
        (await stream.page(0, count=1)).unbroken()
        head = await stream.head()
        checks.append(Check("head", _head(head.event_id, head.hash.decode(errors="replace"))))
        end = await stream.end(head.event_id, count=1)
        if end.written > head.event_id:
            why = f"chain ends at event #{head.event_id}, but #{end.written} was written"
            mend = "Restore it, or record the loss: audit-stream accept-loss (docs/operators/lost-tail.md)."
            checks.append(Check("end", "cut", False, "whole", why, mend))
    except Unreachable as error:
        checks.append(Check("chain", "cannot be asked", False, "readable", str(error)))
    except AuditStreamError as error:
        mend = "Find out who changed it: audit-stream verify says where it breaks."
        checks.append(Check("chain", "cannot be read", False, "readable", str(error), mend))
    return checks


async def _dry_run(stream: "Stream") -> Check:
    try:
        if not await stream.runs_scripts():
            return Check("append", "refused", False, "taken", "Redis computes SHA-256 wrong in its scripts")
        await stream.dry_run()
    except ChainBroken as error:
        return Check("append", "refused", False, "taken", str(error), f"{error.advice}.")
    except AuditStreamError as error:
        return Check("append", "refused", False, "taken", str(error))
    return Check("append", "would be taken")


async def _kept_verdict(stream: "Stream") -> Check:
    from audit_stream.server.bodies import LastVerdictBody
    from audit_stream.verdicts import parse_verdict

    key = stream.keys.verdict.decode()
    try:
        text = await stream.kept_verdict.text()
        found = msgspec.to_builtins(LastVerdictBody.of(parse_verdict(text))) if text else None
    except AuditStreamError as error:
        return Check(
            "last verdict", "cannot be read", why=str(error), mend=f"Allow this user GETRANGE on {key}.", warning=True
        )
    except ValueError as error:
        why = f"what {key} holds was not written by a server: {error}"
        return Check("last verdict", "not readable", why=why, mend=_VERIFY, warning=True)
    return last_verdict(found)


# --- the last verdict, wherever it was read

_VERIFY = "Run audit-stream verify."


def last_verdict(found: "Mapping[str, Any] | None") -> Check:
    """Say what was last found, as /stats has it. A break falls short; a verdict that is missing or old is a warning."""
    name = "last verdict"
    if found is None:
        why = "no server has verified this chain: AUDIT_STREAM_VERIFY_EVERY may be off"
        return Check(name, "never verified", wanted="intact", why=why, mend=_VERIFY, warning=True)
    text, age_s = spoken(found)
    if found["valid"] is False:
        mend = "Keep the store and its backups as they are. audit-stream verify shows the break anew."
        return Check(name, text, False, "intact", str(found["reason"]), mend)
    if found["valid"] is None:
        why = "the newest walk could not tell; the server's log says why"
        return Check(name, text, wanted="intact", why=why, mend=_VERIFY, warning=True)
    if age_s > OLD_S:
        why = "no walk has ended for more than a day"
        return Check(name, text, wanted="younger", why=why, mend=_VERIFY, warning=True)
    return Check(name, text)


def _head(event_id: int, hash_: str | None) -> str:
    return f"#{event_id} {hash_}" if event_id else "none, the chain is empty"


# --- how long its memory lasts


def _capacity_of_server(stats: "Mapping[str, Any]") -> list[Check]:
    """What the server says of its Redis; nothing where it does not know, or is an older one."""
    return [_capacity(capacity)] if (capacity := stats.get("capacity")) else []


async def _capacity_of_redis(stream: "Stream", facts: "Mapping[str, str]") -> list[Check]:
    """The same, asked of Redis itself."""
    from audit_stream.capacity import look

    try:
        capacity = await look(stream, facts)
    except AuditStreamError:
        return []  # what is wrong with the chain has a line of its own
    return [_capacity(capacity._asdict())] if capacity else []


def _capacity(capacity: "Mapping[str, Any]") -> Check:
    from audit_stream.capacity import SOON_DAYS

    found, days = in_words.shown(capacity), capacity["days_until_full"]
    if days is None or days >= SOON_DAYS:
        return Check("memory", found)
    why = "a full Redis refuses every append; what is on the chain stays there"
    mend = "Give Redis more memory and raise its maxmemory; docs/operators/sizing.md says what a chain takes."
    return Check("memory", found, False, f"{SOON_DAYS} days or more", why, mend)


# --- for a person


def _print(diagnosis: Diagnosis) -> None:
    out = console()
    out.print(Text(printable(diagnosis.subject), style="bold"))
    width = max(len(check.name) for check in diagnosis.checks)
    for check in diagnosis.checks:
        mark, style = ("✗", "bold red") if not check.fine else ("!", "bold yellow") if check.warning else ("✓", "green")
        out.print(Text.assemble((f"{mark} ", style), (check.name.ljust(width), "dim"), f"  {printable(check.found)}"))
        if check.warning or not check.fine:
            for name, text in (("should be", check.wanted), ("because", check.why), ("mend", check.mend)):
                if text:
                    out.print(Text.assemble((f"{' ' * width}    {name}: ", "dim"), printable(text)))
    short = sum(not check.fine for check in diagnosis.checks)
    if short:
        out.print(Text(f"{short} {'thing falls' if short == 1 else 'things fall'} short", style="bold red"))
    else:
        doubtful = sum(check.warning for check in diagnosis.checks)
        also = f", {doubtful} worth a look" if doubtful else ""
        out.print(Text(f"all is fine{also}", style="bold green"))
