"""audit-stream kafka: the topics of a Kafka cluster as a producer."""

import itertools
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click
from rich.text import Text

from audit_stream.cli.daemons import need, run_until_told
from audit_stream.cli.options import json_option
from audit_stream.cli.output import console, printable, wants_json, write_lines
from audit_stream.daemon import log_to_stderr

if TYPE_CHECKING:
    from audit_stream.sources.kafka.letters import Original
    from audit_stream.sources.kafka.records import Record


@click.group(invoke_without_command=True)
@click.option(
    "--dlq-format",
    metavar="FORMAT",
    help="how a dead letter is written: connect (the record itself) or json\n\nKAFKA_DLQ_FORMAT, default: connect",
)
@click.option(
    "--published-defaults",
    is_flag=True,
    help="variables that are not set have the defaults of the published daemon, as for `audit-consumer`",
)
@click.pass_context
def kafka(ctx: click.Context, dlq_format: str | None, published_defaults: bool) -> int | None:
    """Bring the records of Kafka topics to the chain until told to stop (SIGTERM).

    Several may run: they share the partitions. Settings are environment variables: KAFKA_BROKERS, KAFKA_TOPICS,
    KAFKA_GROUP_ID, KAFKA_EVENT_KIND, AUDIT_STREAM_URL and more. With DATABASE_URL or LOG_DIR it also runs the
    projections, as `audit-stream project` does. docs/kafka.md has them all, and the defaults of `audit-consumer`.
    """
    need("kafka", "confluent_kafka")
    given = _published() if published_defaults else {}
    ctx.obj = environ = given | os.environ
    if ctx.invoked_subcommand is not None:
        return None
    from audit_stream.sinks.settings import SinkSettings
    from audit_stream.sources.kafka.consumer import AuditConsumer
    from audit_stream.sources.kafka.settings import KafkaSettings

    settings = KafkaSettings.from_env(environ, dlq_format=dlq_format)
    sinks = SinkSettings.from_env(environ)
    log_to_stderr(settings.log_level)
    if given:
        _announce(given)
    run_until_told(lambda: AuditConsumer(settings, sinks))
    return 0


@kafka.command("replay-dlq")
@click.option("--dry-run", is_flag=True, help="show them, and put nothing back")
@click.option("--all", "all_of_them", is_flag=True, help="also those that were put back before")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="at most N, the oldest first")
@json_option
@click.pass_obj
def replay_dlq(environ: dict[str, str], dry_run: bool, all_of_them: bool, limit: int | None, as_json: bool) -> int:
    """Put dead letters back into their topic, each once, when what was wrong is mended.

    Those of KAFKA_TOPICS that KAFKA_GROUP_ID has not put back before, up to where the DLQ ends now.
    """
    from audit_stream.sources.kafka.replay import dead_letters, put_back
    from audit_stream.sources.kafka.settings import KafkaSettings

    settings = KafkaSettings.from_env(environ)
    log_to_stderr("WARNING")
    letters = itertools.islice(dead_letters(settings, all_of_them=all_of_them), limit)
    if dry_run:
        _show(list(letters), wants_json(as_json))
        return 0
    count = put_back(settings, letters)
    if wants_json(as_json):
        write_lines([msgspec.json.encode({"put_back": count})])
    else:
        console().print(Text.assemble(("put back", "bold green"), f"  {count:,} records"))
    return 0


def _show(letters: list[tuple["Record", "Original"]], as_json: bool) -> None:
    if as_json:
        write_lines(
            msgspec.json.encode(
                {"dlq": record.topic, "offset": record.offset, "topic": letter.topic, "reason": letter.reason}
                | {"value": None if letter.value is None else letter.value.decode(errors="replace")}
            )
            for record, letter in letters
        )
        return
    out = console()
    for record, letter in letters:
        value = "" if letter.value is None else letter.value[:200].decode(errors="replace")
        out.print(
            Text.assemble((f"{record.offset:>6} ", "bold"), (f"{printable(letter.reason)}  ", "red"), printable(value))
        )
    out.print(Text(f"{len(letters):,} dead letters", style="dim"))


def _published() -> dict[str, str]:
    """The published defaults of the variables that are not set; one that is set to nothing is set."""
    from importlib.util import find_spec

    from audit_stream.sources.kafka.settings import PUBLISHED

    given = {name: text for name, text in PUBLISHED.items() if name not in os.environ}
    if not find_spec("psycopg"):
        # Nobody asked for a table: without the driver, the chain and the files go on.
        given.pop("DATABASE_URL", None)
    return given


def _announce(given: dict[str, str]) -> None:
    logging.getLogger("audit_stream.kafka").warning(
        "not set, so the defaults of the published daemon hold: %s. Set a variable to choose, DATABASE_URL= or LOG_DIR="
        " to go without a table or files; `audit-stream kafka` has defaults of its own",
        ", ".join(f"{name}={text}" for name, text in given.items()),
    )


def consumer() -> Any:
    """The console script audit-consumer: `audit-stream kafka` under its published name, with the published defaults."""
    from audit_stream.cli import main

    sys.argv[:1] = [str(Path(sys.argv[0]).with_name("audit-stream")), "kafka", "--published-defaults"]
    main()
