"""Calls on one connection, against a server that answers when the test says so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hiredis
import pytest
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from audit_stream.pipelined import Facts, Pipelined

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Server:
    """Takes commands, and answers only with what it is given. It keeps its connections apart."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[bytes, asyncio.StreamWriter]] = asyncio.Queue()
        self.serving: list[asyncio.Task[None] | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.append(asyncio.current_task())
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                # A new connection begins with what redis-py says of itself, and with what the server is asked about.
                if answer := {b"CLIENT": b"+OK\r\n", b"INFO": b"$0\r\n\r\n", b"CONFIG": b"*0\r\n"}.get(command[0]):
                    writer.write(answer)
                else:
                    self.heard.put_nowait((command[1], writer))
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def a_server() -> AsyncIterator[tuple[Server, Pipelined]]:
    served = Server()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    redis = Redis.from_pool(BlockingConnectionPool(host="127.0.0.1", port=port, protocol=2, socket_timeout=None))
    try:
        async with redis, asyncio.timeout(20):  # an answer that never comes is a failure, and not a test without an end
            yield served, Pipelined(redis)
    finally:
        server.close()
        await asyncio.gather(*filter(None, served.serving))


def called(pipelined: Pipelined, *texts: str) -> "list[asyncio.Task[str]]":
    async def call(text: str) -> str:
        reply = (await pipelined.call(("ECHO", text))).reply
        assert isinstance(reply, bytes)
        return reply.decode()

    return [asyncio.create_task(call(text)) for text in texts]


async def test_calls_are_sent_before_the_first_is_answered_and_each_gets_its_own_answer() -> None:
    async with a_server() as (server, pipelined):
        calls = called(pipelined, "a", "b", "c")
        heard = [await server.heard.get() for _ in calls]
        assert [text for text, _ in heard] == [b"a", b"b", b"c"]
        assert len({writer for _, writer in heard}) == 1
        for text, writer in heard:
            writer.write(b"$1\r\n%b\r\n" % text)
        assert await asyncio.gather(*calls) == ["a", "b", "c"]


async def test_a_lost_connection_is_told_to_all_who_wait_and_the_next_call_opens_another() -> None:
    async with a_server() as (server, pipelined):
        calls = called(pipelined, "a", "b")
        (_, first), _ = await server.heard.get(), await server.heard.get()
        first.close()
        # As the appender does: the one that hears of it first calls again at once.
        with pytest.raises(RedisConnectionError):
            await calls[0]
        again = called(pipelined, "a")
        text, second = await server.heard.get()
        assert second is not first
        second.write(b"$1\r\n%b\r\n" % text)
        assert await again[0] == "a"
        with pytest.raises(RedisConnectionError):
            await calls[1]


async def test_an_answer_that_nobody_waits_for_any_more_is_not_taken_for_the_next_ones() -> None:
    async with a_server() as (server, pipelined):
        admitted: list[Facts] = []
        pipelined.admit = admitted.append
        calls = called(pipelined, "a", "b")
        (_, first), _ = await server.heard.get(), await server.heard.get()
        calls[0].cancel()
        with pytest.raises(RedisConnectionError):
            await calls[1]
        again = called(pipelined, "c")
        text, second = await server.heard.get()
        assert (text, second is first) == (b"c", False)
        second.write(b"$1\r\nc\r\n")
        assert await again[0] == "c"
        assert len(admitted) == 2  # the next connection may lead to another server, and is looked at as any other


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        (b"-ERR no", False),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", False),
        (b"-TRYAGAIN Multiple keys request during rehashing of slot", False),
        (b"-NOPERM no permissions", False),
        (b"-READONLY", True),
        (b"-MASTERDOWN Link with MASTER is down", True),
        (b"-NOREPLICAS Not enough good replicas to write.", True),
        (b"-MOVED 1463 127.0.0.1:7101", True),
        (b"-CLUSTERDOWN The cluster is down", True),
        (b"-LOADING Redis is loading the dataset in memory", True),
    ],
)
async def test_an_error_is_an_answer_and_keeps_the_connection_unless_it_leads_to_the_wrong_server(
    answer: bytes, left: bool
) -> None:
    async with a_server() as (server, pipelined):
        writers = []
        for _ in range(2):
            (call,) = called(pipelined, "a")
            _, writer = await server.heard.get()
            writers.append(writer)
            writer.write(answer + b"\r\n")
            with pytest.raises(RedisError):
                await call
        assert (writers[0] is not writers[1]) == left


async def test_a_connection_given_up_from_outside_is_not_used_again_and_who_waits_is_told() -> None:
    async with a_server() as (server, pipelined):
        await pipelined.give_up()  # there is none yet
        assert pipelined.leads_to is None
        (waiting,) = called(pipelined, "a")
        _, first = await server.heard.get()
        assert pipelined.leads_to == first.get_extra_info("sockname")
        await pipelined.give_up()
        assert pipelined.leads_to is None
        with pytest.raises(RedisConnectionError):
            await waiting
        (again,) = called(pipelined, "b")
        text, second = await server.heard.get()
        assert (text, second is first) == (b"b", False)
        second.write(b"$1\r\nb\r\n")
        assert await again == "b"


async def test_a_call_meant_for_a_connection_that_is_gone_is_not_made_on_another() -> None:
    async with a_server() as (server, pipelined):
        task = asyncio.create_task(pipelined.call(("ECHO", "a")))
        _, writer = await server.heard.get()
        writer.write(b"$1\r\na\r\n")
        answered = await task
        (lost,) = called(pipelined, "b")
        _, writer = await server.heard.get()
        writer.close()
        with pytest.raises(RedisConnectionError):
            await lost
        (fresh,) = called(pipelined, "c")
        _, writer = await server.heard.get()
        writer.write(b"$1\r\nc\r\n")
        assert await fresh == "c"
        with pytest.raises(RedisConnectionError, match="lost"):
            await pipelined.call(("WAIT", 1, 100), on=answered.line)
        assert server.heard.empty()
