"""Talking to a server over HTTP."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from audit_stream.addresses import blanked
from audit_stream.cli.failures import Failed
from audit_stream.cli.options import DEFAULT_URL, given_token
from audit_stream.cli.output import tell
from audit_stream.client.arguments import authorization_of, check_path

CONNECT_TIMEOUT_S = 5.0
# The server gives a write 2 s, and a silent connection a sign of life every 15 s at least.
READ_TIMEOUT_S = 40.0
# A server that says how long to wait is waited for, and a request that it refused for that is sent again.
PATIENCE_S = 120.0


class Remote:
    """One server. Every answer but a 2xx is raised as Failed, with the server's own words."""

    def __init__(self, url: str) -> None:
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise Failed(f"--url: {blanked(url)!r} is no address of a server; write it like {DEFAULT_URL}") from error
        if address.scheme not in ("http", "https") or not address.host:
            raise Failed(f"--url: {blanked(url)!r} is no address of a server; write it like {DEFAULT_URL}")
        check_path(address, name="--url")
        self.url = blanked(url.rstrip("/"))
        """As it may be shown."""
        self._client = httpx.Client(
            base_url=f"{url.rstrip('/')}/",
            headers=authorization_of(given_token()),
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> httpx.Response:
        with self.stream(path, params) as answer:
            answer.read()
        return answer

    def post(self, path: str, body: bytes, content_type: str) -> httpx.Response:
        with self._sent("POST", path, content=body, headers={"Content-Type": content_type}) as answer:
            answer.read()
        return answer

    @contextmanager
    def stream(
        self, path: str, params: Mapping[str, Any] | None = None, *, accept: str = "application/json", **headers: str
    ) -> Iterator[httpx.Response]:
        """Yield the answer with its body still to be read. Raises Failed, also when reading fails."""
        given = {name: value for name, value in (params or {}).items() if value is not None}
        with self._sent("GET", path, params=given, headers={"Accept": accept, **headers}) as answer:
            yield answer

    @contextmanager
    def _sent(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        try:
            with self._taken(method, path, request) as answer:
                yield answer
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Failed(
                f"no server at {self.url}: {error or 'it does not answer'}."
                " Start one with `audit-stream serve`, or name another with --url or AUDIT_STREAM_URL."
            ) from error
        except httpx.TransportError as error:
            what = str(error) or type(error).__name__
            raise Failed(f"the connection to {self.url} was lost: {what}", in_doubt=True) from error

    @contextmanager
    def _taken(self, method: str, path: str, request: dict[str, Any]) -> Iterator[httpx.Response]:
        left_s = PATIENCE_S
        while True:
            with self._client.stream(method, path, **request) as answer:
                if answer.is_success:
                    yield answer
                    return
                answer.read()
                refusal = self._refusal(answer)
            wait_s = refusal.retry_after_s
            if refusal.status != 429 or wait_s is None or wait_s > left_s:
                raise refusal
            tell(f"{refusal.detail}; sending it again in {wait_s:g} s")
            left_s -= wait_s
            time.sleep(wait_s)

    def _refusal(self, answer: httpx.Response) -> Failed:
        problem: dict[str, Any] = {}
        if answer.headers.get("content-type", "").startswith("application/problem+json"):
            with suppress(msgspec.DecodeError):
                problem = msgspec.json.decode(answer.content, type=dict[str, Any])
        path = answer.request.url.path
        if "detail" in problem:
            message = f"{self.url} answered {answer.status_code} to {path}: {problem['detail']}"
            if answer.status_code == 401 and "Authorization" not in self._client.headers:
                message += ". Give one as AUDIT_STREAM_TOKEN or with --token-file."
        else:
            message = f"{self.url} answered {answer.status_code} to {path}: is it an audit-stream server?"
        return Failed(
            message,
            status=answer.status_code,
            problem=problem,
            retry_after_s=_seconds(answer.headers.get("retry-after", "")),
            in_doubt=answer.status_code >= 500,
        )


def _seconds(text: str) -> float | None:
    # Retry-After may be a date as well (RFC 9110 §10.2.3); then our own pace is good enough.
    return min(float(text), 300.0) if text.isascii() and text.isdigit() else None
