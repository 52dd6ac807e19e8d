"""What the numbers were measured on."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from audit_stream.embedded import find_server_binary
from benchmarks.load import Generator


def facts(generator: Generator, rounds: int) -> dict[str, str]:
    valkey = subprocess.run([find_server_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\S+) server v=(\S+)", valkey)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "servers": ", ".join(
            [" ".join(found.groups()) if found else valkey.strip(), "appendfsync always"]
            + [f"{name} {version(name)}" for name in ("litestar", "uvicorn", "msgspec", "redis")]
        ),
        "load generator": f"{generator.describe()}; its share of one core stands in each line",
        "rounds": str(rounds),
    }


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def resident_mb(pid: int) -> float:
    """The resident memory of a process, in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found.group(1)) / 1000 if found else 0.0
