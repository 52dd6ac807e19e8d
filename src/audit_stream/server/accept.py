"""Which media type a client wants."""

import re
from collections.abc import Sequence

from audit_stream.server.problems import AnyRequest, NotAcceptable


def negotiated(request: AnyRequest, offered: Sequence[str]) -> str:
    """The offered media type that the request likes best. Raises NotAcceptable, naming what there is."""
    accept = ", ".join(request.headers.getall("accept", []))
    found = preferred(accept, offered)
    if found is None:
        raise NotAcceptable(f"Accept: {accept[:200]!r} takes none of {', '.join(offered)}")
    return found


def preferred(accept: str, offered: Sequence[str]) -> str | None:
    """Choose by an Accept header (RFC 9110 §12.5.1); None when it takes none of the offered.

    Of equal quality, what is named wins over a wildcard, then what the header names first, then what
    is offered first.
    """
    ranges = [_range(text) for text in accept.split(",") if text.strip()]
    if not ranges:
        return offered[0]
    best, best_rank = None, (0.0, 0, 0)
    for media_type in offered:
        fits = [
            (specificity, -place, quality)
            for place, (pattern, specificity, quality) in enumerate(ranges)
            if pattern in (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
        ]
        # The most specific range that fits decides about a type, whatever the others say.
        specificity, place, quality = max(fits, default=(0, 0, 0.0))
        if quality > 0 and (best is None or (quality, specificity, place) > best_rank):
            best, best_rank = media_type, (quality, specificity, place)
    return best


def _range(text: str) -> tuple[str, int, float]:
    """Media range, how specific it is, and its quality."""
    pattern, *parameters = (part.strip().lower() for part in text.split(";"))
    specificity = 0 if pattern == "*/*" else 1 if pattern.endswith("/*") else 2
    for parameter in parameters:
        if match := re.fullmatch(r"q\s*=\s*(0(?:\.\d*)?|1(?:\.0*)?)", parameter):
            return pattern, specificity, float(match.group(1))
    return pattern, specificity, 1.0
