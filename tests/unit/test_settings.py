from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from audit_stream.errors import Misconfigured
from audit_stream.kinds import BUILT_IN
from audit_stream.settings import FSYNC, VARIABLES, Ack, Settings

GOOD: list[tuple[str, str, Any]] = [
    ("AUDIT_STREAM_REDIS_URL", "redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
    ("AUDIT_STREAM_REDIS_URL", "rediss://user:secret@host:6380/1", "rediss://user:secret@host:6380/1"),
    ("AUDIT_STREAM_REDIS_URL", "unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ("AUDIT_STREAM_REDIS_URL", "redis+sentinel://a:1,b:2/master/0", "redis+sentinel://a:1,b:2/master/0"),
    ("REDIS_URL", "redis://platform", "redis://platform"),
    ("AUDIT_STREAM_DATA_DIR", "/srv/audit", Path("/srv/audit")),
    ("AUDIT_STREAM_DATA_DIR", "~/audit", Path.home() / "audit"),
    ("AUDIT_STREAM_DATA_DIR", "audit", Path.cwd() / "audit"),
    ("HOST", "0.0.0.0", "0.0.0.0"),
    ("PORT", "0", 0),
    ("PORT", "65535", 65535),
    ("AUDIT_STREAM_CHAIN", "team-a.audit:2", "team-a.audit:2"),
    ("AUDIT_STREAM_KINDS", "gate_opened, gate_closed,", (*BUILT_IN, "gate_opened", "gate_closed")),
    ("AUDIT_STREAM_ACK", "fsync", FSYNC),
    ("AUDIT_STREAM_ACK", "memory", Ack(fsync=False, replicas=0)),
    ("AUDIT_STREAM_ACK", "replicas=2", Ack(fsync=True, replicas=2)),
    ("AUDIT_STREAM_ACK", "memory, replicas=1", Ack(fsync=False, replicas=1)),
    ("AUDIT_STREAM_HASHING", "script", "script"),
    ("AUDIT_STREAM_HASHING", "checked", "checked"),
    ("AUDIT_STREAM_MAX_EVENT_BYTES", "1024", 1024),
    ("AUDIT_STREAM_MAX_EVENT_BYTES", "16777216", 16 * 1024 * 1024),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "90", timedelta(seconds=90)),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "90s", timedelta(seconds=90)),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "30m", timedelta(minutes=30)),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "24h", timedelta(days=1)),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "7d", timedelta(weeks=1)),
    ("AUDIT_STREAM_MAX_SOURCES", "500", 500),
    ("AUDIT_STREAM_MAX_SOURCES", "0", None),
    ("AUDIT_STREAM_MAX_SOURCES", "off", None),
    ("AUDIT_STREAM_TOKENS", "/etc/tokens.toml", Path("/etc/tokens.toml")),
    ("AUDIT_STREAM_REQUESTS_PER_SECOND", "200", 200),
    ("AUDIT_STREAM_BYTES_PER_SECOND", "1000000", 1_000_000),
    ("AUDIT_STREAM_CORS", "https://a.example, http://localhost:3000", ("https://a.example", "http://localhost:3000")),
    ("AUDIT_STREAM_CORS", "*", ("*",)),
    ("AUDIT_STREAM_CORS", "http://[::1]:80", ("http://[::1]:80",)),
    ("AUDIT_STREAM_HOSTS", "audit.example.org, Proxy", ("audit.example.org", "proxy")),
    ("AUDIT_STREAM_HOSTS", "*", ("*",)),
    ("AUDIT_STREAM_TLS_CERT", "/etc/cert.pem", Path("/etc/cert.pem")),
    ("AUDIT_STREAM_TLS_KEY", "/etc/key.pem", Path("/etc/key.pem")),
    ("FORWARDED_ALLOW_IPS", "10.0.0.7, fd00::/8", (ip_network("10.0.0.7/32"), ip_network("fd00::/8"))),
    ("FORWARDED_ALLOW_IPS", "*", (ip_network("0.0.0.0/0"), ip_network("::/0"))),
]

