from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bus.typed import Typing
from tests.harness import ServerProcess, running_server


@pytest.fixture(autouse=True)
def no_key_of_somebody_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUDIT_STREAM_BUS_KEY", raising=False)
    monkeypatch.delenv("AUDIT_STREAM_BUS_KEY_FILE", raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus.jsonl"


@pytest.fixture(scope="module")
def spine(redis_url: str, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """One server for a module: its tests tell their events apart by `source` or by what was there before."""
    chain = request.module.__name__.rpartition(".")[2]
    with running_server(AUDIT_STREAM_REDIS_URL=redis_url, AUDIT_STREAM_CHAIN=chain) as server:
        yield server


@pytest.fixture
def new_events(spine: ServerProcess) -> Callable[[], list[dict[str, object]]]:
    """What was appended since this test began."""
    before = spine.get("/stats").json()["last_event_id"]

    def since() -> list[dict[str, object]]:
        found: list[dict[str, object]] = spine.get(f"/events?after={before}&limit=100000").raise_for_status().json()
        return found

    return since


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsysbinary: "pytest.CaptureFixture[bytes]") -> Typing:
    return Typing(monkeypatch, capsysbinary)
