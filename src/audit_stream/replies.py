"""What redis-py raises, the error replies of Redis above all: what it means, and what the operator is to do.

redis-py cuts the code word (MOVED, NOPERM, LOADING …) off the replies that it has an exception class for. Which ones
it has depends on its version, so a reply is known by its class first and by its text second.
"""

import ast
import re
import ssl
from collections.abc import Iterator

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from audit_stream.errors import Denied, Loading, Unreachable

# A class stands before the one that it inherits from.
_CODES: dict[type[Exception], str] = {
    MovedError: "MOVED",
    AskError: "ASK",
    TryAgainError: "TRYAGAIN",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    NoPermissionError: "NOPERM",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    NoScriptError: "NOSCRIPT",
    BusyLoadingError: "LOADING",
    AuthenticationError: "WRONGPASS",
    AuthorizationError: "WRONGPASS",
}

_NOT_NOW = {
    "OOM": "Redis is out of memory (maxmemory reached) and takes no writes: give it more memory, or raise maxmemory",
    "READONLY": "Redis is read-only: it is a replica, or was demoted to one; appends resume on the primary",
    "MISCONF": "Redis cannot write its data to disk and takes no writes: look at its log and at the disk",
    "NOREPLICAS": (
        "Redis has fewer replicas than min-replicas-to-write asks for and takes no writes: bring the replicas back"
    ),
    "MASTERDOWN": "Redis is a replica that has lost its primary: bring the primary back, or promote a replica",
    "CLUSTERDOWN": "the Redis cluster is down, or this node is cut off from it: bring its nodes back",
    "TRYAGAIN": "the Redis cluster is moving the chain's slot to another node: appends resume when it is done",
    "ASK": "the Redis cluster is moving the chain's slot to another node: appends resume when it is done",
    "BUSY": "Redis is held up by a script that runs too long: wait, or end it with SCRIPT KILL",
}

_ASTRAY = frozenset({"READONLY", "MASTERDOWN", "NOREPLICAS", "MOVED", "CLUSTERDOWN", "LOADING", "WRONGPASS", "NOAUTH"})
"""The connection leads to a server that does not take the chain's writes; another one may do so by now."""

_AT_A_WRITE = frozenset({"OOM", "MISCONF", "NOREPLICAS"})
"""What a primary answers when a script comes to its first write, and not when it begins."""

_WORDS = "|".join({*_NOT_NOW, *_ASTRAY, "NOPERM", "NOSCRIPT"})

# What redis-py puts in front of an error that a command in a pipeline got: the error's arguments follow, a tuple.
_IN_PIPELINE = re.compile(r"^Command # \d+ \(.*?\) of pipeline caused error: ", re.S)

# Where in the script a command was refused, which nobody can look up.
_PLACE_IN_SCRIPT = re.compile(r" script: [^ ]*,? ?on @user_script:\d+\.*$")


class Elsewhere(ResponseError):
    """Another server takes the chain's writes, and the next connection leads there. Nothing was executed."""


def text_of(error: Exception) -> str:
    """Return what Redis answered, without what redis-py writes around it in a pipeline."""
    text = str(error)
    if match := _IN_PIPELINE.match(text):
        text = text[match.end() :]
        try:
            arguments = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
        text = str(arguments[0]) if isinstance(arguments, tuple) and arguments else text
    return _PLACE_IN_SCRIPT.sub("", text)


def code_of(error: Exception) -> str:
    """Return the code word of an error reply; empty when it has none that matters here."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    text = text_of(error)
    # At its beginning, or where Redis 6.2 quotes the error of a command that a script called.
    if match := re.match(rf"-?({_WORDS})\b", text) or re.search(rf"(?:^|[\s:])-({_WORDS}) ", text):
        return match[1]
    for words, code in _WITHOUT_CODE.items():
        if words in text:
            return code
    return ""


_WITHOUT_CODE = {
    "used memory > 'maxmemory'": "OOM",
    "read only replica": "READONLY",
    "Authentication required": "NOAUTH",
    "can't run this command or subcommand": "NOPERM",
    "ACL failure in script": "NOPERM",
    "can't access at least one of the keys": "NOPERM",
}


def leads_astray(error: Exception) -> bool:
    """Whether the connection that brought this reply is the wrong one to ask again."""
    return isinstance(error, Elsewhere) or code_of(error) in _ASTRAY


def redirection(error: Exception, code: str) -> tuple[str, int] | None:
    """Return the node that a MOVED or ASK names, its host empty where that is the answering node's own."""
    if code_of(error) != code:
        return None
    match = re.search(r"\b\d+ (\S*):(\d+)", text_of(error))
    return (match[1], int(match[2])) if match else None


