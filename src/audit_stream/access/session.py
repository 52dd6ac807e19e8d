"""What the dashboard's cookie holds: a sealed session with an end, in the place of the token.

The seal is an HMAC under a secret that the servers of a chain share, over the stored hash of the token as well. So any
worker or replica reads a session that another one made, none of them keeps a table, and a session ends with its token.
The token file alone makes no session, so it goes on holding no secret.

What this cannot do: a session that was copied before its owner logged out holds until its end.
"""

import hmac
import secrets
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from time import time

from audit_stream.access.table import Grant, Tokens

LIFETIME_S = 12 * 3600
MAX_BYTES = 256
_CLAIMS = struct.Struct(">16s16sQ")
"""The start of the token's hash, a random id, and the end in Unix seconds."""


class Sessions:
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._secret: bytes | None = None

    async def prepare(self, secret: Callable[[], Awaitable[bytes]]) -> bytes:
        """Fetch the secret unless it is here. Until then no session is known."""
        if self._secret is None:
            self._secret = await secret()
        return self._secret

    def seal(self, grant: Grant, secret: bytes) -> str:
        """Return a new session of this token, as text that fits into a cookie."""
        claims = _CLAIMS.pack(grant.digest[:16], secrets.token_bytes(16), int(time()) + LIFETIME_S)
        return urlsafe_b64encode(claims + _mac(grant, secret, claims)).decode()

    def find(self, session: bytes) -> tuple[Grant, float] | None:
        """Return whose session it is and how many seconds of it are left; None when it does not hold."""
        if self._secret is None or len(session) > MAX_BYTES:
            return None
        try:
            sealed = urlsafe_b64decode(session)
            claims, mac = sealed[: _CLAIMS.size], sealed[_CLAIMS.size :]
            token, _, ends_at = _CLAIMS.unpack(claims)
        except (ValueError, struct.error):
            return None
        grant = self._tokens.starting(token)
        if grant is None or not hmac.compare_digest(mac, _mac(grant, self._secret, claims)):
            return None
        left_s = ends_at - time()
        return (grant, left_s) if left_s > 0 else None


def _mac(grant: Grant, secret: bytes, claims: bytes) -> bytes:
    return hmac.digest(secret, b"audit-stream session\0" + grant.digest + claims, "sha256")
