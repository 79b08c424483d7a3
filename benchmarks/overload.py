"""Offer a model several times what it can serve, and count the answers that come in time.

    .venv/bin/python benchmarks/overload.py                   three times the capacity, a second for each request
    .venv/bin/python benchmarks/overload.py --factor 10 --batch-size 1

Requests come at their times, whatever became of those before them (an open loop): callers that do not know of each
other do not slow down together. The capacity is measured first, with callers that wait for their answers. The exit
status is 1 if the answers in time are less than nine tenths of it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from load import ask
from processes import ServerProcess, free_port

GOAL = 0.9  # of the capacity
START_SECONDS = 60.0
SETTLE_SECONDS = 2.0  # of overload that are not counted: until then the queue fills
HANDLER = """\
import time

def handle(data, context):
    if data is None:
        return None
    time.sleep({seconds})
    return [b"ok"] * len(data)
"""


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="overload-") as temporary, _server(options, Path(temporary)) as port:
        return asyncio.run(_measure(options, port))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--factor", type=float, default=3.0, help="offered load in capacities (default: %(default)s)")
    parser.add_argument("--batch-ms", type=float, default=20.0, help="time of a batch (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="requests in a batch (default: %(default)s)")
    parser.add_argument("--queue", type=int, default=1000, help="jobQueueSize (default: %(default)s)")
    parser.add_argument("--deadline-ms", type=int, default=1000, help="of each request (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of overload (default: %(default)s)")
    return parser.parse_args()


@contextmanager
def _server(options: argparse.Namespace, directory: Path) -> Iterator[int]:
    model = directory / "store" / "slow"
    (model / "MAR-INF").mkdir(parents=True)
    (model / "handler.py").write_text(HANDLER.format(seconds=options.batch_ms / 1000))
    (model / "MAR-INF" / "MANIFEST.json").write_text(
        '{"model": {"modelName": "slow", "modelVersion": "1.0", "handler": "handler.py", "configFile": "c.yaml"}}'
    )
    (model / "c.yaml").write_text(
        f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {options.batch_size}\njobQueueSize: {options.queue}\n"
    )
    port = free_port()
    addresses = [f"{kind}_address=http://127.0.0.1:{port}\n" for kind in ("inference", "management", "metrics")]
    (directory / "config.properties").write_text("".join(addresses))
    command = [sys.executable, "-m", "mariner", "serve", "--models", "slow", "--model-store", str(model.parent)]
    command += ["--ts-config", str(directory / "config.properties")]
    process = ServerProcess(command, directory, os.environ)
    try:
        until = time.monotonic() + START_SECONDS
        while ask(f"http://127.0.0.1:{port}/predictions/slow", b"x", "text/plain", timeout=START_SECONDS)[0] != 200:
            if not process.running or time.monotonic() > until:
                raise SystemExit(f"The server did not start.\n{process.last_lines()}")
            time.sleep(0.05)
        yield port
    finally:
        process.stop()


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = bytes(self._received).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if found and length and len(body) >= int(length[1]):
            self._received.clear()
            self._end(int(head.split(b" ", 2)[1]), body)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (the caller sees that it ended)
        self._end(0, b"")

    def _end(self, status: int, body: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))


@dataclass
class Tally:
    """What came back; times are in seconds."""

    good: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, status: int, body: bytes, seconds: float, limit: float) -> None:
        if status == 200:
            late = seconds > limit
            self.outcomes["200, too late" if late else "200"] += 1
            if not late:
                self.good.append(seconds)
            return
        reason = re.search(rb'"reason": *"(\w+)"', body)
        self.outcomes[f"{status} {reason[1].decode() if reason else ''}".strip()] += 1
        self.refused.append(seconds)


async def _measure(options: argparse.Namespace, port: int) -> int:
    clients = Clients(port)
    capacity = await clients.closed_loop(4 * options.batch_size, seconds=3.0)
    rate = capacity * options.factor
    limit = options.deadline_ms / 1000
    filling, tally, ran = Tally(), Tally(), await _handled(port)
    await clients.open_loop(rate, options.seconds, options.deadline_ms, filling, tally)
    ran = await _handled(port) - ran
    good = len(tally.good) + len(filling.good)
    goodput = len(tally.good) / options.seconds
    print(f"capacity       {capacity:8.1f} requests/s")
    print(f"offered        {rate:8.1f} requests/s, {limit:g} s for each")
    print(f"in time        {goodput:8.1f} requests/s, {goodput / capacity:.1%} of the capacity")
    print(f"in vain        {ran - good:8.0f} of {ran:.0f} that the handler ran")
    for name, times in (("in time", tally.good), ("refused", tally.refused)):
        if len(times) > 1:
            cuts = statistics.quantiles(times, n=100)
            print(f"{name:14} p50 {cuts[49] * 1000:7.1f} ms, p99 {cuts[98] * 1000:7.1f} ms")
    for outcome, count in tally.outcomes.most_common():
        print(f"{outcome:24} {count:6}")
    return 0 if goodput >= GOAL * capacity else 1


async def _handled(port: int) -> float:
    """Requests that the handler has answered so far, whether or not somebody waited."""
    url = f"http://127.0.0.1:{port}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    found = re.findall(r"^mariner_handler_seconds_count\{.*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


class Clients:
    """Callers on as many connections as they need."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    async def closed_loop(self, callers: int, seconds: float) -> float:
        """Answers per second, each caller waiting for its answer before it asks again."""
        count = 0
        begun = time.monotonic()

        async def call() -> None:
            nonlocal count
            while time.monotonic() - begun < seconds:
                status, _ = await self._ask(None)
                count += status == 200

        await asyncio.gather(*(call() for _ in range(callers)))
        return count / (time.monotonic() - begun)

    async def open_loop(self, rate: float, seconds: float, deadline_ms: int, filling: Tally, tally: Tally) -> None:
        """Sends ``rate`` requests each second, and waits for the answers; those of the first seconds count apart."""
        running: set[asyncio.Task[None]] = set()
        begun = time.monotonic()

        async def call() -> None:
            sent = time.monotonic()
            status, body = await self._ask(deadline_ms)
            which = tally if sent >= begun + SETTLE_SECONDS else filling
            which.add(status, body, time.monotonic() - sent, deadline_ms / 1000)

        for number in range(int(rate * (SETTLE_SECONDS + seconds))):
            early = begun + number / rate - time.monotonic()
            if early > 0:
                await asyncio.sleep(early)
            task = asyncio.create_task(call())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _ask(self, deadline_ms: int | None) -> tuple[int, bytes]:
        limit = f"X-Request-Timeout-Ms: {deadline_ms}\r\n" if deadline_ms else ""
        request = f"POST /predictions/slow HTTP/1.1\r\nHost: localhost\r\n{limit}Content-Length: 1\r\n\r\nx".encode()
        if self._idle:
            connection = self._idle.pop()
        else:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._port)
        status, body = await connection.ask(request)
        if status:
            self._idle.append(connection)
        return status, body


if __name__ == "__main__":
    sys.exit(main())
