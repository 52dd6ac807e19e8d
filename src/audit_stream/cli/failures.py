"""How a command fails: one line on stderr that says what, where and what to do, and an exit code."""

from typing import Any

from audit_stream.errors import AuditStreamError


class Failed(Exception):
    """The command cannot do what was asked."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        problem: dict[str, Any] | None = None,
        retry_after_s: float | None = None,
        in_doubt: bool = False,
        exit_code: int = 1,
    ) -> None:
        super().__init__(message)
        self.status = status
        """Of the server's answer; None when there was none."""
        self.problem = problem or {}
        """The server's problem details."""
        self.retry_after_s = retry_after_s
        self.exit_code = exit_code
        self.in_doubt = in_doubt
        """The request was sent, and whether the server acted on it is not known."""

    @property
    def passing(self) -> bool:
        """Whether the same request may well succeed later."""
        return self.status is None or self.status == 429 or self.status >= 500

    @property
    def detail(self) -> str:
        """The server's own words, where there are any."""
        return str(self.problem.get("detail") or self)


def words_of(error: Exception) -> str:
    """What to say of an error: ours speak for themselves, any other is named."""
    return str(error) if isinstance(error, Failed | AuditStreamError) else f"{type(error).__name__}: {error}"
