"""TLS in front of a server that has none of its own, with certificates made for the test."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme


class Authority:
    """Signs certificates; its own lies at `ca_certs`."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self.ca_certs = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_certs)
        issued = self._ca.issue_cert("client.example.org")
        self.client_cert, self.client_key = folder / "client.pem", folder / "client-key.pem"
        issued.private_key_pem.write_to_path(self.client_key)
        self.client_cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def server_context(self, name: str = "127.0.0.1", *, wants_certificate: bool = False) -> ssl.SSLContext:
        """A server of this name; `wants_certificate`: one that takes only clients whose certificate we signed."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._ca.issue_cert(name).configure_cert(context)
        if wants_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            self._ca.configure_trust(context)
        return context


@contextmanager
def tls_front(context: ssl.SSLContext, *ports: int, at: tuple[int, ...] = ()) -> Iterator[list[int]]:
    """Take TLS on a port for each of these, and pass the words on; yield the ports, in order (`at`: these)."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    links: set[asyncio.Task[None]] = set()

    async def serve(target: int, port: int) -> asyncio.Server:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            links.add(task)
            with contextlib.suppress(OSError):
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", target)
                await asyncio.gather(_pass(reader, inner_writer), _pass(inner_reader, writer))
            links.discard(task)

        return await asyncio.start_server(take, "127.0.0.1", port, ssl=context)

    async def begin() -> list[asyncio.Server]:
        return [await serve(target, port) for target, port in zip(ports, at or (0,) * len(ports), strict=True)]

    async def finish(servers: list[asyncio.Server]) -> None:
        for server in servers:
            server.close()
        for link in list(links):
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    servers = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
    try:
        yield [server.sockets[0].getsockname()[1] for server in servers]
    finally:
        asyncio.run_coroutine_threadsafe(finish(servers), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def handshakes(context: ssl.SSLContext) -> Iterator[int]:
    """A port that shakes hands and no more; asyncio's servers keep to themselves why they refuse."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:  # closed, with the block
                return
            with connection, contextlib.suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()
