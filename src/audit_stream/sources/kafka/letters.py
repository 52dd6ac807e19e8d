"""A dead letter: a record that never becomes an event, whole, with the reason; and the record made of it again.

connect   key and value as they were, the original headers, then Kafka Connect's `__connect.errors.*`
json      the same headers, and as the value {"original_topic", "original_event", "error", "timestamp"}
"""

from base64 import b64decode, b64encode
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec

from audit_stream.sources.kafka.records import ORIGIN, Header, Record
from audit_stream.sources.kafka.settings import DlqFormat

_ERRORS = "__connect.errors."
TOPIC, PARTITION, OFFSET = f"{_ERRORS}topic", f"{_ERRORS}partition", f"{_ERRORS}offset"
GROUP = f"{_ERRORS}connector.name"
MESSAGE = f"{_ERRORS}exception.message"
WRITTEN_AT = "audit-stream.timestamp"
"""The record's own time, in ms. The dead letter's is that of its writing, so that it is kept as long as any other."""
FORMAT = "audit-stream.dlq.format"

# Where in Connect's pipeline it would have failed.
_STAGES = {"decoding": ("VALUE_CONVERTER", "Unusable"), "appending": ("TASK_PUT", "Refused")}


class Letter(NamedTuple):
    record: Record
    reason: str
    step: Literal["decoding", "appending"]


class Original(NamedTuple):
    """A record as it is put back."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[Header]
    timestamp_ms: int | None
    reason: str


class _Envelope(msgspec.Struct, omit_defaults=True):
    original_topic: str
    original_event: msgspec.Raw
    error: str = ""
    timestamp: str = ""
    original_event_encoding: Literal["json", "text", "base64"] = "json"
    """How bytes that are no JSON object were put into it."""


def headers_of(letter: Letter, *, group: str, cluster: str, dlq_format: DlqFormat) -> list[Header]:
    record = letter.record
    stage, error = _STAGES[letter.step]
    added: dict[str, str] = {
        TOPIC: record.topic,
        PARTITION: str(record.partition),
        OFFSET: str(record.offset),
        GROUP: group,
        f"{_ERRORS}task.id": "0",
        f"{_ERRORS}stage": stage,
        f"{_ERRORS}class.name": "audit_stream.sources.kafka",
        f"{_ERRORS}exception.class.name": error,
        MESSAGE: letter.reason,
        ORIGIN: record.origin(cluster),
        FORMAT: dlq_format,
    }
    if record.timestamp_ms is not None:
        added[WRITTEN_AT] = str(record.timestamp_ms)
    return [*record.headers, *((name, value.encode()) for name, value in added.items())]


def value_of(letter: Letter, dlq_format: DlqFormat) -> bytes | None:
    record = letter.record
    if dlq_format == "connect":
        return record.value
    event, encoding = _embedded(record.value)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return msgspec.json.encode(_Envelope(record.topic, msgspec.Raw(event), letter.reason, now, encoding))


def _embedded(value: bytes | None) -> tuple[bytes, Literal["json", "text", "base64"]]:
    if value is None:
        return b"null", "json"
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        msgspec.json.decode(value, type=dict[str, msgspec.Raw])
        value.decode()
        return value, "json"
    with suppress(UnicodeDecodeError):
        return msgspec.json.encode(value.decode()), "text"
    return msgspec.json.encode(b64encode(value).decode()), "base64"


def place_of(record: Record) -> tuple[str, str, int, int] | None:
    """(group, topic, partition, offset) of the record that this dead letter is; None when it is no dead letter."""
    said = _said(record)
    try:
        return said[GROUP], said[TOPIC], int(said[PARTITION]), int(said[OFFSET])
    except (KeyError, ValueError):
        return None


def original(record: Record) -> Original:
    """Read a dead letter, also another consumer's. Raises ValueError when it does not say where it is from."""
    said = _said(record)
    headers = record.headers
    if TOPIC in said:
        ours = max(at for at, (name, _) in enumerate(headers) if name == TOPIC)
        headers = [*headers[:ours]]
    value, topic, reason = record.value, said.get(TOPIC), said.get(MESSAGE, "")
    if said.get(FORMAT) == "json" or topic is None:
        try:
            envelope = msgspec.json.decode(value or b"", type=_Envelope)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{record.place} is no dead letter: {error}") from error
        value, topic, reason = _taken_out(envelope), envelope.original_topic, envelope.error
    # Put back, it is still the record that it was: under the same key, at the same time.
    if origin := said.get(ORIGIN):
        headers = [*(header for header in headers if header[0] != ORIGIN), (ORIGIN, origin.encode())]
    at_ms = said.get(WRITTEN_AT, "")
    return Original(topic, record.key, value, headers, int(at_ms) if at_ms.isdecimal() else None, reason)


def _taken_out(envelope: _Envelope) -> bytes | None:
    event = bytes(envelope.original_event)
    if envelope.original_event_encoding == "json":
        return None if event == b"null" else event
    text = msgspec.json.decode(event, type=str)
    return text.encode() if envelope.original_event_encoding == "text" else b64decode(text)


def _said(record: Record) -> dict[str, str]:
    # The last of each: a record may have been a dead letter before.
    return {name: value.decode(errors="replace") for name, value in record.headers if value is not None}
