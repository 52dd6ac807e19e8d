from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a spool is to be."""
    return tmp_path / "spool.jsonl"
