"""Producers in processes of their own, and what they were answered.

Run as `python -m tests.faults.load SPEC`, this appends until its plan or its standard input ends. Every request
is sent again under the same idempotency key until it is answered; each answer is printed as a line of JSON.
`Load` starts such processes, lets them go at the same moment and collects the answers.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Self

import httpx
import msgspec

from audit_stream.appender import Appender
from audit_stream.errors import Pushback, Unreachable
from audit_stream.event import PublishRequest, draft, to_json
from audit_stream.kinds import with_extra
from audit_stream.settings import Hashing
from audit_stream.stream import Stream
from tests.harness import ROOT, clean_environ

PATIENCE_S = 60
PAUSE_S = 0.02
KINDS = with_extra(())
TEXTS = ("plain", 'quo"ted\\', "naïve ☃ 🙂", "tab\tand\x00nul", "")


class Spec(msgspec.Struct, kw_only=True):
    """What one producer does. With `urls` it goes over HTTP, else with an Appender of its own to `redis_url`."""

    name: str
    seed: int = 1
    events: int | None = None
    """None: until its standard input is closed."""
    tasks: int = 8
    largest: int = 40
    """Events in the largest batch."""
    think_s: float = 0
    """Each task's pause between two requests: leaves the processors to whoever is being started."""
    urls: list[str] = []
    redis_url: str = ""
    chain: str = ""
    hashing: Hashing = "checked"


class Answer(msgspec.Struct):
    request: str
    replayed: bool
    events: list[dict[str, Any]]


class NotYet(Exception):
    """No answer, or one that says: retry."""


Body = dict[str, Any]
Append = Callable[[str, list[Body]], Awaitable[tuple[bool, list[dict[str, Any]]]]]


def plan(spec: Spec) -> Iterator[tuple[str, list[Body]]]:
    """Requests, single and batch mixed: (idempotency key, events). Each event says whose it is, and its place."""
    rng = random.Random(f"{spec.seed} {spec.name}")
    left = spec.events
    for number in itertools.count(1):
        if left == 0:
            return
        size = 1 if rng.random() < 0.6 else rng.randint(2, spec.largest)
        if left is not None:
            size = min(size, left)
            left -= size
        name = f"{spec.name}-{number}"
        yield name, [_body(rng, spec.name, name, place, size) for place in range(size)]


def _body(rng: random.Random, source: str, request: str, place: int, size: int) -> Body:
    payload = {"request": request, "place": place, "size": size, "text": rng.choice(TEXTS) * rng.randint(1, 20)}
    body: Body = {"kind": rng.choice(KINDS), "source": source, "payload": payload | {"number": rng.random()}}
    if rng.random() < 0.2:
        body["timestamp"] = f"2026-05-15T03:14:{rng.randint(10, 59)}+02:00"
    return body


# --- one producer


async def produce(spec: Spec) -> None:
    async with AsyncExitStack() as stack:
        append = await (_over_http(spec, stack) if spec.urls else _directly(spec, stack))
        requests, ended = plan(spec), asyncio.Event()

        async def work() -> None:
            while not ended.is_set() and (request := next(requests, None)):
                key, bodies = request
                replayed, events = await _until_answered(append, key, bodies)
                sys.stdout.buffer.write(msgspec.json.encode(Answer(key, replayed, events)) + b"\n")
                sys.stdout.buffer.flush()
                await asyncio.sleep(spec.think_s)

        async def watch() -> None:
            await asyncio.to_thread(sys.stdin.read)
            ended.set()

        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        watching = asyncio.create_task(watch()) if spec.events is None else None
        await asyncio.gather(*(work() for _ in range(spec.tasks)))
        if watching:
            await watching


async def _until_answered(append: Append, key: str, bodies: list[Body]) -> tuple[bool, list[dict[str, Any]]]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await append(key, bodies)
            except NotYet:
                await asyncio.sleep(PAUSE_S)


