"""Addresses of a Redis: what each form means, and what is said of those that cannot be read."""

import subprocess
import sys

import pytest

from audit_stream.addresses import blanked, parse, without_password
from audit_stream.errors import Misconfigured
from tests.harness import clean_environ

TLS = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}


def test_a_plain_address_has_the_ports_and_login_it_names() -> None:
    address = parse("redis://app:p%40ss@redis.example.org/2?client_name=audit")
    assert (address.kind, address.nodes, address.tls) == ("plain", (("redis.example.org", 6379),), None)
    assert address.login == {"username": "app", "password": "p@ss", "db": 2, "client_name": "audit"}


def test_a_socket_has_a_path() -> None:
    address = parse("unix://app:secret@/run/val%20key.sock?db=3")
    assert (address.kind, address.path, address.nodes) == ("unix", "/run/val key.sock", ())
    assert address.login == {"username": "app", "password": "secret", "db": 3}


def test_sentinels_have_a_login_of_their_own_and_the_primary_another() -> None:
    address = parse("redis+sentinel://app:secret@a,b:26380,[::1]:26381/mymaster/1?sentinel_password=other")
    assert (address.kind, address.master) == ("sentinel", "mymaster")
    assert address.nodes == (("a", 26379), ("b", 26380), ("::1", 26381))
    assert address.login == {"username": "app", "password": "secret", "db": 1}
    assert address.sentinel_login == {"username": None, "password": "other"}
    assert (address.tls, address.sentinel_tls) == (None, None)


def test_the_options_of_tls_are_for_the_primary_and_for_the_sentinels_unless_they_have_their_own() -> None:
    options = "ssl_ca_certs=/ca.pem&ssl_check_hostname=no&sentinel_ssl_ca_certs=/other.pem"
    address = parse(f"rediss+sentinel://a/mymaster?{options}")
    assert address.tls == TLS | {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}
    assert address.sentinel_tls == TLS | {"ssl_ca_certs": "/other.pem", "ssl_check_hostname": False}
    assert parse(f"rediss+sentinel://a/mymaster?{options}&sentinel_tls=off").sentinel_tls is None


def test_what_follows_from_an_option_of_tls_is_added() -> None:
    assert parse("rediss://h?ssl_cert_reqs=none").tls == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    both = {"ssl_certfile": "/both.pem", "ssl_keyfile": "/both.pem"}
    assert parse("rediss://h?ssl_certfile=/both.pem").tls == TLS | both


