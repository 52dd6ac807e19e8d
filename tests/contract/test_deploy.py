"""The container files agree with each other and with the project, as far as that shows without Docker."""

import json
import os
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from audit_stream.server.append import BATCH_BYTES
from audit_stream.settings import VARIABLES
from audit_stream.sinks.settings import SinkSettings
from audit_stream.sinks.variables import VARIABLES as SINK_VARIABLES
from audit_stream.sources.kafka.settings import VARIABLES as KAFKA_VARIABLES
from audit_stream.sources.kafka.settings import KafkaSettings

CHECKOUT = Path(__file__).parents[2]
REPLICAS = {"api-1", "api-2"}


def read(path: str) -> str:
    return (CHECKOUT / path).read_text(encoding="utf-8")


# The Dockerfile


class Instruction(NamedTuple):
    name: str
    rest: str


@cache
def stages() -> list[list[Instruction]]:
    """The Dockerfile's instructions, one list for each FROM."""
    text = re.sub(r"^\s*#.*\n", "", read("Dockerfile"), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[Instruction]] = []
    for line in filter(str.strip, text.splitlines()):
        name, rest = line.split(None, 1)
        if name == "FROM":
            found.append([])
        if found:  # an ARG may stand before the first stage
            found[-1].append(Instruction(name, rest))
    return found


def image(name: str) -> str:
    """What the last stage says by this instruction, which it says once."""
    (rest,) = [i.rest for i in stages()[-1] if i.name == name]
    return rest


def test_the_image_does_not_run_as_root() -> None:
    user = image("USER").partition(":")[0]
    assert user.isdecimal()
    assert int(user) > 0
    assert any(f"--uid {user} " in i.rest for i in stages()[-1] if i.name == "RUN")


def test_the_entrypoint_is_a_script_that_the_wheel_installs() -> None:
    (entrypoint,) = json.loads(image("ENTRYPOINT"))
    assert entrypoint in tomllib.loads(read("pyproject.toml"))["project"]["scripts"]


def test_the_container_listens_on_the_port_it_exposes_and_is_asked_there() -> None:
    environment = dict(pair.split("=", 1) for pair in image("ENV").split())
    assert environment["HOST"] == "0.0.0.0"
    assert environment["PORT"] == image("EXPOSE")
    assert "['PORT']" in image("HEALTHCHECK")
    assert "'/healthz'" in image("HEALTHCHECK")


def test_the_data_directory_is_a_volume() -> None:
    environment = dict(pair.split("=", 1) for pair in image("ENV").split())
    assert [environment["AUDIT_STREAM_DATA_DIR"]] == json.loads(image("VOLUME"))


def test_everything_the_image_copies_is_in_the_checkout_and_not_ignored() -> None:
    copied = [
        source
        for stage in stages()
        for instruction in stage
        if instruction.name == "COPY" and not instruction.rest.startswith("--from")
        for source in instruction.rest.split()[:-1]
    ]
    assert {"pyproject.toml", "src", "lua"} <= set(copied)
    assert [source for source in copied if not (CHECKOUT / source).exists()] == []
    ignored, *rest = [line for line in read(".dockerignore").splitlines() if line and line[0] != "#"]
    assert ignored == "*"
    assert [source for source in copied if f"!{source}" not in rest] == []


# docker-compose.yml


@cache
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))["services"]
    return found


def test_redis_is_on_disk_before_it_answers_and_evicts_nothing() -> None:
    program, *options = services()["redis"]["command"]
    assert program == "redis-server"
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        "--appendonly": "yes",
        "--appendfsync": "always",
        "--maxmemory-policy": "noeviction",
        "--maxmemory": "2gb",
        "--save": "",
    }
    assert [volume for volume in services()["redis"]["volumes"] if volume.endswith(":/data")]


def test_two_replicas_of_this_checkout_share_one_redis_and_publish_nothing() -> None:
    of_this_checkout = {name for name, service in services().items() if "build" in service}
    assert {name for name in of_this_checkout if "profiles" not in services()[name]} == REPLICAS
    for name in REPLICAS:
        replica = services()[name]
        assert replica["build"] == "."
        assert replica["environment"]["AUDIT_STREAM_REDIS_URL"] == "redis://redis:6379/0"
        assert replica["depends_on"] == {"redis": {"condition": "service_healthy"}}
        assert "ports" not in replica
        # Not on the volume of the chain that it is to be compared with.
        assert Path(replica["environment"]["AUDIT_STREAM_PIN"]).parent == Path("/data")
        assert replica["volumes"] == ["pins:/data"]
        # One tag for both is exported twice at the same time, which BuildKit refuses.
        assert "image" not in replica


def test_the_proxy_waits_for_both_replicas_and_listens_on_this_machine_only() -> None:
    proxy = services()["proxy"]
    assert proxy["depends_on"] == {name: {"condition": "service_healthy"} for name in REPLICAS}
    (published,) = proxy["ports"]
    ((listens,),) = directives(server(), "listen")
    assert published.startswith("127.0.0.1:")
    assert published.endswith(f":{listens}")
    assert "./deploy/nginx.conf:/etc/nginx/nginx.conf:ro" in proxy["volumes"]


def test_every_setting_given_to_a_container_is_one_the_server_knows() -> None:
    given = {pair.partition("=")[0] for pair in image("ENV").split()}
    given |= {name for replica in REPLICAS for name in services()[replica]["environment"]}
    assert {name for name in given if name.startswith("AUDIT_STREAM_")} <= set(VARIABLES)


