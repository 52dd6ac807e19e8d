"""audit-stream serve."""

import os
import signal
import sys
from collections import defaultdict
from typing import Any

import rich_click as click
from rich.text import Text

from audit_stream.cli.output import console, printable
from audit_stream.errors import Misconfigured
from audit_stream.settings import VARIABLES


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _settings_options(command: Any) -> Any:
    """One flag for each setting, said in the words of `settings`."""
    names = defaultdict(list)
    for name, variable in VARIABLES.items():
        names[variable.field].append(name)
    for field, aliases in reversed(names.items()):
        variable = VARIABLES[aliases[0]]
        text = f"{variable.help}\n\n{' or '.join(aliases)}, default: {variable.default or 'none'}"
        metavar = "N" if field.endswith("_per_second") else field.rpartition("_")[2].upper()
        command = click.option(_flag(field), metavar=metavar, help=text)(command)
    return command


@click.command()
@_settings_options
@click.option("--workers", metavar="N", type=click.IntRange(min=1), default=1, help="server processes, default: 1")
def serve(workers: int, **flags: str | None) -> int:
    """Run the server.

    Each setting is an environment variable; a flag overrides it.
    """
    from audit_stream.server.run import serve as run

    given = {
        name: flags[variable.field] or ""
        for name, variable in reversed(VARIABLES.items())
        if flags[variable.field] is not None
    }
    # uvicorn raises the signal again once it has stopped. As an exception it lets the embedded Valkey be
    # stopped in good order, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        return run({**os.environ, **given}, workers=workers, say=_say)
    except Misconfigured as error:
        message = str(error)
        for name in given:
            if message.startswith(f"{name}:"):
                message = message.replace(name, _flag(VARIABLES[name].field), 1)
        raise Misconfigured(message) from error
    except KeyboardInterrupt:
        return 0


def _say(ready: str) -> None:
    if not sys.stdout.isatty():
        print(ready, flush=True)
        return
    what, *rest = printable(ready).split(" · ")
    name, _, url = what.rpartition(" ")
    out = console()
    out.print(Text.assemble((name, "bold"), " ", (url, "bold underline green")))
    for part in rest:
        out.print(Text(f"  {part}", style="dim"))
    out.print(Text("  Ctrl-C stops it", style="dim"))
