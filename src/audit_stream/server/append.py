"""The write side: POST /events and POST /events/batch.

Both answer on ASGI itself, without Litestar's Request and Response: on the routes that every producer
waits for, those cost half of the throughput. See also express.py.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, cast

from litestar.types import ASGIApp, Receive, Scope, Send

from audit_stream.cloudevents import from_json
from audit_stream.cloudevents import to_json as to_cloudevent
from audit_stream.cloudevents import to_json_array as to_cloudevents
from audit_stream.decoding import decode_batch, line_of, read
from audit_stream.errors import Refused, TooLarge, place_in_batch
from audit_stream.event import MAX_KEY_LENGTH, Draft, to_json, to_json_array
from audit_stream.server.cloudevents import BATCH, BINARY, STRUCTURED, Mode, mode_of, over_limit, read_one, wants
from audit_stream.server.grants import may_write
from audit_stream.server.problems import Unsupported, failure
from audit_stream.settings import Settings
from audit_stream.spine import Spine
from audit_stream.submission import Receipt

BATCH_EVENTS = 2_000
BATCH_BYTES = 4 * 1024 * 1024
TURN_EVENTS = 64
"""After so many the others have their turn: half a millisecond's work, and Redis may have answered by then."""
TURN_BYTES = 64 * 1024
"""Or after so many bytes: up to 10 ms' work, if they are all brackets."""

Answer = Callable[[Scope, Receive, Send], Awaitable[None]]


