"""The alert rules and the dashboard ask for metrics, labels and values that exist."""

import json
import re
import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from audit_stream.capacity import SOON_DAYS
from audit_stream.settings import VARIABLES
from audit_stream.tally import FAILURES
from tests.harness import ROOT

RULES = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboard.json"
SCRAPED = {"job", "instance", "le"}
"""Labels that Prometheus itself adds."""


@cache
def served() -> dict[str, set[str]]:
    """Each time series of /metrics and its labels, as the docs have it; they are compared with a server elsewhere."""
    rows = re.findall(
        r"^\| `(\w+)(?:\{(.*?)\})?` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text(), flags=re.MULTILINE
    )
    return {
        f"{name}{suffix}": set(filter(None, labels.split(",")))
        for name, labels, type_ in rows
        for suffix in (["_bucket", "_sum", "_count"] if type_ == "histogram" else [""])
    }


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[Any]:
    shown = [
        (f"{panel['title']} {target['refId']}", target["expr"]) for panel in panels() for target in panel["targets"]
    ]
    return [pytest.param(asked, id=name) for name, asked in [*((r["alert"], r["expr"]) for r in rules()), *shown]]


@pytest.mark.parametrize("expression", expressions())
def test_a_query_names_only_what_is_served(expression: str) -> None:
    named = re.findall(r"(audit_stream_\w+)(?:\{([^}]*)\})?", expression)
    assert named
    assert {name for name, _ in named} <= set(served())
    labels = set().union(*(served()[name] for name, _ in named)) | SCRAPED
    matched = {match for _, matchers in named for match in re.findall(r"(\w+)\s*[=!]", matchers)}
    grouped = {label.strip() for group in re.findall(r"by \((.*?)\)", expression) for label in group.split(",")}
    assert matched | grouped <= labels
    assert set(re.findall(r'reason!?="(\w+)"', expression)) <= set(FAILURES)
    assert expression.count("(") == expression.count(")")
    if "histogram_quantile" in expression:
        assert "le" in grouped  # without it there is nothing to take a quantile of


def test_every_setting_that_is_named_exists() -> None:
    text = (ROOT / "docs/metrics.md").read_text() + RULES.read_text()
    named = set(re.findall(r"\bAUDIT_STREAM_[A-Z_]+\b", text))
    assert {"AUDIT_STREAM_VERIFY_EVERY", "AUDIT_STREAM_LOG"} <= named <= set(VARIABLES)


def test_the_alert_that_matters_fires_on_a_broken_chain_at_once() -> None:
    (broken,) = [rule for rule in rules() if rule["alert"] == "AuditChainBroken"]
    assert broken["expr"] == "min(audit_stream_chain_valid) == 0"
    assert "for" not in broken
    assert broken["labels"]["severity"] == "critical"


def test_a_redis_that_fills_is_told_of_as_early_as_doctor_tells_it() -> None:
    (full,) = [rule for rule in rules() if rule["alert"] == "AuditRedisFullSoon"]
    assert full["expr"] == f"min(audit_stream_days_until_full) < {SOON_DAYS}"
    (shown,) = [panel for panel in panels() if panel["title"] == "Redis full in"]
    red, orange, _ = shown["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert (red["color"], red["value"], orange["value"]) == ("red", None, SOON_DAYS)


def test_each_alert_says_how_bad_it_is_and_what_it_means() -> None:
    assert [rule["alert"] for rule in rules() if rule["labels"]["severity"] not in ("critical", "warning")] == []
    assert [rule["alert"] for rule in rules() if not rule["annotations"]["summary"]] == []
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_a_chain_that_nobody_can_tell_of_is_shown_neither_green_nor_red() -> None:
    (chain,) = [panel for panel in panels() if panel["title"] == "Chain"]
    defaults = chain["fieldConfig"]["defaults"]
    assert defaults["noValue"] == "cannot tell"
    colours = {text: shown["color"] for text, shown in defaults["mappings"][0]["options"].items()}
    assert colours == {"0": "red", "1": "green"}
    assert [step["color"] for step in defaults["thresholds"]["steps"]] == ["#808080"]


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool, which comes with Prometheus, is not installed")
def test_prometheus_takes_the_rules() -> None:
    checked = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
