"""audit-stream accept-loss."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.chain import START, Event, Head
from audit_stream.cli.local import with_stream
from audit_stream.cli.options import json_option, redis_url_option
from audit_stream.cli.output import console, facts_table, wants_json, write_lines
from audit_stream.cli.progress import progress
from audit_stream.errors import Misconfigured
from audit_stream.pin import Pin, Pinned, read_pin
from audit_stream.settings import VARIABLES, Settings

if TYPE_CHECKING:
    from audit_stream.loss import Loss
    from audit_stream.stream import Stream

EMPTY = f"{START.event_id}:{START.hash.decode()}"


def _head(_: click.Context, __: click.Parameter, given: str) -> Head:
    if given.strip() == EMPTY:
        return START
    try:
        event_id, hash_ = Pin.parse(given)
    except ValueError as error:
        raise click.BadParameter(f"{error}; for an empty chain 0 and 64 zeros.") from error
    return Head(event_id, hash_.encode())


@click.command("accept-loss")
@click.option(
    "--to",
    metavar="ID:HASH",
    required=True,
    callback=_head,
    help="the head that the chain ends with now; of an empty chain 0 and 64 zeros:\n\n" + EMPTY,
)
@redis_url_option("AUDIT_STREAM_REDIS_URL", "REDIS_URL")
@click.option("--chain", metavar="CHAIN", help="name of the chain\n\nAUDIT_STREAM_CHAIN, default: audit")
@click.option(
    "--data-dir",
    metavar="DIR",
    help="without --redis-url: where the embedded Valkey keeps its data; its server has to be stopped"
    f"\n\nAUDIT_STREAM_DATA_DIR, default: {VARIABLES['AUDIT_STREAM_DATA_DIR'].default}",
)
@click.option(
    "--pin",
    "pin_paths",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="pin file to move, may be given again\n\nAUDIT_STREAM_PIN, default: as of the server",
)
@click.option("--reason", metavar="TEXT", help="what happened and who decided, for those who read the chain")
@click.option("--yes", is_flag=True, help="do not ask")
@json_option
def accept_loss(
    to: Head,
    redis_url: str | None,
    chain: str | None,
    data_dir: str | None,
    pin_paths: tuple[Path, ...],
    reason: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Go on with a chain that has lost acknowledged events.

    The loss is recorded on the chain as an event of kind incident_filed, and the pin files are moved. Servers
    that use one of them go on within a second; those without a pin have to be restarted. Try to restore the events
    first: what is accepted here is lost for good. docs/operators/lost-tail.md goes through it.
    """
    settings = _settings(redis_url, chain, data_dir)
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("--yes is missing: nobody is here to be asked.")
    pins = _pins(pin_paths, settings)
    with _redis(settings) as url:
        loss, recorded = with_stream(
            url, settings.chain, lambda stream: _accept(stream, settings, to, pins, reason, yes)
        )
    _print(loss, recorded, as_json)


def _settings(redis_url: str | None, chain: str | None, data_dir: str | None) -> Settings:
    given = {"AUDIT_STREAM_REDIS_URL": redis_url, "AUDIT_STREAM_CHAIN": chain, "AUDIT_STREAM_DATA_DIR": data_dir}
    return Settings.from_env({**os.environ, **{name: value for name, value in given.items() if value}})


def _pins(paths: tuple[Path, ...], settings: Settings) -> Mapping[Path, Pinned]:
    for path in paths:
        if not path.exists():
            raise Misconfigured(f"--pin: {path} does not exist")
    found = paths or ((settings.pin,) if settings.pin else ())
    return {path: read_pin(path, setting="--pin") for path in found}


@contextmanager
def _redis(settings: Settings) -> Iterator[str]:
    if settings.redis_url:
        yield settings.redis_url
        return
    from audit_stream.embedded import EmbeddedValkey

    if not settings.data_dir.is_dir():
        raise Misconfigured(f"AUDIT_STREAM_DATA_DIR: {settings.data_dir} does not exist; or give --redis-url")
    with EmbeddedValkey(settings.data_dir) as valkey:
        yield valkey.url


async def _accept(
    stream: "Stream", settings: Settings, to: Head, pins: Mapping[Path, Pinned], reason: str | None, yes: bool
) -> "tuple[Loss, Event]":
    from audit_stream.loss import accept_loss as accept
    from audit_stream.loss import find_loss
    from audit_stream.spine import check

    await check(stream, settings)
    loss = await find_loss(stream, to, pins)
    if not yes:
        _show(loss)
        click.confirm("Record the loss on the chain, and go on?", abort=True, err=True)
    with progress("reindexing") as show:
        return loss, await accept(stream, loss, reason, show)


def _show(loss: "Loss") -> None:
    incident, out = loss.incident(), console(stderr=True)
    facts = [
        ("old head", incident.old_head or f"#{incident.lost_to}, known to Redis alone"),
        ("new head", incident.new_head),
        ("lost", _lost(loss)),
        *(("pin", str(path)) for path in loss.pins),
    ]
    if loss.recorded:
        facts.append(("recorded", f"event #{loss.recorded.event_id}, by a run that did not end; the pins are left"))
    out.print(facts_table(facts))


def _lost(loss: "Loss") -> str:
    incident = loss.incident()
    if incident.lost_from is None:
        return f"an unknown number of events up to #{incident.lost_to}: another history has grown in their place"
    count = incident.lost_to - incident.lost_from + 1
    events = f"{count:,} event{'' if count == 1 else 's'}"
    return f"{events}, #{incident.lost_from} to #{incident.lost_to}: their receipts are void"


def _print(loss: "Loss", recorded: Event, as_json: bool) -> None:
    if wants_json(as_json):
        body = {
            "event_id": recorded.event_id,
            "hash": recorded.hash.decode(),
            "incident": msgspec.Raw(recorded.payload),
            "pins": [str(path) for path in loss.pins],
        }
        write_lines([msgspec.json.encode(body)])
        return
    out = console()
    out.print(Text.assemble(("recorded", "bold green"), f"  event #{recorded.event_id}: {_lost(loss)}"))
    for path in loss.pins:
        out.print(Text(f"  {path} pins it now", style="dim"))
    out.print(Text("  Servers that use this pin go on within a second; restart those without a pin.", style="dim"))
    out.print(Text("  For pins on other hosts run the same command there.", style="dim"))
    out.print(Text("  audit-stream verify --deep says whether the chain and its indexes agree.", style="dim"))
