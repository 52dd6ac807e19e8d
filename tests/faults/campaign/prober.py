"""The harness' own producer: it asks one server at a time, and hears what a client is told."""

import itertools
import time
from typing import Any

import httpx

from tests.faults.load import Answer

PATIENCE_S = 60
PAUSE_S = 0.02


class Prober:
    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self._names = (f"probe-{number}" for number in itertools.count(1))
        self._open: list[str] = []
        """Sent, and not answered yet: whether they are stored is not known."""
        self._client = httpx.Client(trust_env=False)

    def close(self) -> None:
        self._client.close()

    def ask(self, url: str, *, timeout_s: float = 10) -> httpx.Response | None:
        """Append one event; None when no answer comes in time, or the connection breaks."""
        name = next(self._names)
        self._open.append(name)
        return self._send(url, name, timeout_s)

    def until_appended(self, url: str) -> dict[str, Any]:
        """Append one event, again until it is answered; return its receipt."""
        name = next(self._names)
        self._open.append(name)
        return self._settle(name, url)

    def until_refused(self, url: str, *reasons: str) -> None:
        """Append events until one is answered 503 for one of these reasons, or for any."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            answer = self.ask(url)
            if answer is not None and answer.status_code == 503:
                detail = answer.json()["detail"]
                if not reasons or any(reason in detail for reason in reasons):
                    return
        raise AssertionError(f"{url} does not answer 503 {' or '.join(reasons)}")

    def settle(self, url: str) -> None:
        """Send whatever is still open until it is answered."""
        for name in list(self._open):
            self._settle(name, url)

    def _settle(self, name: str, url: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while name in self._open:
            assert time.monotonic() < deadline, f"{url} does not answer {name}"
            if self._send(url, name, 10) is None:
                time.sleep(PAUSE_S)  # nobody listens at the moment
        return next(answer for answer in reversed(self.answers) if answer.request == name).events[0]

    def _send(self, url: str, name: str, timeout_s: float) -> httpx.Response | None:
        body = {"kind": "other", "source": "probe", "payload": {"request": name, "place": 0, "size": 1}}
        try:
            answer = self._client.post(f"{url}/events", json=body, headers={"Idempotency-Key": name}, timeout=timeout_s)
        except httpx.TransportError:
            return None
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            return answer
        assert answer.status_code in (200, 201), f"{name} was answered {answer.status_code}: {answer.text}"
        self._open.remove(name)
        self.answers.append(Answer(name, answer.headers.get("idempotent-replayed") == "true", [answer.json()]))
        return answer
