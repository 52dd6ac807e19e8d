"""Many readers of one event stream in one process: raw sockets, as little work a frame as possible.

    python -m benchmarks.subscribers URL COUNT SAMPLED

Says `{"connected": COUNT}` when every answer has begun. Ids ascend by one, so each reader compares the frames
of what it receives with how far they bring it; SAMPLED of them look at every id and note when it came.
One whose stream is closed comes back with Last-Event-ID. One line of JSON in, one out:

    {"reach": ID, "patience": S}   when all have read that id, or after S seconds without any frame: the counts
    {"arrivals": true}             [[id, when it came on time.monotonic()], …] of the sampled since the last asking
"""

import json
import os
import re
import selectors
import socket
import sys
import time
from typing import Any
from urllib.parse import urlsplit

ID = re.compile(rb"\nid: (\d+)")
RECEIVE_BYTES = 256 * 1024
TICK_S = 0.05


class Reader:
    def __init__(self, address: tuple[str, int], sampled: bool) -> None:
        self.address, self.sampled = address, sampled
        self.last = self.frames = self.lost = self.repeated = self.reconnects = 0
        self.arrivals: list[tuple[int, float]] = []
        self.connect()

    def connect(self) -> None:
        self.begun, self.rest = False, b""
        self.socket = socket.create_connection(self.address)
        resume = f"Last-Event-ID: {self.last}\r\n" if self.last else ""
        self.socket.sendall(f"GET /stream HTTP/1.1\r\nHost: {self.address[0]}\r\n{resume}\r\n".encode())
        self.socket.setblocking(False)

    def receive(self) -> bool:
        """Read what is there; whether it held frames."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        if not self.begun:
            if not (self.rest + data).startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"a subscriber was answered {data[:300]!r}")
            self.begun = True
        self.rest += data
        whole, newline, rest = self.rest.rpartition(b"\n")
        # The newline that ends the last whole line may begin the next id's mark.
        self.rest = newline + rest
        frames = whole.count(b"\nid: ")
        if frames:
            self.count(whole, frames)
        return frames > 0

    def count(self, whole: bytes, frames: int) -> None:
        now = time.monotonic()
        before = self.last or int(ID.findall(whole)[0]) - 1
        self.last = int(whole[whole.rindex(b"\nid: ") + 5 :].partition(b"\n")[0])
        missing = self.last - before - frames
        self.frames += frames
        self.lost += max(0, missing)
        self.repeated += max(0, -missing)
        if self.sampled:
            ids = list(map(int, ID.findall(whole)))
            self.repeated += missing == 0 and ids != list(range(before + 1, self.last + 1))
            self.arrivals += [(event_id, now) for event_id in ids]


class Crowd:
    def __init__(self, url: str, count: int, sampled: int) -> None:
        target = urlsplit(url)
        address = (target.hostname or "", target.port or 80)
        self.selector = selectors.DefaultSelector()
        self.readers = [Reader(address, sampled=i % max(1, count // sampled) == 0) for i in range(count)]
        for reader in self.readers:
            self.selector.register(reader.socket, selectors.EVENT_READ, reader)
        self.last_frame = time.monotonic()
        self.input = b""
        self.asked: dict[str, Any] | None = None
        self.asked_at = 0.0

    def run(self) -> None:
        while not all(reader.begun for reader in self.readers):
            self.turn()
        print(json.dumps({"connected": len(self.readers)}), flush=True)
        self.selector.register(0, selectors.EVENT_READ, None)
        while self.turn():
            self.answer()

    def turn(self) -> bool:
        """Wait for what comes next; False at the end of the input."""
        for key, _ in self.selector.select(TICK_S):
            reader: Reader | None = key.data
            if reader is None:
                said = os.read(0, 65536)
                if not said:
                    return False
                self.asked, self.asked_at = json.loads(said), time.monotonic()
                continue
            try:
                if reader.receive():
                    self.last_frame = time.monotonic()
            except EOFError:
                self.selector.unregister(reader.socket)
                reader.socket.close()
                reader.reconnects += 1
                reader.connect()
                self.selector.register(reader.socket, selectors.EVENT_READ, reader)
        return True

    def answer(self) -> None:
        if self.asked is None:
            return
        if "arrivals" in self.asked:
            found = [arrival for reader in self.readers for arrival in reader.arrivals]
            for reader in self.readers:
                reader.arrivals = []
            self.asked = None
            print(json.dumps(found), flush=True)
            return
        goal = self.asked["reach"]
        reached = sum(reader.last >= goal for reader in self.readers)
        quiet_s = time.monotonic() - max(self.last_frame, self.asked_at)
        if reached == len(self.readers) or quiet_s > self.asked["patience"]:
            self.asked = None
            print(json.dumps({"reached": reached, "last_frame": self.last_frame, **self.counts(goal)}), flush=True)

    def counts(self, goal: int) -> dict[str, int]:
        return {
            "lost": sum(reader.lost + max(0, goal - reader.last) for reader in self.readers),
            "repeated": sum(reader.repeated for reader in self.readers),
            "frames": sum(reader.frames for reader in self.readers),
            "reconnects": sum(reader.reconnects for reader in self.readers),
        }


if __name__ == "__main__":
    Crowd(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).run()
