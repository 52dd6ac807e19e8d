"""The sink `jsonl`: the events themselves, as the API answers them. A file rotated by size is evidence as it is:
`audit-stream verify FILE` checks it."""

from audit_stream.chain import Event
from audit_stream.event import to_json
from audit_stream.sinks.folder import Line
from audit_stream.sinks.record import day_in, time_of


def line(event: Event) -> Line:
    return Line(day_in(time_of(event)), to_json(event) + b"\n")