def unreachable(error: BaseException) -> Unreachable:
    """Turn any error of redis-py, of the network or of TLS into Unreachable: Loading or Denied where it is that."""
    for cause in _causes(error):
        if isinstance(cause, Unreachable):  # said while connecting, by who looked for the server
            return type(cause)(str(cause), in_doubt=cause.in_doubt, reason=cause.reason)
        if isinstance(cause, ssl.SSLError) and (why := _tls_refusal(cause)):
            return Denied(why, in_doubt=True)
        if isinstance(cause, InvalidResponse):
            return Denied("the server does not answer as a Redis does: correct the address", in_doubt=True)
        if isinstance(cause, ResponseError | AuthenticationError | AuthorizationError | BusyLoadingError):
            return meaning(cause)
    return Unreachable(f"Redis is away: {str(error) or type(error).__name__}", in_doubt=True)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(8):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def _tls_refusal(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of Redis is refused: {error.verify_message}. Name the authority that signed it with"
            " ssl_ca_certs in the address, and the host as the certificate names it"
        )
    if "WRONG_VERSION" in reason or "RECORD_LAYER" in reason:
        return "Redis does not speak TLS at this port: correct the port, or start the address with redis, not rediss"
    if "ALERT" in reason:
        said = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return (
            f"Redis refuses our side of TLS: {said}. It may want a certificate of its clients: ssl_certfile and"
            " ssl_keyfile in the address"
        )
    return ""


def meaning(error: Exception) -> Unreachable:
    """Turn an error reply into what it means for the caller: nothing was written, why, and what to do."""
    text, code = text_of(error), code_of(error)
    if isinstance(error, Elsewhere):
        # In doubt only so that an append is offered again, to the server that takes it now.
        return Unreachable(f"another Redis takes the chain's writes now; looking for it ({text})", in_doubt=True)
    if code in _NOT_NOW:
        return Unreachable(f"{_NOT_NOW[code]}: {text}", settles=code in _AT_A_WRITE)
    if code == "LOADING":
        # In doubt only so that an append is offered again until Redis has its data back.
        return Loading("Redis is loading its data and answers when it has it all", in_doubt=True)
    if code == "MOVED":
        node = redirection(error, code)
        where = f"{node[0]}:{node[1]}" if node else "another node"
        return Denied(
            f"this node of a Redis cluster does not own the chain's slot, {where} does: write the address as"
            " redis+cluster://host:port,host:port, which follows the slot"
        )
    if code == "NOPERM":
        return Denied(f"Redis does not permit this user what audit-stream needs: {text.rstrip('.')}. {_permit(text)}")
    if code in ("WRONGPASS", "NOAUTH"):
        return Denied(_refused_login(text))
    if "max number of clients" in text:
        return Unreachable(f"Redis takes no more connections: raise maxclients, or end clients that are idle: {text}")
    if match := re.search(r"[Uu]nknown (?:Redis )?command[: ]+['`]?(\w+)?", text):
        name = (match[1] or "").upper()
        return Denied(
            f"Redis does not know the command {name or 'that audit-stream sent'}: it was renamed or disabled in its"
            " configuration. Make it available to this user"
        )
    return Unreachable(f"Redis answered {text!r}")


_IN_SCRIPTS = ("+xadd", "+xrange", "+xrevrange", "+xinfo|stream", "+get", "+set", "+time")


def _permit(text: str) -> str:
    user = re.search(r"[Uu]ser (\S+) has no permissions", text)
    name = user[1] if user else "<user>"
    if command := re.search(r"run the '([^']+)' command", text):
        return f"Permit it: ACL SETUSER {name} +{command[1]}"
    if "key" in text:
        return f"Permit the chain's keys: ACL SETUSER {name} ~{{<chain>}}:*"
    # Redis 7.0 does not say which command of a script it was.
    return f"Permit those of the scripts: ACL SETUSER {name} {' '.join(_IN_SCRIPTS)}"


def _refused_login(text: str) -> str:
    if "required" in text:
        return (
            "Redis wants a password, and the address has none: write it as redis://:password@host or user:password@host"
        )
    if "without any password configured" in text or "no password is set" in text:
        return "Redis has no password, and the address has one: leave the password out of the address"
    return f"Redis refuses the user name or password of the address: {text}. Correct them in the address"
