"""audit-stream: the command line. Each verb is a file of its own; what it needs is loaded when it runs."""

import sys
from typing import Any, NoReturn

import rich_click as click

from audit_stream import __version__
from audit_stream.cli.accept_loss import accept_loss
from audit_stream.cli.append import append
from audit_stream.cli.backup import backup
from audit_stream.cli.bus import bus
from audit_stream.cli.completion import completion
from audit_stream.cli.doctor import doctor
from audit_stream.cli.evidence import evidence
from audit_stream.cli.export import export
from audit_stream.cli.failures import Failed
from audit_stream.cli.import_ import import_
from audit_stream.cli.kafka import kafka
from audit_stream.cli.output import complain, tell, until_reader_leaves
from audit_stream.cli.postgres import postgres
from audit_stream.cli.project import project
from audit_stream.cli.query import query
from audit_stream.cli.reindex import reindex
from audit_stream.cli.restore import restore
from audit_stream.cli.serve import serve
from audit_stream.cli.stats import stats
from audit_stream.cli.tail import tail
from audit_stream.cli.token import token
from audit_stream.cli.verify import verify
from audit_stream.errors import AuditStreamError, Misconfigured

USAGE = 2
INTERRUPTED = 130


GROUPS: dict[str, tuple[click.Command, ...]] = {
    "Run": (serve, doctor, stats, backup, restore, reindex, accept_loss, token, completion),
    "Write": (append, import_),
    "Read": (tail, query, export),
    "Prove": (verify, evidence),
    "Connect": (bus, postgres, kafka, project),
}


class Root(click.RichGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are met, not the alphabet's

    def invoke(self, ctx: click.Context) -> Any:
        with until_reader_leaves():
            return super().invoke(ctx)
        return 0


@click.group(cls=Root, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.rich_config(
    {
        "options_table_column_types": ["opt_all_metavar", "help"],
        "command_groups": {
            "audit-stream": [{"name": name, "commands": [str(c.name) for c in group]} for name, group in GROUPS.items()]
        },
    }
)
@click.version_option(__version__, message="audit-stream %(version)s")
@click.pass_context
def root(ctx: click.Context) -> int | None:
    """The shared, append-only, hash-chained log of governance events.

    Without a command it starts the server, as `audit-stream serve` does.
    """
    if ctx.invoked_subcommand is None:
        if sys.stderr.isatty():
            tell("no command was given: starting the server, as `audit-stream serve` does; --help lists the commands")
        code: int = ctx.invoke(serve)
        return code
    return None


for command in (command for group in GROUPS.values() for command in group):
    root.add_command(command)


def main() -> NoReturn:
    try:
        sys.exit(root.main(prog_name="audit-stream", standalone_mode=False) or 0)
    except Failed as failed:
        complain(str(failed))
        sys.exit(failed.exit_code)
    except Misconfigured as error:
        complain(str(error))
        sys.exit(USAGE)
    except AuditStreamError as error:
        complain(str(error))
        sys.exit(1)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "audit-stream"
        complain(f"{error.format_message()} See `{where} --help`.")
        sys.exit(USAGE)
    except click.ClickException as error:
        complain(error.format_message())
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
