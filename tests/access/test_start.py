"""What a server with tokens or certificates refuses at its start, warns of, and then speaks."""

import logging
import os
import secrets
import signal
import socket
import ssl
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import trustme

from audit_stream.errors import Misconfigured
from audit_stream.server.run import _check_tls, _warn_if_open, serve
from audit_stream.settings import Settings
from tests.access.holders import Holder, write_tokens
from tests.e2e.terminal import run
from tests.faults.processes import needs_linux
from tests.harness import logging_server, running_server

EVENT = {"kind": "other", "source": "a"}


class Certificates:
    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        self.authority, self.cert, self.key, self.both = (folder / name for name in ("ca", "cert", "key", "both"))
        authority.cert_pem.write_to_path(self.authority)
        issued.private_key_and_cert_chain_pem.write_to_path(self.both)
        issued.private_key_pem.write_to_path(self.key)
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


# --- refused before anything listens


def test_a_mistake_in_the_token_file_keeps_the_server_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text("[[token]]\nname = 'a'\n")
    with pytest.raises(Misconfigured) as caught:
        serve({"AUDIT_STREAM_TOKENS": str(path), "PORT": "0"})
    assert str(caught.value) == f"{path}: token 1 (a): Object missing required field `sha256`"


@pytest.mark.parametrize("what", ["no certificate", "no key", "another's key", "no file", "no PEM"])
def test_certificates_that_cannot_be_used_are_told_of(certificates: Certificates, tmp_path: Path, what: str) -> None:
    nothing, other = tmp_path / "nothing", tmp_path / "other"
    other.write_text("not PEM")
    cert, key = {
        "no certificate": (None, certificates.key),
        "no key": (certificates.cert, None),
        "another's key": (certificates.cert, Certificates(tmp_path).key),
        "no file": (nothing, certificates.key),
        "no PEM": (other, certificates.key),
    }[what]
    settings = {"AUDIT_STREAM_TLS_CERT": str(cert or ""), "AUDIT_STREAM_TLS_KEY": str(key or ""), "PORT": "0"}
    with pytest.raises(Misconfigured, match=r"^AUDIT_STREAM_TLS_(CERT|KEY): "):
        serve(settings)


# --- where it listens, and what is said of that


def test_with_tokens_it_listens_for_all_unless_told_otherwise() -> None:
    assert Settings.from_env({}).bind_host == "127.0.0.1"
    assert Settings.from_env({"AUDIT_STREAM_TOKENS": "f"}).bind_host == "0.0.0.0"
    assert Settings.from_env({"AUDIT_STREAM_TOKENS": "f", "HOST": "127.0.0.1"}).bind_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"HOST": "127.0.0.1"}, None),
        ({"HOST": "::1"}, None),
        ({"HOST": "0.0.0.0"}, "whoever reaches 0.0.0.0:{port} may append and read: AUDIT_STREAM_TOKENS is not set"),
        ({"AUDIT_STREAM_TOKENS": "f"}, "tokens travel to 0.0.0.0:{port} unencrypted"),
        ({"AUDIT_STREAM_TOKENS": "f", "AUDIT_STREAM_TLS_CERT": "c"}, None),
        ({"AUDIT_STREAM_TOKENS": "f", "FORWARDED_ALLOW_IPS": "10.0.0.0/8"}, None),
    ],
)
def test_a_server_that_is_open_says_so(
    caplog: pytest.LogCaptureFixture, given: dict[str, str], said: str | None
) -> None:
    settings = Settings.from_env(given)
    family = socket.AF_INET6 if ":" in settings.bind_host else socket.AF_INET
    with closing(socket.socket(family)) as sock, caplog.at_level(logging.WARNING):
        sock.bind((settings.bind_host, 0))  # and never listens
        _warn_if_open(settings, sock)
        port = sock.getsockname()[1]
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said.format(port=port))


def test_a_token_where_the_file_was_meant_is_no_open_server() -> None:
    with pytest.raises(Misconfigured, match="the server's file is AUDIT_STREAM_TOKENS"):
        Settings.from_env({"AUDIT_STREAM_TOKEN": "/etc/audit-stream/tokens.toml"})


# --- https


def test_https_is_spoken_by_every_worker_to_those_who_trust_its_certificate(
    redis_url: str, certificates: Certificates, tmp_path: Path
) -> None:
    holder = Holder("all", "append", "read")
    write_tokens(tmp_path / "tokens.toml", holder)
    (tmp_path / "token").write_text(f"{holder.token}\n")
    settings = {
        "AUDIT_STREAM_REDIS_URL": redis_url,
        "AUDIT_STREAM_CHAIN": f"tls.{secrets.token_hex(4)}",
        "AUDIT_STREAM_TOKENS": str(tmp_path / "tokens.toml"),
        "HOST": "127.0.0.1",
        "AUDIT_STREAM_TLS_CERT": str(certificates.cert),
        "AUDIT_STREAM_TLS_KEY": str(certificates.key),
    }
    trust = ssl.create_default_context(cafile=certificates.authority)
    with running_server("--workers", "2", **settings) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            server.get("/healthz")
        for _ in range(8):  # a connection each, so that both workers get some
            with httpx.Client(base_url=server.url, verify=trust, headers=holder.header) as client:
                assert client.post("/events", json=EVENT).status_code == 201
        with httpx.Client(base_url=server.url, verify=trust) as client:
            answer = client.post("/dashboard/login", json={"token": holder.token})
            assert answer.headers["set-cookie"].startswith("__Host-audit_stream=")
            assert answer.headers["set-cookie"].endswith("; Secure")
        for _ in range(8):  # whichever worker made it, each of them knows the session
            with httpx.Client(base_url=server.url, verify=trust) as client:
                session = answer.headers["set-cookie"].partition(";")[0]
                assert client.get("/stats", headers={"Cookie": session}).status_code == 200
        done = run("tail", "--after", "0", "--limit", "8", "--token-file", str(tmp_path / "token"), url=server.url,
                   SSL_CERT_FILE=str(certificates.authority))  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.count(b"\n") == 8


@needs_linux
def test_a_worker_that_cannot_be_replaced_yet_takes_no_other_along(redis_url: str, tmp_path: Path) -> None:
    holder, path = Holder("all", "append", "read"), tmp_path / "tokens.toml"
    write_tokens(path, holder)
    settings = {
        "AUDIT_STREAM_REDIS_URL": redis_url,
        "AUDIT_STREAM_CHAIN": f"died.{secrets.token_hex(4)}",
        "AUDIT_STREAM_TOKENS": str(path),
        "HOST": "127.0.0.1",
    }
    log = tmp_path / "log"
    with log.open("wb") as file, logging_server(file, "--workers", "2", **settings) as server:
        path.write_text("")
        os.kill(workers_of(server.pid)[0], signal.SIGKILL)
        while "the replacement of a worker did not start" not in log.read_text():
            # The other one answers all the while.
            assert server.get("/stats", **holder.header).status_code == 200
        write_tokens(path, holder)
        while len(workers_of(server.pid)) < 2:
            assert server.get("/stats", **holder.header).status_code == 200
        assert server.stop() == 0


def workers_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_key_and_its_certificate_may_be_one_file(certificates: Certificates) -> None:
    _check_tls(Settings.from_env({"AUDIT_STREAM_TLS_CERT": str(certificates.both)}))