BAD: list[tuple[str, str]] = [
    ("AUDIT_STREAM_REDIS_URL", "localhost:6379"),
    ("AUDIT_STREAM_REDIS_URL", "http://localhost:6379"),
    ("AUDIT_STREAM_REDIS_URL", "redis://"),
    ("REDIS_URL", "postgres://localhost"),
    ("AUDIT_STREAM_MAX_SOURCES", "many"),
    ("PORT", "65536"),
    ("PORT", "-1"),
    ("PORT", "http"),
    ("PORT", "８０９３"),
    ("PORT", "80 93"),
    ("AUDIT_STREAM_CHAIN", "{audit}"),
    ("AUDIT_STREAM_CHAIN", "a b"),
    ("AUDIT_STREAM_CHAIN", "a*"),
    ("AUDIT_STREAM_CHAIN", "a" * 65),
    ("AUDIT_STREAM_KINDS", "gate_opened,Gate"),
    ("AUDIT_STREAM_KINDS", "gate-opened"),
    ("AUDIT_STREAM_ACK", "fsnyc"),
    ("AUDIT_STREAM_ACK", "FSYNC"),
    ("AUDIT_STREAM_ACK", "fsync,replicas"),
    ("AUDIT_STREAM_ACK", "replicas=-1"),
    ("AUDIT_STREAM_ACK", "replicas=100"),
    ("AUDIT_STREAM_ACK", "fsync,"),
    ("AUDIT_STREAM_HASHING", "lua"),
    ("AUDIT_STREAM_HASHING", "Checked"),
    ("AUDIT_STREAM_MAX_EVENT_BYTES", "1023"),
    ("AUDIT_STREAM_MAX_EVENT_BYTES", "16777217"),
    ("AUDIT_STREAM_MAX_EVENT_BYTES", "256K"),
    ("AUDIT_STREAM_MAX_EVENT_BYTES", "9" * 5000),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "0"),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "0d"),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "-1h"),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "1w"),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "1.5h"),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "a day"),
    ("AUDIT_STREAM_IDEMPOTENCY_TTL", "1000000000s"),
    ("AUDIT_STREAM_REQUESTS_PER_SECOND", "0"),
    ("AUDIT_STREAM_BYTES_PER_SECOND", "1MB"),
    ("AUDIT_STREAM_CORS", "a.example"),
    ("AUDIT_STREAM_CORS", "https://a.example/"),
    ("AUDIT_STREAM_CORS", "https://A.example"),
    ("AUDIT_STREAM_CORS", "https://*.example"),
    ("AUDIT_STREAM_CORS", "null"),
    ("AUDIT_STREAM_HOSTS", "audit.example.org:8093"),
    ("AUDIT_STREAM_HOSTS", "https://audit.example.org"),
    ("AUDIT_STREAM_HOSTS", "*.example.org"),
    ("FORWARDED_ALLOW_IPS", "proxy"),
    ("FORWARDED_ALLOW_IPS", "10.0.0.0/33"),
    ("FORWARDED_ALLOW_IPS", ","),
]


