"""Sends generated rubbish to a server in this process, over real sockets, and looks at what comes back.

    make fuzz-http                                                            200,000 inputs
    PYTHONPATH=tests .venv/bin/python tests/fuzz/http_fuzzer.py --only 4711   the input of one seed, with what was sent

What has to hold: every answer is one that ``http_oracle`` allows, in order and once per request; nothing hangs;
nothing is a 500 or an error in the log; an honest client is served all the while; afterwards nothing is left open.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import uvloop
from http_inputs import Ending, Input, make_input
from http_oracle import Bounds, Expected, expected_answers
from http_wires import TlsWire, Wire
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mariner.address import Address
from mariner.auth import Access, Listener
from mariner.bodies import Arena
from mariner.config import Config, TokenMode
from mariner.devices import Accelerators
from mariner.http.app import App
from mariner.http.connections import Limits
from mariner.http.listener import HttpListener
from mariner.jobs import Request
from mariner.metrics import Metrics
from mariner.model_server import ModelServer
from mariner.testing import FakeClock, FakeEngine
from tls_files import make_pair
from ts.wire import Shared

INPUTS = 200_000
BATCH = 48  # connections at once
PATIENCE = 10.0  # seconds for one connection; what takes longer hangs
BOUNDS = Bounds(body=20_000, head=4_000)
LIMITS = Limits(max_request_size=BOUNDS.body, max_header_size=BOUNDS.head, shared_body_threshold=2_000)
REFUSALS = {400, 408, 413, 417}  # after these nobody may know where the next request begins
GROWTH = 24 << 20  # bytes by which the process may grow after the first tenth of a run
HANDLER = "def handle(data, context):\n    raise AssertionError('the engine is a fake')\n"
MANIFEST = '{"runtime": "python", "model": {"modelName": "echo", "modelVersion": "1.0", "handler": "handler.py"}}'


class Wrong(AssertionError):
    """Something did not hold."""


@dataclass(frozen=True)
class Answer:
    """What came back, as far as it matters here."""

    status: int
    body: bytes
    closes: bool


@dataclass
class Figures:
    """What a run saw."""

    inputs: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    honest: int = 0
    seconds: float = 0.0
    growth: int = 0

    def __str__(self) -> str:
        statuses = ", ".join(f"{status}: {count:,}" for status, count in sorted(self.answers.items()))
        return (
            f"{self.inputs:,} inputs in {self.seconds:.0f} s; answers {statuses}; {self.honest:,} predictions of an "
            f"honest client beside them; {self.growth / 1e6:+.1f} MB"
        )


# -- the server ------------------------------------------------------------------------------------------------------


class Target:
    """The HTTP layer and the model server as they are, with a fake engine, on every kind of listener."""

    def __init__(self, place: Path) -> None:
        self.arena = Arena(1 << 24)
        self.engine = FakeEngine(self._echo)
        self.now = 1000.0
        store, unpacked = place / "store", place / "unpacked"
        (store / "echo" / "MAR-INF").mkdir(parents=True)
        (store / "echo" / "handler.py").write_text(HANDLER)
        (store / "echo" / "MAR-INF" / "MANIFEST.json").write_text(MANIFEST)
        unpacked.mkdir()
        self.models = ModelServer(
            Config(model_store=store),
            engine=self.engine,
            clock=FakeClock(),
            metrics=Metrics(),
            accelerators=Accelerators(),
            temp_dir=unpacked,
        )
        self.tcp = self._listener("http://127.0.0.1:0", lambda: 1000.0)
        self.unix = self._listener(f"unix:{place / 'socket'}", lambda: 1000.0)
        self.stalling = self._listener("http://127.0.0.1:0", lambda: self.now)
        pair = make_pair(place / "tls")
        self.client_tls = pair.client_context()
        self.tls = self._listener("https://127.0.0.1:0", lambda: 1000.0, pair.server_context())
        self.clock_in_use = asyncio.Lock()

    def _listener(self, address: str, clock: Callable[[], float], tls: ssl.SSLContext | None = None) -> HttpListener:
        app = App(self.models, Access(TokenMode.AUTO), (Listener.INFERENCE,))
        return HttpListener(Address.parse(address), app, limits=LIMITS, arena=self.arena, tls=tls, clock=clock)

    @property
    def listeners(self) -> tuple[HttpListener, ...]:
        return self.tcp, self.unix, self.stalling, self.tls

    async def start(self) -> None:
        await self.models.load_initial_models(("echo",))
        await self.models.wait_until_ready()
        for listener in self.listeners:
            await listener.start()

    async def stop(self) -> None:
        for listener in self.listeners:
            await listener.close()
        await self.models.drain(0.0)
        self.arena.close()

    def connections(self) -> int:
        return sum(len(listener._connections) for listener in self.listeners)

    def forget(self) -> None:
        """The fake engine keeps every batch for tests to look at."""
        for process in self.engine.processes:
            process.batches.clear()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.stalling._connections.sweep()

    def _echo(self, requests: Sequence[Request]) -> list[bytes]:
        return [self._first_value(request) for request in requests]

    def _first_value(self, request: Request) -> bytes:
        value = request.parts[0].value if request.parts else b""
        if isinstance(value, Shared):
            return bytes(self.arena.view[value.offset : value.offset + value.size])
        return bytes(cast("bytes", value))


# -- one connection --------------------------------------------------------------------------------------------------


async def play(target: Target, wire: Wire, made: Input) -> tuple[bytes, bool]:
    """Sends an input; what came back until the end of the connection, and whether everything was sent."""
    try:
        await wire.connect()
    except ConnectionError:
        return b"", False
    if made.ending is Ending.STALL:
        whole = await _send(wire, made)
        return await _read_to_the_end(target, wire), whole
    # Who pipelines has to read meanwhile: each side may be waiting for the other to take something.
    reading = asyncio.ensure_future(_read_to_the_end(None, wire))
    try:
        whole = await _send(wire, made)
        if made.ending is Ending.FINISH:
            wire.finish()
            return await reading, whole
    finally:
        reading.cancel()
    await asyncio.wait([reading])
    if made.ending is Ending.LEAVE:
        wire.leave()
    return b"", whole


async def _send(wire: Wire, made: Input) -> bool:
    try:
        for piece, pause in zip(made.pieces, made.pauses, strict=True):
            await wire.send(piece)
            for _ in range(pause):
                await asyncio.sleep(0)
    except ConnectionError:
        return False
    return True


async def _read_to_the_end(stalled: Target | None, wire: Wire) -> bytes:
    received = []
    while True:
        while stalled is not None:
            # Whoever stalls is waiting for the deadlines of the server, which has a clock of its own here.
            for _ in range(20):
                await asyncio.sleep(0)
            if wire.readable:
                break
            stalled.pass_time(400.0)
        piece = await wire.receive()
        if not piece:
            return b"".join(received)
        received.append(piece)


def read_answers(data: bytes, expected: Sequence[Expected]) -> list[Answer]:
    """Takes apart what came back.

    Raises:
        Wrong: it is no sequence of answers.
    """
    answers: list[Answer] = []
    position = 0
    while position < len(data):
        end = data.find(b"\r\n\r\n", position)
        if end < 0 or not data.startswith(b"HTTP/1.1 ", position):
            raise Wrong(f"no answer begins here: {data[position : position + 80]!r}")
        lines = data[position:end].split(b"\r\n")
        position = end + 4
        status = int(lines[0].split(b" ")[1])
        if status == 100:
            continue
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
        if len(headers) != len(lines) - 1 or b"x-request-id" not in headers:
            raise Wrong(f"the headers are not as they should be: {lines!r}")
        size = int(headers[b"content-length"])
        body = data[position : position + size]
        asked = expected[len(answers)] if len(answers) < len(expected) else None
        if asked is not None and asked.head and (not body or data.startswith(b"HTTP/1.1 ", position)):
            body = b""
        elif len(body) < size:
            raise Wrong(f"an answer was cut off after {len(body)} of {size} bytes")
        position += len(body)
        answers.append(Answer(status, body, headers[b"connection"] == b"close"))
    return answers


def judge(made: Input, received: bytes, *, whole: bool) -> list[Answer]:
    """Compares what came back with what may come back.

    Raises:
        Wrong: it is something else.
    """
    expected = list(expected_answers(made.sent, BOUNDS))
    answers = read_answers(received, expected)
    for number, wanted in enumerate(expected):
        if number == len(answers):
            if not wanted.optional:
                raise Wrong(f"request {number} got no answer; allowed: {wanted.statuses}")
            break
        more = number + 1 < len(expected) and not expected[number + 1].optional
        try:
            is_last = _compare(answers[number], wanted, stalled=made.ending is Ending.STALL, more=more)
        except Wrong as wrong:
            raise Wrong(f"request {number} {wrong}") from None
        if is_last:
            expected = expected[: number + 1]
            break
    if len(answers) > len(expected):
        raise Wrong(f"{len(expected)} requests got {len(answers)} answers")
    if not whole and not (answers and answers[-1].closes):
        raise Wrong("the connection ended while the client was sending, without an answer that says so")
    return answers


def _compare(answer: Answer, wanted: Expected, *, stalled: bool, more: bool) -> bool:
    """Whether this answer, which is a good one, is the last of its connection."""
    statuses = wanted.statuses | ({408} if stalled and wanted.optional else set())
    if answer.status not in statuses:
        raise Wrong(f"was answered {answer.status}; allowed: {statuses}")
    if answer.status == 200 and wanted.body is not None and not wanted.head and answer.body != wanted.body:
        raise Wrong(f"was answered with {answer.body[:80]!r} instead of {wanted.body[:80]!r}")
    if not answer.closes:
        if wanted.closes and not wanted.optional:
            raise Wrong("did not end the connection")
        return False
    if answer.status in REFUSALS or wanted.closes is not False:
        return True
    if more:
        raise Wrong("ended the connection, and more follow")
    return False  # the client has finished sending


def judge_refusal(made: Input, received: bytes) -> list[Answer]:
    """What comes back from a TLS listener to a client that does not speak TLS.

    Raises:
        Wrong: it is something else.
    """
    head = received.partition(b"\r\n")[0]
    tls = made.sent[:1] == b"\x16"  # what follows may be anything, and so may the answer
    if not tls and head not in ({b"", b"HTTP/1.1 403 Forbidden"} if not made.sent else {b"HTTP/1.1 403 Forbidden"}):
        raise Wrong(f"plain HTTP to a TLS listener was answered {head!r}")
    return [Answer(403, b"", closes=True)] * bool(head)


# -- the run ---------------------------------------------------------------------------------------------------------


class HonestClient:
    """Asks good questions on a connection of its own while the others send rubbish."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.asked = 0

    async def start(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._target.tcp.address.port)

    async def ask(self) -> None:
        self.asked += 1
        body = b"%d " % self.asked * (1 + self.asked % 700)
        self._writer.write(b"POST /predictions/echo HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 ") or await self._reader.readexactly(len(body)) != body:
            raise Wrong(f"an honest request was answered with {head!r}")

    async def stop(self) -> None:
        self._writer.transport.abort()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


