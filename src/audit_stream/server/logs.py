"""The server's log on standard error: JSON lines, or text for a person at a terminal.

Every module logs through the standard library, uvicorn and redis-py too; structlog gives all of it one form.
Payloads and headers are never logged, and tracebacks show no variables.
"""

import logging
import os
import sys
from typing import TextIO

import structlog
from structlog.types import EventDict, Processor

from audit_stream.server.requests import current_request
from audit_stream.settings import LogForm, LogLevel


def set_up_logs(form: LogForm, level: LogLevel, stream: TextIO | None = None) -> None:
    """Send everything that is logged from `level` up to `stream`."""
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    handler.setFormatter(_formatter(text=is_text(form, stream), colors=colors))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def is_text(form: LogForm, stream: TextIO) -> bool:
    return form == "text" or (form == "auto" and stream.isatty())


def json_line(log: logging.Logger, message: str, **members: str) -> str:
    """Return what the log has as a line of JSON, for a line that is printed whatever the level of the log is."""
    record = log.makeRecord(log.name, logging.INFO, "", 0, message, (), None, extra=members)
    return _formatter(text=False).format(record)


def _formatter(*, text: bool, colors: bool = False) -> logging.Formatter:
    about: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _of_request,
    ]
    if text:
        # Its own choice of tracebacks shows variables where rich is installed, and a variable may be a payload.
        plain = structlog.dev.plain_traceback
        form_of: list[Processor] = [_printable, structlog.dev.ConsoleRenderer(colors, exception_formatter=plain)]
    else:
        form_of = [_of_process, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=about,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *form_of],
    )


def _of_request(_logger: object, _method: str, entry: EventDict) -> EventDict:
    if (request_id := current_request.get(None)) is not None:
        entry["request_id"] = request_id.decode()
    entry.pop("color_message", None)  # uvicorn says it twice
    return entry


def _of_process(_logger: object, _method: str, entry: EventDict) -> EventDict:
    entry["pid"] = os.getpid()  # of the worker
    return entry


def _printable(_logger: object, _method: str, entry: EventDict) -> EventDict:
    """What a client sent could otherwise move the cursor of whoever reads it."""
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in value)
    return entry
