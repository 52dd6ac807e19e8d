"""A disk small enough to be filled: a tmpfs, which only root may mount."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = "160m"


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """Mount one at the folder; yields why not where that is not permitted, else nothing."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        why_not = mounted.stderr.strip()[:80] if mounted.returncode else ""
    except OSError as error:
        why_not = str(error)
    try:
        yield why_not
    finally:
        if not why_not:
            subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte is free on the disk that the folder is on, until the block ends."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            filled_bytes, step = 0, 1 << 28
            while step:
                try:
                    os.posix_fallocate(file.fileno(), filled_bytes, step)
                    filled_bytes += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step //= 2
            yield
    finally:
        filler.unlink(missing_ok=True)