def answered_by(answer: Answer) -> Callable[[ASGIApp], ASGIApp]:
    """Middleware for a handler that only describes its route: `answer` takes the request instead."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await answer(scope, receive, send)
        except Exception as error:
            scope["litestar_app"].state.spine.tally.failed(failure(error))
            raise

    def middleware(app: ASGIApp) -> ASGIApp:
        return counted

    return middleware


async def append_one(scope: Scope, receive: Receive, send: Send) -> None:
    spine: Spine = scope["litestar_app"].state.spine
    headers, mode = _interesting(scope)
    if mode == "batch":
        await append_batch(scope, receive, send)
        return
    body = await _read(receive, headers, spine.settings.max_event_bytes, "an event")
    if body is None:
        return
    began = perf_counter()
    if mode:
        made = read_one(mode, scope["headers"], body, spine.settings)
    else:
        made = read(body, spine.settings.kind_set, once=headers.get(b"idempotency-key"))
    may_write(scope, (made,))
    if spine.sources and (unseen := spine.sources.unseen((made,))):
        await spine.sources.admit(unseen, (made,))
    receipts = await spine.appender.append((made,))
    spine.tally.append_seconds.observe(perf_counter() - began)
    event = receipts[0].event
    location = (b"location", b"/events/%d" % event.event_id)
    if wants(headers, STRUCTURED):
        await _answer(send, receipts, to_cloudevent(event), [location], STRUCTURED.encode())
    else:
        await _answer(send, receipts, to_json(event), [location])


async def append_batch(scope: Scope, receive: Receive, send: Send) -> None:
    spine: Spine = scope["litestar_app"].state.spine
    headers, mode = _interesting(scope)
    body = await _read(receive, headers, BATCH_BYTES, "a batch")
    if body is None:
        return
    began = perf_counter()
    if mode == "binary":
        drafts = [read_one(mode, scope["headers"], body, spine.settings)]
    else:
        drafts = await _drafts(body, headers, mode, spine.settings)
    may_write(scope, drafts, batch=True)
    if spine.sources and (unseen := spine.sources.unseen(drafts)):
        await spine.sources.admit(unseen, drafts, batch=True)
    receipts = await spine.appender.append(drafts)
    spine.tally.append_seconds.observe(perf_counter() - began)
    events = [receipt.event for receipt in receipts]
    if wants(headers, BATCH):
        await _answer(send, receipts, to_cloudevents(events), [], BATCH.encode())
    else:
        await _answer(send, receipts, to_json_array(events), [])


async def _drafts(body: bytes, headers: dict[bytes, str], mode: Mode | None, settings: Settings) -> list[Draft]:
    content_type = headers.get(b"content-type", "").lower()
    lines = "ndjson" in content_type or "jsonl" in content_type
    if not lines and "json" not in content_type:
        lines = not body.lstrip().startswith(b"[")
    texts = [body] if mode == "structured" else decode_batch(body, lines=lines)
    if not texts:
        raise Refused("the batch is empty")
    if len(texts) > BATCH_EVENTS:
        raise TooLarge(f"a batch of {len(texts)} events is over the limit of {BATCH_EVENTS}; send it in parts")
    key = headers.get(b"idempotency-key")
    drafts = []
    events, size_bytes = 0, len(body)  # splitting it took its time as well
    for index, text in enumerate(texts):
        if events == TURN_EVENTS or size_bytes >= TURN_BYTES:
            await asyncio.sleep(0)
            events = size_bytes = 0
        events += 1
        size_bytes += len(text)
        if len(text) > settings.max_event_bytes:
            place = place_in_batch(index, line_of(body, index) if lines else None)
            raise TooLarge(over_limit(place, settings.max_event_bytes), index=index)
        try:
            if mode:
                drafts.append(from_json(text, settings.kind_set))
            else:
                # One key for the whole batch stands for one key an event.
                drafts.append(read(text, settings.kind_set, key=None if key is None else f"{key}:{index}"))
        except Refused as refused:
            raise refused.within_batch(index, line_of(body, index) if lines else None) from refused
    return drafts


async def _answer(
    send: Send,
    receipts: list[Receipt],
    body: bytes,
    headers: list[tuple[bytes, bytes]],
    media_type: bytes = b"application/json",
) -> None:
    status = 201
    if all(receipt.replayed for receipt in receipts):
        status = 200
        headers.append((b"idempotent-replayed", b"true"))
    headers += ((b"content-type", media_type), (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


# --- the request

_WANTED = BINARY | {b"content-type", b"content-length", b"idempotency-key", b"accept"}

# A web page may send these, and a body whose type is missing or cannot be read, to any server without asking first; on
# a laptop that includes this one. For any other type its browser asks (WHATWG Fetch, "CORS-safelisted request-header").
_ANY_PAGE_MAY_SEND = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+/[a-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 §8.3.1, in lower case


def _interesting(scope: Scope) -> tuple[dict[bytes, str], Mode | None]:
    """The headers that decide something, and how they say that this is a CloudEvent, if they do."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _WANTED}
    if b"idempotency-key" in headers:
        headers[b"idempotency-key"] = _idempotency_key(headers[b"idempotency-key"])
    content_type = headers.get(b"content-type", "")
    if content_type == "application/json" and BINARY.isdisjoint(headers):
        return headers, None  # what nearly every producer sends needs no second look
    mode = mode_of(content_type, headers)
    # A browser asks first for the headers of a binary CloudEvent as well, which without data need no type.
    media_type = content_type.partition(";")[0].strip().lower()
    readable = _MEDIA_TYPE.fullmatch(media_type) or (mode == "binary" and not content_type)
    if media_type in _ANY_PAGE_MAY_SEND or not readable:
        found = repr(content_type[:80]) if content_type else "missing"
        raise Unsupported(
            f"Content-Type is {found}: send the body with Content-Type: application/json,"
            " or application/x-ndjson for a batch of lines"
        )
    if mode and b"idempotency-key" in headers:
        raise Refused(
            "Idempotency-Key: the source and id of a CloudEvent are its idempotency key; leave the header out",
            field="idempotency_key",
        )
    return headers, mode


def _idempotency_key(text: str) -> str:
    """Read the header: a quoted string (RFC 8941 §3.3.3), or the bare key that many clients send."""
    key = text.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise Refused(
            f"Idempotency-Key: 1 to {MAX_KEY_LENGTH} printable ASCII characters, in quotes or without",
            field="idempotency_key",
        )
    return key


async def _read(receive: Receive, headers: dict[bytes, str], limit: int, what: str) -> bytes | None:
    """Return the body; None when the client went away before its end, so that nothing is written."""
    if int(headers.get(b"content-length", "0")) > limit:
        raise TooLarge(over_limit(what, limit))
    body = b""
    while True:
        message = cast("dict[str, Any]", await receive())
        if message["type"] == "http.disconnect":
            return None
        body += cast("bytes", message.get("body", b""))
        if len(body) > limit:
            raise TooLarge(over_limit(what, limit))
        if not message.get("more_body"):
            return body