def test_a_cluster_has_nodes_and_no_database() -> None:
    address = parse("rediss+cluster://:secret@a,b:7001")
    assert (address.kind, address.nodes, address.tls) == ("cluster", (("a", 6379), ("b", 7001)), TLS)
    assert address.login == {"username": None, "password": "secret"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "redis://app:secret@h?ssl_cacert=/ca.pem",
            "'ssl_cacert' is not an option of this address; there are user",
        ),
        ("redis://app:secret@h?socket_timeout=5", "'socket_timeout' is not an option of this address"),
        ("redis://app:secret@h?sentinel_password=x", "'sentinel_password' is not an option of this address"),
        ("redis://app:secret@h?ssl_ca_certs=/ca.pem", "ssl_ca_certs needs TLS: start the address with rediss"),
        ("redis+sentinel://h/m?sentinel_ssl_ca_certs=/ca.pem", "sentinel_ssl_ca_certs needs TLS"),
        ("rediss://h?ssl_keyfile=/key.pem", "ssl_keyfile needs ssl_certfile"),
        ("rediss://h?ssl_cert_reqs=maybe", "invalid value 'maybe' for the option ssl_cert_reqs: expected required"),
        ("rediss://h?ssl_check_hostname=perhaps", "invalid value 'perhaps' for the option ssl_check_hostname"),
        ("redis://app:secret@h?db=first", "invalid value 'first' for the option db: expected a whole number"),
        ("redis://app:secret@h/first", "invalid database 'first': write the address as redis://host:6379/0"),
        ("redis://app:secret@h:port/0", "'h:port' is not a host and port"),
        ("redis://app:secret@h:70000/0", "'h:70000' is not a host and port"),
        ("redis://app:secret@a,b/0", "'a,b' names several servers"),
        ("redis+cluster://app:secret@a,,b", "'' is not a host and port: write the address as redis+cluster://"),
        ("redis+cluster://app:secret@a/1", "a Redis cluster has the database 0 alone: leave out /1"),
        ("redis+sentinel://app:secret@a,b", "names no master: write it as redis+sentinel://host:26379"),
        ("redis://app:se#cret@h/0", "the address holds a '#': write it as %23"),
        ("redis://app:secret@/0", "'redis:///0' names no server"),
        ("unix://app:secret@run/valkey.sock", "names no server: write it as unix:///path/to/socket"),
        ("redis://:secret/x@h:1", "the address holds an '@' after the host"),
        ("redis://:secret?x@h:1", "the address holds an '@' after the host"),
        ("redis://:x/secret@h:1", "the address holds an '@' after the host"),
        ("redis://:secret#x@h:1", "the address holds a '#'"),
        ("redis://:secret[@h:1", "'redis://h:1' cannot be read"),
        ("redis://:secret\u2100@h:1", "'redis://h:1' cannot be read"),
        ("redsi://:secret?x@h:1", "'redsi://h:1' is not an address of a Redis"),
        ("redis+unix://app:secret@h", "'redis+unix://h' is not an address of a Redis: it starts with one of redis://"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_with_what_to_write_and_without_its_password(
    url: str, words: str
) -> None:
    with pytest.raises(Misconfigured) as caught:
        parse(url)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://app:p@ss@h:1/0?ssl_password=x", "redis://h:1/0"),
        ("redis+sentinel://:x@a,b/m?sentinel_password=x", "redis+sentinel://a,b/m"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
        ("app:secret@h", "h"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no server at http://u:SECRET@h:1: it does not answer", "no server at http://h:1: it does not answer"),
        ('missing "=" after "postgresqlx://u:SE@CRET@h/d"', 'missing "=" after "postgresqlx://h/d"'),
        ("a://u:SEC RET@h", "a://h"),
        ("a://u:SEC\nRET@h", "a://h"),
        ("http://h:1/x", "http://h:1/x"),
        ("host=h password=SECRET user=u", "host=h password=… user=u"),
        (r"password = 'SEC\' RET' user=u", "password = … user=u"),
        ("a://h/d?sslpassword=SECRET&x=1", "a://h/d?sslpassword=…&x=1"),
        ("ops@example.org", "ops@example.org"),
    ],
)  # fmt: skip
def test_a_message_is_shown_without_what_is_secret(text: str, shown: str) -> None:
    assert blanked(text) == shown


@pytest.mark.parametrize(
    ("arguments", "settings", "shown"),
    [
        (["serve"], {"AUDIT_STREAM_REDIS_URL": "redsi://:SECRET@h"}, "redsi://h"),
        (["verify", "--redis-url", "redsi://:SECRET@h"], {}, "redsi://h"),
        (["project", "init"], {"DATABASE_URL": "postgresqlx://u:SECRET@h"}, "DATABASE_URL: missing"),
        (["postgres", "status"], {"DATABASE_URL": "postgresqlx://u:SECRET@h"}, "DATABASE_URL: missing"),
        (["stats"], {"AUDIT_STREAM_URL": "http://u:SECRET@127.0.0.1:1"}, "no server at http://127.0.0.1:1"),
        (["stats"], {"AUDIT_STREAM_URL": "htp://u:SECRET@127.0.0.1:1"}, "htp://127.0.0.1:1"),
        (["stats"], {"AUDIT_STREAM_URL": "http://u:SECRET/x@127.0.0.1:1"}, "http://127.0.0.1:1"),
    ],
)
def test_no_command_prints_a_password(arguments: list[str], settings: dict[str, str], shown: str) -> None:
    command = [sys.executable, "-m", "audit_stream", *arguments]
    done = subprocess.run(command, env=clean_environ(**settings), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert shown in done.stderr
    assert "SECRET" not in done.stdout + done.stderr
