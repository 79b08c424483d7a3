"""Does memory stay where it is? A server under mixed load for minutes; the memory of each of its processes over time.

    .venv/bin/python benchmarks/soak.py            30 minutes
    .venv/bin/python benchmarks/soak.py --minutes 5

The load is what makes servers grow: small and large bodies, handlers that raise, clients that leave before the answer,
connections that come and go, a model that is registered and unregistered again and again. The exit status is 1 if a
process has grown by more than the bound between the second and the last fifth of the time, or an answer was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from statistics import linear_regression, median

import psutil
from processes import ServerProcess, free_port

MIB = 1 << 20
BOUND = 1.0  # MiB; what the allocators of a steady process may still shift
LARGE = 300_000  # bytes; beyond what travels in a frame
ACTS = {"small": 4, "large": 1, "failing": 1, "leaving": 1, "registering": 1}  # clients that do so
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # characters of a line of bars
HANDLER = """
def handle(data, context):
    if data is None:
        return None
    bodies = [row.get("body", b"") for row in data]
    if any(bytes(body) == b"raise" for body in bodies):
        raise ValueError("as it was asked to")
    return [str(len(body)) for body in bodies]
"""
TORCH_HANDLER = """
import torch

model = None

def handle(data, context):
    global model
    if data is None:
        model = torch.nn.Linear(64, 64).eval()
        return None
    with torch.inference_mode():
        return [str(model(torch.ones(1, 64)).shape[1]) for _ in data]
"""


class Soak:
    """Clients of one server, and what they saw."""

    def __init__(self, inference: int, management: int, pause: float) -> None:
        self.inference = inference
        self.management = management
        self.pause = pause
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def ask(self, port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            return await self._exchange(reader, writer, method, path, body)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: bytes
    ) -> tuple[int, bytes]:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = next(int(line[15:]) for line in answer.split("\r\n") if line.lower().startswith("content-length:"))
        return int(answer[9:12]), await reader.readexactly(length)

    def expect(self, what: str, found: tuple[int, bytes], status: int, body: bytes | None = None) -> None:
        self.seen[what] += 1
        if found[0] != status or (body is not None and found[1] != body):
            self.wrong.append(f"{what}: {found[0]} {found[1][:200]!r}")

    async def small(self) -> None:
        """Many requests on one connection, which is closed then."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.inference)
        with closing(writer):
            for _ in range(random.randrange(1, 400)):
                size = random.randrange(1, 2000)
                found = await self._exchange(reader, writer, "POST", "/predictions/plain", bytes(size))
                self.expect("small", found, 200, str(size).encode())
                found = await self._exchange(reader, writer, "POST", "/predictions/torch", b"x")
                self.expect("torch", found, 200, b"64")

    async def large(self) -> None:
        size = random.randrange(LARGE, 4 * LARGE)
        found = await self.ask(self.inference, "POST", "/predictions/plain", bytes(size))
        self.expect("large", found, 200, str(size).encode())
        await asyncio.sleep(0.02)

    async def failing(self) -> None:
        found = await self.ask(self.inference, "POST", "/predictions/plain", b"raise")
        self.expect("raises", found, 503)
        self.expect("no model", await self.ask(self.inference, "POST", f"/predictions/m{random.random()}"), 404)
        await asyncio.sleep(0.02)

    async def leaving(self) -> None:
        """A client that does not wait for its answer, or not even sends all of its request."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.inference)
        length = random.choice((10, LARGE))
        writer.write(f"POST /predictions/plain HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n".encode())
        writer.write(bytes(random.choice((length, length // 2))))
        writer.close()
        self.seen["leaves"] += 1
        await asyncio.sleep(0.02)

    async def registering(self) -> None:
        url = "/models?url=plain&model_name=guest&initial_workers=1&synchronous=true"
        self.expect("registers", await self.ask(self.management, "POST", url), 200)
        self.expect("describes", await self.ask(self.management, "GET", "/models/guest"), 200)
        self.expect("guest", await self.ask(self.inference, "POST", "/predictions/guest", b"abc"), 200, b"3")
        self.expect("unregisters", await self.ask(self.management, "DELETE", "/models/guest"), 200)
        await asyncio.sleep(self.pause)

    async def repeat(self, act: Callable[[], Awaitable[None]], until: float) -> None:
        while time.monotonic() < until:
            try:
                await act()
            except (OSError, asyncio.IncompleteReadError) as error:  # noqa: PERF203 - a client that fails goes on
                self.wrong.append(f"{act.__name__}: {error!r}")


class Memory:
    """Resident memory of a server, of its template and of its lasting workers, over time."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._names: dict[int, str] = {}
        self._numbers = count(1)
        self.series: dict[str, list[tuple[float, float]]] = defaultdict(list)  # seconds and MiB by process

    async def watch(self, until: float, interval: float) -> None:
        begun = time.monotonic()
        while time.monotonic() < until:
            for process in self._server.tree():
                with suppress(psutil.Error):
                    resident = process.memory_info().rss / MIB
                    self.series[self.name(process)].append((time.monotonic() - begun, resident))
            await asyncio.sleep(interval)

    def name(self, process: psutil.Process) -> str:
        if process.pid not in self._names:
            words = " ".join(process.cmdline())
            kind = "template" if "ts.template" in words else "worker" if "ts.worker" in words else "server"
            if kind == "template" and "template" in self._names.values():
                kind = "worker"  # forked from it, under its name
            number = f" {next(self._numbers)}" if kind == "worker" else ""
            self._names[process.pid] = f"{kind}{number}"
        return self._names[process.pid]


