from typing import get_args

import pytest

from audit_stream.errors import Misconfigured
from audit_stream.kinds import BUILT_IN, EventKind, with_extra

PUBLISHED = [
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


def test_the_built_in_kinds_are_the_22_published_ones_and_no_other() -> None:
    assert sorted(BUILT_IN) == sorted(PUBLISHED)
    assert len(set(BUILT_IN)) == 22
    assert get_args(EventKind) == BUILT_IN


def test_a_deployments_kinds_come_behind_the_built_in_ones_each_once() -> None:
    assert with_extra(()) == BUILT_IN
    assert with_extra(["gate_opened", "other", "gate_opened", "g2"]) == (*BUILT_IN, "gate_opened", "g2")
    assert with_extra(["k" * 64])[-1] == "k" * 64


@pytest.mark.parametrize(
    "name",
    ["", "Gate", "gate-opened", "gate opened", "9lives", "_gate", "gate.x", "gäte", "k" * 65, "a\n", 'a"', "a:b"],
)
def test_a_name_that_is_no_kind_is_refused_by_name(name: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        with_extra(["gate_opened", name])
    assert "AUDIT_STREAM_KINDS" in str(caught.value)
    assert repr(name) in str(caught.value)
