"""deploy/nginx.conf in a real nginx, where this machine has one."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from audit_stream.server.append import BATCH_BYTES
from tests.faults.processes import free_port
from tests.harness import ROOT

REPLICAS = ("api-1", "api-2")


def nginx_command(folder: Path, listens: int, replicas: Iterable[int]) -> list[str]:
    """Write the configuration for this machine's nginx, with these ports in place of the containers' names."""
    # Skipped in CI too: nginx is no part of this project, and its image is tried by the `image` job.
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not on PATH")
    text = (ROOT / "deploy/nginx.conf").read_text().replace("listen 8093", f"listen 127.0.0.1:{listens}")
    version = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    if [int(part) for part in re.findall(r"\d+", version)[:3]] < [1, 27, 3]:
        # Older ones look names up at once, and only then.
        text = re.sub(r"resolver .*?;| resolve\b", "", text)
    for name, port in zip(REPLICAS, replicas, strict=True):
        text = text.replace(f"server {name}:8093", f"server 127.0.0.1:{port}")
    # The rest are places and a user that only root may have.
    text = text.replace("/dev/stdout", "off").replace("/dev/stderr", f"{folder}/error.log")
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    text = text.replace("http {", "http {\n" + "".join(f"{name}_temp_path {folder}/{name};\n" for name in paths), 1)
    config = folder / "nginx.conf"
    config.write_text(text, encoding="utf-8")
    return [program, "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(config), "-g", f"pid {folder}/pid;"]


def test_nginx_takes_the_configuration(tmp_path: Path) -> None:
    done = subprocess.run([*nginx_command(tmp_path, free_port(), (1, 2)), "-t"], capture_output=True, text=True)
    log = tmp_path / "error.log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")


class Replica(ThreadingHTTPServer):
    """Answers with its own name, or takes a request and hangs up."""

    daemon_threads = True

    def __init__(self, name: str, *, hangs_up: bool) -> None:
        super().__init__(("127.0.0.1", 0), ReplicaRequest)
        self.name, self.hangs_up = name, hangs_up
        self.asked: list[str] = []


class ReplicaRequest(BaseHTTPRequestHandler):
    server: Replica

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.command)
        if not self.server.hangs_up:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.name.encode())

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *_: object) -> None: ...


def test_behind_nginx_a_get_is_repeated_and_a_post_never(tmp_path: Path) -> None:
    listens = free_port()
    with ExitStack() as stack:
        replicas = [Replica("healthy", hangs_up=False), Replica("dying", hangs_up=True)]
        command = nginx_command(tmp_path, listens, [replica.server_port for replica in replicas])
        for replica in replicas:
            stack.callback(replica.server_close)
            threading.Thread(target=replica.serve_forever).start()
            stack.callback(replica.shutdown)
        proxy = subprocess.Popen([*command[:-1], f"{command[-1]} daemon off;"])
        stack.callback(proxy.wait)
        stack.callback(proxy.terminate)
        client = stack.enter_context(httpx.Client(transport=httpx.HTTPTransport(retries=5), trust_env=False))
        url = f"http://127.0.0.1:{listens}/events"
        assert {client.get(url).text for _ in range(8)} == {"healthy"}
        answers = [client.post(url, json={}) for _ in range(8)]
        assert {answer.status_code for answer in answers} == {200, 502}
        assert [replica.asked.count("POST") for replica in replicas] == [
            sum(answer.status_code == status for answer in answers) for status in (200, 502)
        ]
        assert "may have been written" in next(a for a in answers if a.status_code == 502).json()["detail"]
        refused = client.post(url, content=bytes(2 * BATCH_BYTES))
        assert (refused.status_code, refused.json()["status"]) == (413, 413)
        assert refused.headers["content-type"] == "application/problem+json"