def report(memory: Memory, seconds: float, bound: float) -> bool:
    """Prints a line for each process that was there all the time; whether none has grown beyond the bound."""
    good = True
    for name, series in memory.series.items():
        if series[-1][0] - series[0][0] < 0.9 * seconds:
            continue  # a guest
        values = [value for _, value in series]
        fifth = len(values) // 5
        early, late = median(values[fifth : 2 * fifth]), median(values[-fifth:])
        later = series[fifth:]
        slope = linear_regression([at for at, _ in later], [value for _, value in later]).slope * 3600
        verdict = "flat" if late - early <= bound else f"GROWS beyond {bound:g} MiB"
        good = good and late - early <= bound
        print(f"{name:<10} {bars(values)}")
        print(
            f"{'':<10} {early:8.1f} MiB, then {late:8.1f} MiB: {late - early:+.2f} MiB, {slope:+.1f} MiB/h; {verdict}"
        )
    return good


def bars(values: list[float]) -> str:
    """How the values go, between the lowest and the highest; within a MiB they are flat."""
    step = -(-len(values) // WIDTH)
    points = [max(values[at : at + step]) for at in range(0, len(values), step)]
    low, high = min(points), max(points)
    scale = (len(BARS) - 1) / max(1.0, high - low)
    return "".join(BARS[round((point - low) * scale)] for point in points)


def put_model(store: Path, name: str, handler: str) -> None:
    place = store / name / "MAR-INF"
    place.mkdir(parents=True)
    (store / name / "handler.py").write_text(handler)
    model = {"modelName": name, "modelVersion": "1.0", "handler": "handler.py"}
    place.joinpath("MANIFEST.json").write_text(json.dumps({"runtime": "python", "model": model}))


async def soak(options: argparse.Namespace, directory: Path) -> bool:
    store = directory / "store"
    put_model(store, "plain", HANDLER)
    put_model(store, "torch", TORCH_HANDLER)
    inference, management = free_port(), free_port()
    addresses = {"inference": inference, "management": management, "metrics": free_port()}
    flags = [f"--{name}-address=http://127.0.0.1:{port}" for name, port in addresses.items()]
    command = [
        sys.executable,
        "-m",
        "mariner",
        "serve",
        "--model-store",
        str(store),
        "--models",
        "plain",
        "torch",
        *flags,
    ]
    workers = ["--default-workers-per-model", "2"]
    with running([*command, *workers], directory) as server:
        clients = Soak(inference, management, options.pause)
        await ready(server, clients)
        seconds = options.minutes * 60
        until = time.monotonic() + seconds
        acts = [getattr(clients, name) for name in options.acts for _ in range(ACTS[name])]
        memory = Memory(server)
        await asyncio.gather(memory.watch(until, options.interval), *(clients.repeat(act, until) for act in acts))
        good = report(memory, seconds, options.bound)
        print(", ".join(f"{number:,} {what}" for what, number in clients.seen.most_common()))
        for line in clients.wrong[:10]:
            print(f"WRONG {line}")
        return good and not clients.wrong


@contextmanager
def running(command: list[str], directory: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(command, directory, {**os.environ, "TMPDIR": str(directory)})
    try:
        yield server
    finally:
        server.stop()


async def ready(server: ServerProcess, clients: Soak) -> None:
    for _ in range(600):
        with suppress(OSError):
            if (await clients.ask(clients.inference, "GET", "/v2/health/ready"))[0] == 200:
                return
        if not server.running:
            break
        await asyncio.sleep(0.1)
    raise SystemExit(f"The server does not become ready:\n{server.last_lines()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two looks at the memory")
    parser.add_argument("--bound", type=float, default=BOUND, help="MiB that a process may grow by")
    parser.add_argument("--acts", nargs="+", choices=ACTS, default=list(ACTS), help="only these, to find what grows")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two registrations")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        return 0 if asyncio.run(soak(options, Path(directory))) else 1


if __name__ == "__main__":
    sys.exit(main())