def test_the_profile_kafka_is_a_broker_a_database_and_the_daemon_between_them() -> None:
    profile = {name: service for name, service in services().items() if service.get("profiles") == ["kafka"]}
    assert set(profile) == {"kafka", "postgres", "audit-tables", "audit-consumer"}
    daemon = profile["audit-consumer"]
    scripts = tomllib.loads(read("pyproject.toml"))["project"]
    installed = set(re.findall(r"^([\w-]+)(?:\[\w+\])?==", read("requirements.lock"), flags=re.M))
    assert {"confluent-kafka", "psycopg", "psycopg-binary"} <= installed
    assert daemon["entrypoint"][0] in scripts["scripts"]
    assert set(daemon["environment"]) <= set(KAFKA_VARIABLES) | set(SINK_VARIABLES)
    settings = KafkaSettings.from_env(daemon["environment"])
    advertised = profile["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INSIDE://{settings.brokers}" in advertised
    assert SinkSettings.from_env(daemon["environment"]).sinks == ("postgres", "purview", "trust")
    for published in (port for service in profile.values() for port in service.get("ports", [])):
        assert published.startswith("127.0.0.1:")


# deploy/nginx.conf


class Directive(NamedTuple):
    words: list[str]
    block: "list[Directive]"


@cache
def nginx() -> list[Directive]:
    return _block(re.findall(r"""#.*|"[^"]*"|'[^']*'|[{};]|[^\s{};"'#]+""", read("deploy/nginx.conf")))


def _block(tokens: list[str]) -> list[Directive]:
    """Take tokens from the front until the block they belong to is closed."""
    found: list[Directive] = []
    words: list[str] = []
    while tokens and (token := tokens.pop(0)) != "}":
        if token in ";{":
            found.append(Directive(words, _block(tokens) if token == "{" else []))
            words = []
        elif not token.startswith("#"):
            words.append(token.strip("\"'"))
    return found


def directives(block: list[Directive], name: str) -> list[list[str]]:
    return [d.words[1:] for d in block if d.words[0] == name]


def inner(block: list[Directive], *words: str) -> list[Directive]:
    (found,) = [d.block for d in block if d.words == list(words)]
    return found


def server() -> list[Directive]:
    return inner(inner(nginx(), "http"), "server")


def in_force(name: str, location: str) -> list[str]:
    """The values of a directive in a location: its own, or those of the nearest block around it."""
    http = inner(nginx(), "http")
    for block in (inner(server(), "location", "=", location), server(), http):
        if values := directives(block, name):
            return values[-1]
    return []


def test_the_proxy_balances_over_both_replicas_on_the_port_they_expose() -> None:
    upstream = inner(inner(nginx(), "http"), "upstream", "replicas")
    addresses = {values[0] for values in directives(upstream, "server")}
    assert addresses == {f"{name}:{image('EXPOSE')}" for name in REPLICAS}
    for location in [d for d in server() if d.words[0] == "location" and not d.words[1].startswith("@")]:
        assert directives(location.block, "proxy_pass") == [["http://replicas"]]


@pytest.mark.parametrize("location", ["/stream", "/verify"])
def test_frames_pass_the_proxy_as_they_come(location: str) -> None:
    assert in_force("proxy_buffering", location) == ["off"]
    assert in_force("proxy_http_version", location) == ["1.1"]
    assert ["Connection", ""] in directives(server(), "proxy_set_header")


def test_the_proxy_never_sends_a_post_twice() -> None:
    text = re.sub(r"#.*", "", read("deploy/nginx.conf"))
    assert "proxy_next_upstream" in text
    assert "non_idempotent" not in text
    assert "http_50" not in text


def test_the_proxy_leaves_it_to_the_api_to_refuse_a_large_batch() -> None:
    ((size,),) = directives(server(), "client_max_body_size")
    assert BATCH_BYTES < int(size.removesuffix("m")) * 1024 * 1024 <= 2 * BATCH_BYTES


# CI


@cache
def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    return found


def commands(job: str) -> list[str]:
    return [step["run"].strip() for step in jobs()[job]["steps"] if "run" in step]


def test_ci_runs_on_every_python_the_package_declares() -> None:
    classifiers = tomllib.loads(read("pyproject.toml"))["project"]["classifiers"]
    declared = {match[1] for line in classifiers if (match := re.search(r"Python :: (3\.\d+)$", line))}
    assert declared == {"3.11", "3.12", "3.13", "3.14"}
    assert set(jobs()["test"]["strategy"]["matrix"]["python"]) == declared
    assert commands("test") == ["bash .ci/run"]


def test_ci_runs_on_every_server_with_the_promise_switched_on() -> None:
    servers = jobs()["servers"]["strategy"]["matrix"]["server"]
    assert set(servers) == {"redis:7.2", "redis:8", "valkey/valkey:8", "valkey/valkey:9"}
    promise, test = commands("servers")
    assert "appendonly yes" in promise
    assert "appendfsync always" in promise
    assert test == "make test"


def test_the_ci_script_lints_and_tests() -> None:
    script = CHECKOUT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    targets = set(re.findall(r"for target in (.*);", script.read_text(encoding="utf-8"))[0].split())
    assert targets == {"lint", "test"}
    assert targets <= set(re.findall(r"^(\w+):", read("Makefile"), flags=re.MULTILINE))
