"""What a connection may cost: sizes and times, on a real socket, with times short enough to wait for."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from audit_stream.server.answering import OneWrite
from audit_stream.server.bounded import HEAD_BYTES, MOST, most_connections
from audit_stream.tally import Tally

PATIENCE_S = 20
BEGIN = b"POST / HTTP/1.1\r\nHost: a\r\n"


class Patient(OneWrite):
    linger_s = PATIENCE_S
    most = 3


class Hasty(Patient):
    head_s = body_s = 0.2


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the body, or with nothing when the client went away; /early does not wait for it."""
    body, more = b"", scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        return int(head.split()[1]), await self.reader.readexactly(length)

    async def refusal(self) -> int:
        """Return the status of the answer, after which the connection is closed."""
        status, body = await self.answer()
        assert json.loads(body)["status"] == status
        assert await self.reader.read() == b""
        return status


Connect = Callable[[], Awaitable[Client]]


@asynccontextmanager
async def serving(protocol: type[OneWrite]) -> AsyncIterator[Connect]:
    config, state, clients = (
        uvicorn.Config(echo, http=protocol, lifespan="off", ws="none", log_config=None),
        ServerState(),
        [],
    )
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config, state, {}, tally=Tally()), "127.0.0.1", 0
    )

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection(*server.sockets[0].getsockname())))
        return clients[-1]

    async with server, asyncio.timeout(PATIENCE_S):
        yield connect
        for client in clients:
            client.writer.close()


def run(protocol: type[OneWrite], talk: Callable[[Connect], Awaitable[None]]) -> None:
    async def talking() -> None:
        async with serving(protocol) as connect:
            await talk(connect)

    asyncio.run(talking())


@pytest.mark.parametrize("piece", [1_000, 50_000, HEAD_BYTES, 10 * HEAD_BYTES])
@pytest.mark.parametrize("line", [b"x: y\r\n", b"x" * 100], ids=["many headers", "one header"])
def test_a_head_that_does_not_end_is_refused(piece: int, line: bytes) -> None:
    async def talk(connect: Connect) -> None:
        client = await connect()
        text = BEGIN + b"x: " + line * (10 * HEAD_BYTES // len(line))
        for start in range(0, len(text), piece):
            client.writer.write(text[start : start + piece])
        assert await client.refusal() == 431

    run(Patient, talk)


def test_a_head_below_the_limit_is_taken_again_and_again_and_a_body_has_no_part_in_it() -> None:
    async def talk(connect: Connect) -> None:
        client = await connect()
        for size in (HEAD_BYTES - 200, 10, HEAD_BYTES - 200):
            for body in (b"", b"x" * (5 * HEAD_BYTES)):
                head = BEGIN + b"x: %b\r\ncontent-length: %d\r\n\r\n" % (b"y" * size, len(body))
                client.writer.write(head[:100])
                await client.writer.drain()
                client.writer.write(head[100:] + body)
                assert await client.answer() == (200, body)

    run(Patient, talk)


def test_pipelined_requests_are_taken_however_they_are_cut() -> None:
    async def talk(connect: Connect) -> None:
        client, body = await connect(), b"x" * 40_000
        text = (BEGIN + b"content-length: 40000\r\n\r\n" + body) * 12
        client.writer.write(text)
        for _ in range(12):
            assert await client.answer() == (200, body)

    run(Patient, talk)


@pytest.mark.parametrize("begin", [b"P", BEGIN, b"\r\nGET / HTTP/1.1\r\nx"])
def test_a_head_that_stops_coming_is_refused(begin: bytes) -> None:
    async def talk(connect: Connect) -> None:
        client = await connect()
        client.writer.write(begin)
        assert await client.refusal() == 408
        again = await connect()
        again.writer.write(BEGIN + b"content-length: 0\r\n\r\n")
        assert await again.answer() == (200, b"")
        again.writer.write(begin)
        assert await again.refusal() == 408

    run(Hasty, talk)


def test_a_head_that_trickles_is_refused_all_the_same() -> None:
    async def talk(connect: Connect) -> None:
        client = await connect()
        refusal = asyncio.create_task(client.refusal())
        client.writer.write(BEGIN)
        while not refusal.done():
            client.writer.write(b"x: y\r\n")
            await asyncio.sleep(0.01)
        assert refusal.result() == 408

    run(Hasty, talk)


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"])
def test_a_connection_that_asks_for_nothing_is_closed(sent: bytes) -> None:
    async def talk(connect: Connect) -> None:
        client = await connect()
        client.writer.write(sent)
        assert await client.reader.read() == b""

    run(Hasty, talk)


@pytest.mark.parametrize("part", [b"content-length: 9\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"])
def test_a_body_that_stops_coming_is_refused(part: bytes) -> None:
    async def talk(connect: Connect) -> None:
        client = await connect()
        client.writer.write(BEGIN + part)
        assert await client.refusal() == 408

    run(Hasty, talk)


def test_a_body_that_keeps_coming_is_taken_whole_however_long_it_takes() -> None:
    async def talk(connect: Connect) -> None:
        client = await connect()
        client.writer.write(BEGIN + b"content-length: 40\r\n\r\n")
        for _ in range(40):  # twice the limit in all, a twentieth of it for each
            client.writer.write(b"x")
            await asyncio.sleep(Hasty.body_s / 20)
        assert await client.answer() == (200, b"x" * 40)

    run(Hasty, talk)


def test_where_the_answer_came_early_a_body_that_stops_coming_only_closes() -> None:
    async def talk(connect: Connect) -> None:
        client = await connect()
        client.writer.write(BEGIN.replace(b"/ ", b"/early ") + b"content-length: 9\r\n\r\nabc")
        assert await client.answer() == (200, b"")
        assert await client.reader.read() == b""

    run(Hasty, talk)


def test_one_connection_too_many_is_refused_until_another_one_ends() -> None:
    async def talk(connect: Connect) -> None:
        clients = [await connect() for _ in range(Patient.most)]
        for client in clients:
            client.writer.write(BEGIN + b"content-length: 0\r\n\r\n")
            assert await client.answer() == (200, b"")
        assert await (await connect()).refusal() == 503
        clients[0].writer.close()
        await clients[0].writer.wait_closed()
        while True:
            other = await connect()
            other.writer.write(BEGIN + b"content-length: 0\r\n\r\n")
            if (await other.answer())[0] == 200:  # the server has seen that the two are gone
                return
            other.writer.close()

    run(Patient, talk)


def test_the_bound_leaves_descriptors_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((1024, 824), (256, 128), (65_536, MOST), (-1, MOST)):
        monkeypatch.setattr("audit_stream.server.bounded.getrlimit", lambda _, soft=soft: (soft, -1))
        assert most_connections() == most