async def _over_http(spec: Spec, stack: AsyncExitStack) -> Append:
    limits = httpx.Limits(max_connections=spec.tasks, max_keepalive_connections=spec.tasks)
    client = await stack.enter_async_context(httpx.AsyncClient(timeout=10, limits=limits, trust_env=False))
    urls = itertools.cycle(spec.urls)

    async def append(key: str, bodies: list[Body]) -> tuple[bool, list[dict[str, Any]]]:
        path, content = ("/events/batch", bodies) if len(bodies) > 1 else ("/events", bodies[0])
        try:
            answer = await client.post(next(urls) + path, json=content, headers={"Idempotency-Key": key})
        except httpx.TransportError as error:
            raise NotYet from error
        if answer.status_code == 503 and answer.headers["retry-after"]:
            raise NotYet
        if answer.status_code not in (200, 201):
            raise RuntimeError(f"{key} was answered {answer.status_code}: {answer.text}")
        events = answer.json() if len(bodies) > 1 else [answer.json()]
        return answer.headers.get("idempotent-replayed") == "true", events

    return append


async def _directly(spec: Spec, stack: AsyncExitStack) -> Append:
    stream = Stream.at(spec.redis_url, spec.chain)
    stack.push_async_callback(stream.close)
    appender = await stack.enter_async_context(
        Appender(stream, hashing=spec.hashing, idempotency_ttl=timedelta(hours=1))
    )
    kinds = frozenset(KINDS)

    async def append(key: str, bodies: list[Body]) -> tuple[bool, list[dict[str, Any]]]:
        drafts = [
            draft(msgspec.convert(body, PublishRequest), kinds, once=f"{key}:{place}")
            for place, body in enumerate(bodies)
        ]
        try:
            receipts = await appender.append(drafts)
        except (Pushback, Unreachable) as error:
            raise NotYet from error
        return all(receipt.replayed for receipt in receipts), [json.loads(to_json(r.event)) for r in receipts]

    return append


# --- all of them


class Load:
    """Producers under way. Leaving the block ends whatever still runs; `finish` is the way to the answers."""

    def __init__(self, *specs: Spec) -> None:
        self._specs = specs
        self._answers: list[Answer] = []
        self._news = threading.Condition()
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        environ = clean_environ(PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{ROOT}")
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.faults.load", msgspec.json.encode(spec).decode()],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for spec in self._specs
        ]
        try:
            for process in self._processes:
                assert process.stdout
                assert process.stdout.readline() == b"ready\n"
            for process in self._processes:
                assert process.stdin
                process.stdin.write(b"go\n")
                process.stdin.flush()
        except BaseException:
            self.__exit__()
            raise
        self._readers = [threading.Thread(target=self._collect, args=(process,)) for process in self._processes]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for reader in self._readers:
            reader.join()
        for process in self._processes:
            assert process.stdin
            assert process.stdout
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()

    def _collect(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout
        for line in process.stdout:
            answer = msgspec.json.decode(line, type=Answer)
            with self._news:
                self._answers.append(answer)
                self._news.notify_all()

    def wait_for(self, more: int) -> None:
        """Wait until this many more requests are answered than now."""
        with self._news:
            target = len(self._answers) + more
            assert self._news.wait_for(lambda: len(self._answers) >= target, PATIENCE_S), (
                f"{len(self._answers)} answers, but not {target}"
            )

    def answers(self) -> list[Answer]:
        """All that was answered until now."""
        with self._news:
            return list(self._answers)

    def finish(self) -> list[Answer]:
        """Let every producer get its last answer; return all the answers."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        for process, reader in zip(self._processes, self._readers, strict=True):
            reader.join(PATIENCE_S)
            assert process.wait(PATIENCE_S) == 0, "a producer gave up: its standard error says what it was answered"
        return self._answers


if __name__ == "__main__":
    asyncio.run(produce(msgspec.json.decode(sys.argv[1], type=Spec)))