@pytest.mark.parametrize(("name", "text", "expected"), GOOD)
def test_a_good_value_is_read(name: str, text: str, expected: object) -> None:
    for environ in ({name: text}, {name: f"  {text} "}):
        assert getattr(Settings.from_env(environ), VARIABLES[name].field) == expected


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(name: str, text: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Settings.from_env({name: text})
    assert str(caught.value).startswith(f"{name}: ")


def test_without_any_variable_the_settings_are_the_documented_ones() -> None:
    found = Settings.from_env({"XDG_DATA_HOME": "/xdg"})
    assert found == Settings(data_dir=Path("/xdg/audit-stream"), pin=Path("/xdg/audit-stream/audit.pin"))
    assert (found.redis_url, found.port, found.chain, found.ack) == (None, 8093, "audit", FSYNC)
    assert (found.hashing, found.max_event_bytes, found.idempotency_ttl) == ("checked", 262144, timedelta(days=1))
    assert found.bind_host == "127.0.0.1"
    assert Settings.from_env({}).data_dir == Path.home() / ".local/share/audit-stream"


@pytest.mark.parametrize("name", ["PORT", "AUDIT_STREAM_ACK", "AUDIT_STREAM_KINDS", "AUDIT_STREAM_CHAIN"])
def test_an_empty_variable_is_one_that_is_not_set(name: str) -> None:
    assert Settings.from_env({name: " "}) == Settings.from_env({})


def test_each_default_that_is_shown_is_the_one_that_holds() -> None:
    for name, variable in VARIABLES.items():
        if variable.default and variable.field not in ("redis_url", "kinds", "pin"):
            shown = variable.parse(name, variable.default)
            holds = Settings.from_env({})
            assert shown == (holds.bind_host if name == "HOST" else getattr(holds, variable.field)), name


def test_our_own_name_of_the_redis_url_wins_over_the_platforms() -> None:
    environ = {"REDIS_URL": "redis://platform", "AUDIT_STREAM_REDIS_URL": "redis://ours"}
    assert Settings.from_env(environ).redis_url == "redis://ours"
    assert Settings.from_env(dict(reversed(environ.items()))).redis_url == "redis://ours"


def test_an_explicit_host_is_the_one_that_is_bound() -> None:
    assert Settings.from_env({"HOST": "::1"}).bind_host == "::1"


@pytest.mark.parametrize("name", ["AUDIT_STREAM_ACKS", "AUDIT_STREAM_", "AUDIT_STREAM_redis_url", "AUDIT_STREAM_HOST"])
def test_a_variable_of_our_prefix_that_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Settings.from_env({name: "memory"})
    assert name in str(caught.value)
    assert "AUDIT_STREAM_ACK" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        # Kubernetes sets these in every pod beside a service that is called audit-stream.
        "AUDIT_STREAM_SERVICE_HOST",
        "AUDIT_STREAM_SERVICE_PORT",
        "AUDIT_STREAM_SERVICE_PORT_HTTP",
        "AUDIT_STREAM_PORT",
        "AUDIT_STREAM_PORT_8093_TCP",
        "AUDIT_STREAM_PORT_8093_TCP_ADDR",
        "AUDIT_STREAM_PORT_8093_TCP_PORT",
        "AUDIT_STREAM_PORT_8093_TCP_PROTO",
        # The command line's, the tests', and other people's.
        "AUDIT_STREAM_URL",
        "AUDIT_STREAM_TOKEN",
        "AUDIT_STREAM_TEST_REDIS_URL",
        "AUDITOR",
        "PATH",
    ],
)
def test_a_variable_that_is_not_for_the_server_changes_nothing(name: str) -> None:
    assert Settings.from_env({name: "tcp://10.0.0.1:8093"}) == Settings.from_env({})


@pytest.mark.parametrize("ack", [Ack(fsync=f, replicas=r) for f in (True, False) for r in (0, 2)], ids=str)
def test_a_promise_is_written_the_way_it_is_read(ack: Ack) -> None:
    assert Settings.from_env({"AUDIT_STREAM_ACK": str(ack)}).ack == ack


PINS: list[tuple[dict[str, str], str | None]] = [
    ({}, "/xdg/audit-stream/audit.pin"),
    ({"AUDIT_STREAM_CHAIN": "team-a", "AUDIT_STREAM_DATA_DIR": "/d"}, "/d/team-a.pin"),
    ({"REDIS_URL": "redis://r"}, None),
    ({"REDIS_URL": "redis://r", "AUDIT_STREAM_DATA_DIR": "/d"}, "/d/audit.pin"),
    ({"REDIS_URL": "redis://r", "AUDIT_STREAM_PIN": "/p"}, "/p"),
    ({"AUDIT_STREAM_PIN": "off"}, None),
    ({"AUDIT_STREAM_DATA_DIR": "/d", "AUDIT_STREAM_PIN": "off"}, None),
    ({"AUDIT_STREAM_ACK": "memory"}, None),
    ({"AUDIT_STREAM_ACK": "memory", "AUDIT_STREAM_PIN": "/p"}, "/p"),
]


@pytest.mark.parametrize(("environ", "expected"), PINS)
def test_a_server_with_a_data_folder_keeps_a_pin_in_it_unless_told_otherwise(
    environ: dict[str, str], expected: str | None
) -> None:
    assert Settings.from_env({"XDG_DATA_HOME": "/xdg", **environ}).pin == (Path(expected) if expected else None)
