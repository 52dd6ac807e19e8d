"""audit-stream stats."""

from typing import Any

import rich_click as click
from rich.text import Text

from audit_stream.cli.options import json_option, url_option
from audit_stream.cli.output import console, print_facts, printable, spoken, wants_json, write_lines


@click.command()
@url_option()
@json_option
def stats(url: str, as_json: bool) -> None:
    """Count, head and promise of the chain."""
    from audit_stream.cli.remote import Remote

    with Remote(url) as remote:
        answer = remote.get("stats")
    if wants_json(as_json):
        write_lines([answer.content])
        return
    found = answer.json()
    facts: list[tuple[str, str | Text]] = [
        ("last verdict", shown(found.get("last_verdict"))),
        ("chain", str(found["chain"])),
        ("events", f"{found['count']:,}"),
        ("head", f"#{found['last_event_id']}"),
        ("hash", found["latest_hash"] or "none yet"),
        ("a 201 means", str(found["ack"])),
        ("hashing", str(found["hashing"])),
        ("redis", f"{found['redis']}, {_replicas(found.get('replicas', 0))} connected"),
        *([("pin", _pin(pin))] if (pin := found.get("pin")) else []),
        ("open streams", str(found["subscribers"])),
        ("batches", f"{found['batches']:,}, {found['lost_races']:,} races lost"),
        ("indexes", found["index_trouble"] or "no trouble"),
    ]
    print_facts(console(), facts)


def shown(last: dict[str, Any] | None) -> Text:
    """The last verdict, red when it is a break: `BROKEN at #1500, found 3 min ago (2026-05-15T…): why`."""
    text, _ = spoken(last)
    if last is None:
        return Text(text, style="yellow")
    because = f": {printable(last['reason'])}" if last["valid"] is False else ""
    style = {True: "green", False: "bold red", None: "yellow"}[last["valid"]]
    return Text(f"{text} ({last['at']}){because}", style=style)


def _replicas(count: int) -> str:
    return f"{count} replica{'' if count == 1 else 's'}"


def _pin(pin: dict[str, Any]) -> str:
    newest = f"#{pin['event_id']}" if pin["event_id"] else "nothing yet"
    return f"{newest}, cannot be moved: {pin['trouble']}" if pin["trouble"] else newest
