"""deploy/kubernetes/audit-stream.yaml agrees with the server, the image and itself, as far as that shows offline."""

import json
import re
from functools import cache
from typing import Any

import yaml

from audit_stream import __version__
from audit_stream.server.process import GRACE_S
from audit_stream.server.routes import ENDPOINTS
from audit_stream.settings import Settings
from tests.harness import ROOT

MANIFEST = ROOT / "deploy/kubernetes/audit-stream.yaml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@cache
def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def one(kind: str, name: str = "audit-stream") -> Any:
    (found,) = [o for o in objects() if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found["spec"]


def pod() -> Any:
    return one("StatefulSet")["template"]["spec"]


def container() -> Any:
    (found,) = pod()["containers"]
    return found


def mounts() -> dict[str, str]:
    return {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}


def test_the_manifest_holds_what_a_deployment_needs_and_no_secret() -> None:
    kinds = ["Service", "Service", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy"]
    assert [o["kind"] for o in objects()] == kinds
    assert one("StatefulSet")["replicas"] >= 2 > one("PodDisruptionBudget")["minAvailable"]


def test_every_setting_is_one_that_the_server_takes() -> None:
    given = {variable["name"]: variable.get("value") for variable in container()["env"]}
    assert given.pop("AUDIT_STREAM_REDIS_URL", "") is None  # from a Secret
    settings = Settings.from_env(given)
    assert settings.verify_every
    assert settings.tokens
    assert mounts()[str(settings.tokens.parent)] == "tokens"


def test_each_pod_keeps_its_pin_on_a_volume_of_its_own() -> None:
    given = {variable["name"]: variable.get("value") for variable in container()["env"]}
    pin = Settings.from_env({"AUDIT_STREAM_PIN": given["AUDIT_STREAM_PIN"]}).pin
    assert pin
    claims = {claim["metadata"]["name"]: claim["spec"] for claim in one("StatefulSet")["volumeClaimTemplates"]}
    assert claims[mounts()[str(pin.parent)]]["accessModes"] == ["ReadWriteOnce"]


def test_the_probes_ask_routes_that_answer_without_a_token() -> None:
    paths = {name: container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert {f"GET {path}" for path in paths.values()} <= set(ENDPOINTS)
    startup = container()["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 15 * 60  # a long chain is loading


def test_the_ports_are_the_image_s() -> None:
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, flags=re.M)
    (port,) = container()["ports"]
    assert (port["name"], port["containerPort"]) == ("http", int(exposed))
    for name in ("audit-stream", "audit-stream-pods"):
        assert [p["targetPort"] for p in one("Service", name)["ports"]] == ["http"]
    (rule,) = one("NetworkPolicy")["ingress"]
    assert [p["port"] for p in rule["ports"]] == ["http"]


def test_everything_selects_these_pods() -> None:
    labels = one("StatefulSet")["template"]["metadata"]["labels"]
    selectors = [
        one("Service")["selector"],
        one("Service", "audit-stream-pods")["selector"],
        one("StatefulSet")["selector"]["matchLabels"],
        one("PodDisruptionBudget")["selector"]["matchLabels"],
        one("NetworkPolicy")["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod()["topologySpreadConstraints"]),
    ]
    assert [selector for selector in selectors if selector != labels] == []
    assert one("StatefulSet")["serviceName"] == "audit-stream-pods"


def test_stopping_a_pod_leaves_time_for_the_proxy_and_for_requests() -> None:
    program, seconds = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    assert pod()["terminationGracePeriodSeconds"] >= int(seconds) + GRACE_S + 10


def test_the_container_is_the_image_s_user_and_may_write_to_its_volumes_alone() -> None:
    (user, group) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, flags=re.M)[0]
    of_the_pod, of_the_container = pod()["securityContext"], container()["securityContext"]
    assert of_the_pod["runAsNonRoot"] is True
    assert {str(of_the_pod["runAsUser"]), str(of_the_pod["runAsGroup"])} == {user, group}
    assert str(of_the_pod["fsGroup"]) == group
    assert of_the_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_the_container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "/tmp" in mounts()
    assert pod()["automountServiceAccountToken"] is False


def test_the_image_is_this_release_s() -> None:
    assert container()["image"].endswith(f"/audit-stream:{__version__}")
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, flags=re.M)[0]) == ["audit-stream"]
    assert "command" not in container()
