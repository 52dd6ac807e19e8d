"""The kinds of governance event, and how a deployment adds its own."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal, get_args

from audit_stream.errors import Misconfigured

EventKind = Literal[
    "decision_card_drafted",
    "decision_card_signed",
    "decision_card_status_changed",
    "policy_bundle_registered",
    "request_allowed",
    "request_denied",
    "contract_promoted",
    "contract_deprecated",
    "contract_compatibility_failed",
    "watch_created",
    "watch_drifted",
    "watch_validity_flipped",
    "incident_filed",
    "remediation_planned",
    "attestation_verified",
    "attestation_tampered",
    "flag_swapped",
    "shadow_divergence_recorded",
    "tool_invocation_allowed",
    "tool_invocation_denied",
    "tool_invocation_required_approval",
    "other",
]

BUILT_IN: tuple[str, ...] = get_args(EventKind)

# A kind stands in Redis keys, in SSE `event:` lines and unescaped in the hash preimage.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

_SHOWN = 64


def with_extra(extra: Iterable[str]) -> tuple[str, ...]:
    """The built-in kinds followed by a deployment's own, each once.

    Raises Misconfigured for a name that is not lower-case letters, digits and `_`.
    """
    for name in extra:
        if not _NAME.fullmatch(name):
            raise Misconfigured(
                f"AUDIT_STREAM_KINDS: {name!r} is no kind; use lower-case letters, digits and _,"
                " starting with a letter, 64 at most"
            )
    return tuple(dict.fromkeys((*BUILT_IN, *extra)))


def unknown_kind(kind: str, kinds: Iterable[str]) -> str:
    """Say that there is no such kind, and which one is spelt nearly the same."""
    shown = kind[:_SHOWN]
    if near := get_close_matches(shown, list(kinds), n=1, cutoff=0.7):
        return f"kind: {shown!r} is not a kind; did you mean {near[0]!r}? GET / lists them"
    return f"kind: {shown!r} is not a kind; GET / lists them, and AUDIT_STREAM_KINDS adds a deployment's own"
