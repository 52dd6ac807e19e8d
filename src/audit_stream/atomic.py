"""Writing a file whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

# Read once, before there are threads: to ask for it is to change it, for all of them.
_UMASK = os.umask(0)
os.umask(_UMASK)


class Replacement:
    """What is to stand in the place of a file; it takes that place when `commit` is called, or never."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self.file = path, file
        self.committed = False

    def commit(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        Path(self.file.name).replace(self._path)
        self.committed = True
        sync_folder(self._path.parent)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk: those of files that are new in it, or were renamed."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Replacement]:
    """Yield a file beside `path`, for its owner alone if `private`. Raises OSError at once where none can be made."""
    path = path.resolve()  # a link stays a link
    if path.exists() and not path.is_file():
        raise IsADirectoryError(f"{path} is not a file")
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        replacement = Replacement(path, file)
        try:
            # Temporary files are for their owner alone; this one gets the rights of the file it replaces.
            if not private:
                Path(file.name).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_UMASK)
            yield replacement
        finally:
            if not replacement.committed:
                Path(file.name).unlink()
