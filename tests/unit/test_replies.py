"""What redis-py raises, as its versions do, and what it means to us."""

import re
from collections.abc import Callable

import pytest
import redis.exceptions
from redis._parsers.base import BaseParser
from redis.exceptions import RedisError, ResponseError

from audit_stream.connection import reaching
from audit_stream.errors import AuditStreamError, ChainBroken, Denied, Loading, Unreachable
from audit_stream.replies import _IN_SCRIPTS, code_of, leads_astray, redirection, text_of
from audit_stream.scripts import source

# As servers answer, word for word: Valkey 9.1, Redis 7.0, and 6.2 where its scripts put words of their own around it.
REPLIES = {
    "MOVED 1463 127.0.0.1:7101": (Denied, "does not own the chain's slot, 127.0.0.1:7101 does: write the address as"),
    "ASK 1463 127.0.0.1:7101": (Unreachable, "is moving the chain's slot to another node: appends resume"),
    "TRYAGAIN Multiple keys request during rehashing of slot": (Unreachable, "is moving the chain's slot"),
    "CLUSTERDOWN Hash slot not served": (Unreachable, "the Redis cluster is down, or this node is cut off from it"),
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": (
        Unreachable,
        "a replica that has lost its primary",
    ),
    "READONLY You can't write against a read only replica.": (Unreachable, "Redis is read-only"),
    "READONLY You can't write against a read only replica. script: 1f, on @user_script:12.": (
        Unreachable,
        "Redis is read-only",
    ),
    "ERR Error running script (call to f_1f): @user_script:12: @user_script: 12: "
    "-READONLY You can't write against a read only replica.": (Unreachable, "Redis is read-only"),
    "NOREPLICAS Not enough good replicas to write.": (Unreachable, "fewer replicas than min-replicas-to-write"),
    "MISCONF Errors writing to the AOF file: No space left on device": (Unreachable, "cannot write its data to disk"),
    "OOM command not allowed when used memory > 'maxmemory'.": (Unreachable, "out of memory (maxmemory reached)"),
    "ERR Error running script (call to f_1f): @user_script:12: @user_script: 12: "
    "-OOM command not allowed when used memory > 'maxmemory'.": (Unreachable, "out of memory"),
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": (
        Unreachable,
        "held up by a script",
    ),
    "LOADING Redis is loading the dataset in memory": (Loading, "answers when it has it all"),
    "NOPERM User app has no permissions to run the 'config|get' command": (Denied, "ACL SETUSER app +config|get"),
    "NOPERM No permissions to access a key": (Denied, "Permit the chain's keys"),
    "NOPERM this user has no permissions to run the 'xadd' command or its subcommand": (
        Denied,
        "ACL SETUSER <user> +xadd",
    ),
    "ERR The user executing the script can't run this command or subcommand script: 1f, on @user_script:3.": (
        Denied,
        "can't run this command or subcommand. Permit those of the scripts: ACL SETUSER <user> +xadd",
    ),
    "ERR ACL failure in script: User app has no permissions to run the 'time' command script: on @user_script:294.": (
        Denied,
        "has no permissions to run the 'time' command. Permit it: ACL SETUSER app +time",
    ),
    "NOAUTH Authentication required.": (Denied, "wants a password, and the address has none"),
    "WRONGPASS invalid username-password pair or user is disabled.": (Denied, "refuses the user name or password"),
    "ERR unknown command 'INFO', with args beginning with: 'replication'": (Denied, "does not know the command INFO"),
    "ERR unknown command `SCRIPT`, with args beginning with: `LOAD`, ": (Denied, "does not know the command SCRIPT"),
    "ERR max number of clients reached": (Unreachable, "max number of clients reached"),
    "CHAINBROKEN 3 5": (ChainBroken, "chain ends at event #3, but #5 was written"),
    "WRONGTYPE Operation against a key holding the wrong kind of value": (ChainBroken, "another type than a stream"),
    "ERR something new": (Unreachable, "Redis answered 'something new'"),
}
Raised = Callable[[str], RedisError]
ASTRAY = ("MOVED", "MASTERDOWN", "CLUSTERDOWN", "READONLY", "NOREPLICAS", "LOADING", "NOAUTH", "WRONGPASS")


def as_now(reply: str) -> RedisError:
    """As the installed redis-py raises it."""
    error: RedisError = BaseParser.parse_error(reply)
    return error


def as_before(reply: str) -> RedisError:
    """As redis-py 5 does: it has no classes for a cluster's replies, and leaves them their code."""
    code = reply.partition(" ")[0]
    if code in ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN"):
        return ResponseError(reply)
    return as_now(reply)


def in_a_pipeline(error: RedisError) -> RedisError:
    """As redis-py's pipelines raise it."""
    text = f"Command # 2 (XLEN {{a}}:time) of pipeline caused error: {error.args}"
    error.args = (text, *error.args[1:])
    return error


def meant_by(error: RedisError) -> AuditStreamError:
    with pytest.raises(AuditStreamError) as caught, reaching():
        raise error
    return caught.value


@pytest.mark.parametrize("raised_as", [as_now, as_before])
@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_means_the_same_from_every_version_of_the_client(reply: str, raised_as: Raised) -> None:
    kind, words = REPLIES[reply]
    meant = meant_by(raised_as(reply))
    assert type(meant) is kind
    assert words in str(meant)


@pytest.mark.parametrize("reply", [reply for reply in REPLIES if not reply.startswith("ERR max")])
def test_in_a_pipeline_it_means_the_same_and_nothing_of_the_pipeline_is_shown(reply: str) -> None:
    kind, words = REPLIES[reply]
    meant = meant_by(in_a_pipeline(as_now(reply)))
    assert type(meant) is kind
    assert words in str(meant)
    assert "pipeline" not in str(meant)
    assert "XLEN" not in str(meant)
    assert not str(meant).endswith((",)", "',)", "')"))


@pytest.mark.parametrize("raised_as", [as_now, as_before])
@pytest.mark.parametrize("reply", REPLIES)
def test_a_connection_is_left_when_its_server_is_the_wrong_one(reply: str, raised_as: Raised) -> None:
    astray = reply.startswith(ASTRAY) or "-READONLY" in reply
    assert leads_astray(raised_as(reply)) == astray


def test_an_unknown_reply_has_no_code_and_its_own_text() -> None:
    assert code_of(ResponseError("BUSYGROUP Consumer Group name already exists")) == ""
    assert text_of(ResponseError("Command # 1 (GET a) of pipeline caused error: unknown")) == "unknown"


def test_the_commands_of_the_scripts_are_the_ones_that_a_refusal_names() -> None:
    called = set(re.findall(r"redis\.p?call\('(\w+)'", source("append")))
    assert called == {command.strip("+").partition("|")[0].upper() for command in _IN_SCRIPTS}


@pytest.mark.parametrize("raised_as", [as_now, as_before])
def test_a_redirection_names_a_node_and_an_empty_host_is_the_answering_nodes(raised_as: Raised) -> None:
    assert redirection(raised_as("MOVED 1463 ::1:7101"), "MOVED") == ("::1", 7101)
    assert redirection(raised_as("ASK 1463 :7101"), "ASK") == ("", 7101)
    assert redirection(raised_as("ASK 1463 :7101"), "MOVED") is None


def test_what_a_broken_connection_means_leaves_open_whether_it_was_executed() -> None:
    meant = meant_by(redis.exceptions.ConnectionError("Connection closed by server."))
    assert type(meant) is Unreachable
    assert meant.in_doubt
    assert str(meant) == "Redis is away: Connection closed by server."
