"""deploy/systemd/audit-stream.service: systemd takes it, and it leaves the server what it needs and no more."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from audit_stream.embedded import _STOP_SECONDS as VALKEY_STOPS_S
from audit_stream.server.process import GRACE_S
from audit_stream.settings import Settings
from tests.harness import ROOT

UNIT = ROOT / "deploy/systemd/audit-stream.service"
MOST_EXPOSED = 2.0
"""Of systemd's own scale from 0 to 10; 1.2 when this was written."""

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def lines() -> list[tuple[str, str]]:
    return re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), flags=re.M)


def unit() -> dict[str, str]:
    return dict(lines())


def environment() -> dict[str, str]:
    return dict(value.split("=", 1) for name, value in lines() if name == "Environment")


def test_the_settings_are_ones_that_the_server_takes() -> None:
    settings = Settings.from_env(environment())
    state = Path("/var/lib") / unit()["StateDirectory"]
    assert settings.data_dir == state
    assert settings.pin
    assert settings.pin.parent == state
    assert settings.verify_every
    program, command = unit()["ExecStart"].split()
    assert Path(program).name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert command == "serve"


def test_the_service_outlives_a_redis_that_takes_its_time() -> None:
    assert unit()["Restart"] == "on-failure"
    assert unit()["StartLimitIntervalSec"] == "0"
    assert int(unit()["RestartSec"].removesuffix("s")) >= 1


def test_stopping_leaves_time_for_requests_and_for_the_embedded_valkey() -> None:
    assert unit()["KillSignal"] == "SIGTERM"
    # Else Valkey would be told to end while the last append is on its way to it.
    assert unit()["KillMode"] == "mixed"
    assert int(unit()["TimeoutStopSec"].removesuffix("s")) >= GRACE_S + VALKEY_STOPS_S


def test_the_service_is_no_one_in_particular_and_may_do_nothing_in_particular() -> None:
    wanted = {
        "DynamicUser": "yes",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
        "MemoryDenyWriteExecute": "yes",
        "UMask": "0077",
    }
    assert {name: unit().get(name) for name in wanted} == wanted
    assert [value for name, value in lines() if name == "SystemCallFilter"] == [
        "@system-service",
        "~@privileged @resources",
    ]


@needs_systemd
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    # Where the unit looks for the program, this machine has none.
    there = UNIT.read_text().replace(unit()["ExecStart"].split()[0], "/bin/true")
    (tmp_path / UNIT.name).write_text(there)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in checked.stderr.splitlines() if UNIT.name in line] == []
    assert checked.returncode == 0, checked.stderr


@needs_systemd
def test_systemd_calls_the_service_hardly_exposed() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--json=short", str(UNIT)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in checked.stderr:
        pytest.skip("this systemd-analyze is older than 250 and looks at running services alone")
    exposed = {item["name"]: float(item["exposure"]) for item in json.loads(checked.stdout) if item["exposure"]}
    named = subprocess.run([*command[:3], str(UNIT)], capture_output=True, text=True, check=False)
    (score,) = re.findall(r"exposure level for audit-stream.service: ([\d.]+)", named.stdout)
    assert float(score) <= MOST_EXPOSED, exposed
