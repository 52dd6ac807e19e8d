"""The sinks that the settings name."""

from collections.abc import Callable
from typing import Any

from audit_stream.chain import Event
from audit_stream.sinks import jsonl, purview, trust
from audit_stream.sinks.folder import FolderSink, Layout, Line
from audit_stream.sinks.lines import line_of
from audit_stream.sinks.record import Record, day_in, record_of
from audit_stream.sinks.settings import SinkSettings
from audit_stream.sinks.sink import Name, Sink

Shape = Callable[[Record], dict[str, Any] | None]


def sinks_of(settings: SinkSettings) -> list[Sink]:
    return [_sink(name, settings) for name in settings.sinks]


def _sink(name: Name, settings: SinkSettings) -> Sink:
    if name == "postgres":
        from audit_stream.sinks.postgres.table import TableSink

        return TableSink(settings.database_url, settings.tenant_id)
    return FolderSink(name, _layout(name, settings))


def _layout(name: Name, settings: SinkSettings) -> Layout:
    folder, pack = settings.log_dir / name, settings.pack
    if name == "jsonl":
        return Layout(folder, "events", jsonl.line, settings.rotate_bytes, pack)
    # A file is of one shape: each has files and a cursor of its own.
    shapes: dict[purview.Format, tuple[str, Shape]] = {
        "published": ("audit", purview.published),
        "azure": ("azure", purview.azure),
        "o365": ("o365", purview.o365),
    }
    prefix, shape = ("trust", trust.fields) if name == "trust" else shapes[settings.purview_format]

    def line(event: Event) -> Line | None:
        record = record_of(event, settings.tenant_id)
        fields = shape(record)
        return Line(day_in(record.time), line_of(fields)) if fields else None

    return Layout(folder, prefix, line, pack=pack)
