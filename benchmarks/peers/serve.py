"""Serve an ASGI application, `module:name`, with the uvicorn settings of audit-stream's own server.

Runs in the environment of the peer it serves. Says its URL and ends when its input does.
"""

import json
import os
import socket
import sys
import threading

import uvicorn


def main() -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(json.dumps({"url": f"http://127.0.0.1:{sock.getsockname()[1]}"}), flush=True)

    def end_with_input() -> None:
        sys.stdin.read()
        # Streams are open and never end by themselves; there is nothing here to put in order.
        os._exit(0)

    threading.Thread(target=end_with_input, daemon=True).start()
    config = uvicorn.Config(
        sys.argv[1], log_level="error", access_log=False, server_header=False, ws="none", http="httptools"
    )
    Server(config).run(sockets=[sock])


if __name__ == "__main__":
    main()
