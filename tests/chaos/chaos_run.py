"""One run: takes the steps, watches the server meanwhile, looks at what must hold at the end, and reports."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from itertools import islice

from chaos_clients import Clients
from chaos_model import Fault, Kind, Model, Violation
from chaos_server import ChaosServer
from chaos_steps import Ask, Step, Strike, steps_of
from chaos_troubles import World
from rich.console import Console
from rich.table import Table

__all__ = ["Report", "run_chaos"]

AT_ONCE = 24  # steps of requests that run at a time
PING_EVERY, PING_WITHIN = 0.1, 1.0  # seconds; the time in which nobody gave the server a processor is left out
GROWTH = 64 << 20  # bytes by which the server's process may grow after the first fifth of a run
SHOWN = 20  # violations that a report shows
WITH_STEPS = 5  # of these, those with the steps before them


@dataclass
class Report:
    """What a run did and found."""

    seed: int
    disk: str
    steps: int = 0
    seconds: float = 0.0
    growth: int = 0
    pings: int = 0
    slowest_ping: float = 0.0
    slowest_recovery: float = 0.0
    model: Model = field(default_factory=Model)

    @property
    def violations(self) -> list[Violation]:
        return self.model.violations

    def show(self, console: Console) -> None:
        """Prints what was done, what came of it, and the violations with the steps before them."""
        done = Table(title="What was done", title_justify="left")
        done.add_column("fault")
        done.add_column("times", justify="right")
        for fault in Fault:
            done.add_row(fault.value, f"{self.model.faults[fault]:,}")
        got = Table(title="What requests came to", title_justify="left")
        for heading in ("request", "status", "reason", "times"):
            got.add_column(heading, justify="right" if heading == "times" else "left")
        for (kind, status, reason), count in sorted(self.model.answers.items(), key=lambda row: (row[0][0].name, row)):
            got.add_row(kind.value, str(status), reason, f"{count:,}")
        console.print(done, got)
        for number, violation in enumerate(self.violations[:SHOWN]):
            console.print(f"violation (seed {self.seed}): {violation.text}", highlight=False, markup=False)
            if number < WITH_STEPS:
                console.print("  after", *violation.steps, sep="\n    ", highlight=False, markup=False)
        console.print(self.summary(), highlight=False, markup=False)

    def summary(self) -> str:
        """One line."""
        return (
            f"seed {self.seed}: {self.steps:,} steps and {self.model.faults.total():,} faults in {self.seconds:.0f} s, "
            f"{self.model.answers.total():,} answers, {self.model.tally.unseen:,} clients left; "
            f"slowest recovery {self.slowest_recovery:.1f} s; slowest of {self.pings:,} pings "
            f"{self.slowest_ping * 1e3:.0f} ms; memory {self.growth / 1e6:+.1f} MB; full disk by {self.disk}; "
            f"{len(self.violations)} violations"
        )


async def run_chaos(
    server: ChaosServer,
    seed: int,
    steps: int,
    seconds: float,
    progress: Callable[[int], object] = lambda _: None,
    *,
    port: int | None = None,
    troubles: bool = True,
) -> Report:
    """Breaks a server, and stops it.

    Args:
        server: the server.
        seed: gives the steps.
        steps: how many.
        seconds: over which they are spread.
        progress: is told the number of each step.
        port: of the inference listener, if it is not the server's own.
        troubles: without them there are only requests.
    """
    run = _Run(server, seed, port)
    await run.whole()
    await run.take(islice(steps_of(seed, server.models, troubles=troubles), steps), seconds / steps, steps, progress)
    await run.check_end()
    await run.stop()
    return run.report


class _Run:
    def __init__(self, server: ChaosServer, seed: int, port: int | None) -> None:
        self.report = Report(seed, "a small tmpfs" if server.small else "a limit on file sizes (RLIMIT_FSIZE)")
        self.server = server
        self.clients = Clients(server, self.report.model, random.Random(seed), port)
        self.world = World(server, self.clients)
        self._memory = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def whole(self) -> None:
        """All models are ready, and one request of each is answered."""
        for name in self.server.models:
            await self.world.until_ready(name)

    # -- steps --------------------------------------------------------------------------------------------------------

    async def take(self, steps: Iterable[Step], pace: float, count: int, progress: Callable[[int], object]) -> None:
        """Takes steps, one each ``pace`` seconds, and lets everything end that they began."""
        begun = time.monotonic()
        ended = asyncio.Event()
        watcher = asyncio.create_task(self._watch_ping(ended))
        room = asyncio.Semaphore(AT_ONCE)
        for number, step in enumerate(steps, 1):
            self.report.model.step(f"step {number} at {time.monotonic() - begun:.2f} s: {step}")
            await self._begin(step, room)
            self.report.steps = number
            progress(number)
            if number == count // 5:
                self._memory = self.server.memory()
            await asyncio.sleep(begun + pace * number - time.monotonic())
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.whole()
        ended.set()
        await watcher
        self.report.seconds = time.monotonic() - begun
        self.report.slowest_recovery = self.world.slowest_recovery

    async def _begin(self, step: Step, room: asyncio.Semaphore) -> None:
        if isinstance(step, Strike):  # it may wait for its model, and requests must go on meanwhile
            self._spawn(step.trouble.strike(self.world, random.Random(step.seed)), str(step), lambda: None)
        else:
            await room.acquire()
            self._spawn(self._ask(step), str(step), room.release)

    async def _ask(self, step: Ask) -> None:
        kind, told = (Kind.RAISES, {"fail": "raise"}) if step.raises else (Kind.PREDICT, {})
        ask = self.clients.predict
        others = (ask(step.model, version=step.version, seconds=step.seconds) for _ in range(step.count - 1))
        await asyncio.gather(ask(step.model, kind, version=step.version, seconds=step.seconds, **told), *others)

    def _spawn(self, work: Coroutine[object, object, None], what: str, release: Callable[[], object]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            release()
            if not task.cancelled() and (error := task.exception()) is not None:
                self.report.model.violate(f"{what}: {type(error).__name__}: {error}")

        task = asyncio.create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(ended)

    # -- watching -----------------------------------------------------------------------------------------------------

    async def _watch_ping(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            await asyncio.sleep(PING_EVERY)
            begun = time.monotonic() - self.server.starved()
            await self.clients.ask(Kind.LOOK, "", "GET", "/ping")
            took = time.monotonic() - self.server.starved() - begun
            self.report.pings += 1
            self.report.slowest_ping = max(self.report.slowest_ping, took)
            if took > PING_WITHIN:
                self.report.model.violate(f"/ping took {took:.2f} s")

    # -- the end ------------------------------------------------------------------------------------------------------

    async def check_end(self) -> None:
        """Compares what the server counted, and looks at its memory; nobody is asking it anything."""
        await self.clients.close()
        client = await self.server.client("metrics")  # the answer that carries the counters is not among them
        answer = await client.ask("GET", "/metrics")
        await client.close()
        self.report.model.check_end(self.server.samples(answer.body.decode()), self.server.models)
        self.report.growth = self.server.memory() - self._memory
        if self.report.growth > GROWTH:
            self.report.model.violate(f"the server grew by {self.report.growth / 1e6:.1f} MB")

    async def stop(self) -> None:
        """Stops the server while it has work: what it has accepted, it answers."""
        asks = [asyncio.create_task(self.clients.predict("slow", seconds=0.02)) for _ in range(16)]
        await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
        self.server.terminate()
        await asyncio.gather(*asks)
        await self.clients.close()
        for problem in self.server.stop():  # on this thread, which handles signals; nothing else goes on any more
            self.report.model.violate(problem)