class _Complaints(logging.Handler):
    """Errors in the log of the server; warnings are about clients."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


async def fuzz(first_seed: int, count: int, advance: Callable[[int], object] = lambda _done: None) -> Figures:
    """Plays the inputs of ``count`` seeds.

    Args:
        first_seed: and those that follow it.
        count: how many.
        advance: told how many more are done.

    Raises:
        Wrong: something did not hold; the message names the seed.
    """
    complaints = _Complaints()
    logging.getLogger().addHandler(complaints)
    figures = Figures()
    began = time.monotonic()
    settled = 0
    async with AsyncExitStack() as stack:
        stack.callback(logging.getLogger().removeHandler, complaints)
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-"))
        target = Target(Path(place))
        await target.start()
        stack.push_async_callback(target.stop)
        honest = HonestClient(target)
        await honest.start()
        stack.push_async_callback(honest.stop)
        for start in range(first_seed, first_seed + count, BATCH):
            seeds = range(start, min(start + BATCH, first_seed + count))
            played = await asyncio.gather(
                *(_check(target, seed) for seed in seeds), _ask(honest), return_exceptions=True
            )
            for result in played:
                if isinstance(result, BaseException):
                    raise result  # the others have ended too
                answers, made = result
                figures.answers.update(answer.status for answer in answers)
                figures.endings[made.ending.name if made else "HONEST"] += 1
            if complaints.records:
                raise Wrong(f"seeds {seeds.start} to {seeds.stop - 1}: the server logged {complaints.records[0]}")
            target.forget()
            advance(len(seeds))
            figures.inputs += len(seeds)
            if not settled and figures.inputs * 10 >= count:
                settled = _memory()
        await honest.stop()
        await _until_quiet(target)
        figures.growth = _memory() - settled
        if figures.growth > GROWTH:
            raise Wrong(f"the process grew by {figures.growth:,} bytes")
    figures.honest = honest.asked
    figures.seconds = time.monotonic() - began
    return figures


async def _check(target: Target, seed: int) -> tuple[list[Answer], Input | None]:
    made = make_input(seed)
    wire, kind = _choose_wire(target, seed, made)
    try:
        async with AsyncExitStack() as stack:
            stack.callback(wire.close)
            if made.ending is Ending.STALL:
                await stack.enter_async_context(target.clock_in_use)
            await stack.enter_async_context(asyncio.timeout(PATIENCE))
            received, whole = await play(target, wire, made)
        if made.ending in {Ending.LEAVE, Ending.RESET}:
            return [], made
        if kind == "no TLS":
            return judge_refusal(made, received), made
        return judge(made, received, whole=whole), made
    except TimeoutError:
        raise Wrong(f"seed {seed} ({kind}, {made.ending.name}): the connection hangs") from None
    except Wrong as wrong:
        raise Wrong(f"seed {seed} ({kind}, {made.ending.name}): {wrong}") from None


def _choose_wire(target: Target, seed: int, made: Input) -> tuple[Wire, str]:
    if made.ending is Ending.STALL:
        return Wire(target.stalling.address), "TCP"
    match seed % 16:
        case 1 | 2:
            return TlsWire(target.tls.address, target.client_tls, goodbye=seed % 2 == 0), "TLS"
        case 3:
            return Wire(target.tls.address), "no TLS"
        case 4 | 5 | 6 | 7:
            return Wire(target.unix.address), "Unix socket"
    return Wire(target.tcp.address), "TCP"


async def _ask(honest: HonestClient) -> tuple[list[Answer], None]:
    async with asyncio.timeout(PATIENCE):
        await honest.ask()
    return [], None


async def _until_quiet(target: Target) -> None:
    """Nothing is open and nothing is held, soon after the last client has gone."""
    try:
        async with asyncio.timeout(PATIENCE):
            while target.connections() or target.arena.used:  # noqa: ASYNC110 - what is looked at has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise Wrong(f"{target.connections()} connections and {target.arena.used} bytes of bodies are left") from None


def _memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzzes the HTTP layer.")
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--seed", type=int, default=None, help="the first one; by default the time decides")
    parser.add_argument("--only", type=int, default=None, metavar="SEED", help="play one input and show it")
    options = parser.parse_args()
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if options.only is not None:
        _show(options.only, console)
        options.inputs, options.seed = 1, options.only
    seed = int(time.time()) * 1000 if options.seed is None else options.seed
    columns: list[Any] = [TextColumn("inputs from seed {task.fields[seed]}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=options.inputs, seed=seed)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                figures = runner.run(fuzz(seed, options.inputs, lambda done: progress.advance(task, done)))
            except Wrong as wrong:
                progress.stop()
                console.print(
                    f"{wrong}\nSee it: PYTHONPATH=tests .venv/bin/python tests/fuzz/http_fuzzer.py --only SEED"
                )
                return 1
    console.print(str(figures))
    return 0


def _show(seed: int, console: Console) -> None:
    made = make_input(seed)
    console.print(f"The client {made.ending.value}. {len(made.pieces)} pieces:")
    for piece in made.pieces:
        console.print(f"  {piece[:2000]!r}")
    console.print("Expected:")
    for wanted in expected_answers(made.sent, BOUNDS):
        console.print(f"  {wanted}")


if __name__ == "__main__":
    sys.exit(main())
