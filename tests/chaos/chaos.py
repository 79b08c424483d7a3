"""Breaks a real server in random ways for minutes, and checks what must hold all the while.

    make chaos                                                       5 minutes, 10,000 steps
    make chaos SEED=4711                                             the same steps once more
    PYTHONPATH=tests:tests/integration:benchmarks \\
        .venv/bin/python tests/chaos/chaos.py --seconds 30 --steps 1000

A step is a request or a fault; ``chaos_faults`` has the faults and ``chaos_model`` the table of what a request may come
to. Besides: every request gets exactly one answer, its own; the server's counters agree with what clients saw;
``/ping`` answers within a second; every model is whole again soon after a fault; the server's memory stays; after the
stop no process and no temporary file is left.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_clients import Clients
from chaos_faults import FAULTS, World
from chaos_model import Fault, Kind, Model, Violation
from chaos_server import ChaosServer, own_namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Report", "main", "run_chaos"]

STEPS, SECONDS = 10_000, 300.0
FAULT_SHARE = 0.05  # of the steps; the others are requests
RAISING_SHARE, WAVE_SHARE = 0.03, 0.1  # of the requests; a wave is several at once
HANDLER_SECONDS = (0.0, 0.0, 0.002, 0.02)  # that a request may ask its handler to take
AT_ONCE = 24  # steps that run at a time
PING_EVERY, PING_WITHIN = 0.1, 1.0  # seconds
STALLED = 0.25  # seconds; if this process itself gets no processor for so long, a late ping says nothing
GROWTH = 64 << 20  # bytes by which the server's process may grow after the first fifth of a run
SHOWN = 20  # violations that the report shows whole


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
    stalls: int = 0
    model: Model = field(default_factory=Model)

    @property
    def violations(self) -> list[Violation]:
        return self.model.violations

    def show(self, console: Console) -> None:
        """Prints tables of what was done and of what came of it, and each violation with the steps before it."""
        done = Table(title="What was done", title_justify="left")
        done.add_column("fault")
        done.add_column("times", justify="right")
        for fault in Fault:
            done.add_row(fault.value, str(self.model.faults[fault]))
        got = Table(title="What requests came to", title_justify="left")
        for heading in ("request", "status", "reason", "times"):
            got.add_column(heading, justify="right" if heading == "times" else "left")
        for (kind, status, reason), count in sorted(self.model.answers.items(), key=lambda row: (row[0][0].name, row)):
            got.add_row(kind.value, str(status), reason, f"{count:,}")
        console.print(done, got)
        for violation in self.violations[:SHOWN]:
            console.print(f"violation: {violation.text}", style="red", highlight=False, markup=False)
        if self.violations:
            console.print("the steps before the first:", *self.violations[0].steps, sep="\n  ", highlight=False)
        console.print(self.summary(), highlight=False)

    def summary(self) -> str:
        """One line."""
        answers = self.model.answers.total()
        stalls = f", {self.stalls} not judged because this process got no processor" if self.stalls else ""
        return (
            f"seed {self.seed}: {self.steps:,} steps and {self.model.faults.total():,} faults in {self.seconds:.0f} s, "
            f"{answers:,} answers, {self.model.tally.unseen:,} clients left; slowest of {self.pings:,} pings "
            f"{self.slowest_ping * 1e3:.0f} ms{stalls}; memory {self.growth / 1e6:+.1f} MB; full disk by {self.disk}; "
            f"{len(self.violations)} violations"
        )


class Chaos:
    """One run against one server."""

    def __init__(self, server: ChaosServer, seed: int, port: int | None = None) -> None:
        self.report = Report(seed, "a small tmpfs" if server.small else "a limit on file sizes (RLIMIT_FSIZE)")
        self.server = server
        # Two sources: what is done must not depend on what is asked, which depends on timing.
        self._plan, self._dice = random.Random(seed), random.Random(~seed)
        self.clients = Clients(server, self.report.model, self._dice, port)
        self.world = World(server, self.clients, self._dice)
        self._tasks: set[asyncio.Task[None]] = set()
        self._lag = 0.0  # longest recent delay of this process's own timer

    async def run(self, steps: int, seconds: float, progress: Callable[[int], object], *, faults: bool = True) -> None:
        """Takes the steps, lets everything end, and looks at what must hold then."""
        for name in self.server.models:
            await self.world.until_ready(name)
        begun = time.monotonic()
        memory = self.server.memory()
        watchers = [asyncio.create_task(self._watch_ping()), asyncio.create_task(self._watch_self())]
        room = asyncio.Semaphore(AT_ONCE)
        for step in range(1, steps + 1):
            await room.acquire()
            self._take_step(step, begun, room, faults=faults)
            self.report.steps = step
            progress(step)
            if step == steps // 5:
                memory = self.server.memory()
            await asyncio.sleep(begun + seconds * step / steps - time.monotonic())
            if time.monotonic() - begun > 2 * seconds + 30:
                break
        if self._tasks:
            await asyncio.wait(self._tasks)
        for name in self.server.models:
            await self.world.until_ready(name)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await self.clients.close()
        await self._check_end()
        self.report.growth = self.server.memory() - memory
        if self.report.growth > GROWTH:
            self.report.model.violate(f"the server grew by {self.report.growth / 1e6:.1f} MB")
        self.report.seconds = time.monotonic() - begun

    def _take_step(self, step: int, begun: float, room: asyncio.Semaphore, *, faults: bool) -> None:
        plan, at = self._plan, f"step {step} at {time.monotonic() - begun:.2f} s: "
        if plan.random() < FAULT_SHARE and faults:
            (chaos,) = plan.choices(FAULTS, [fault.weight for fault in FAULTS])
            self.report.model.step(at + chaos.name)
            # A fault waits for its model, which another may have: it must not keep requests from being sent.
            room.release()
            self._spawn(chaos.strike(self.world), at + chaos.name, lambda: None)
        else:
            name = plan.choice(self.server.models)
            count = plan.randrange(2, 16) if name != "slow" and plan.random() < WAVE_SHARE else 1
            told: dict[str, Any] = {"seconds": plan.choice(HANDLER_SECONDS)}
            if plan.random() < RAISING_SHARE:
                told["fail"] = "raise"
            version = plan.choice(["", "1.0", "2.0"]) if name == "versions" else ""
            self.report.model.step(f"{at}ask {name} {version} {count} times, {told}")
            self._spawn(self._ask(name, count, version, told), at, room.release)

    async def _ask(self, name: str, count: int, version: str, told: dict[str, Any]) -> None:
        """Sends requests at once; the first is told to raise, if one is."""
        kind = Kind.RAISES if "fail" in told else Kind.PREDICT
        others = (self.clients.predict(name, version=version, seconds=told["seconds"]) for _ in range(count - 1))
        await asyncio.gather(self.clients.predict(name, kind, version=version, **told), *others)

    def _spawn(self, coroutine: object, what: str, release: Callable[[], object]) -> None:
        task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            release()
            if not task.cancelled() and (error := task.exception()) is not None:
                self.report.model.violate(f"{what}: {type(error).__name__}: {error}")

        task.add_done_callback(ended)

    async def _watch_ping(self) -> None:
        while True:
            await asyncio.sleep(PING_EVERY)
            self._lag = 0.0
            begun = time.monotonic()
            await self.clients.ask(Kind.LOOK, "", "GET", "/ping")
            took = time.monotonic() - begun
            self.report.pings += 1
            if self._lag > STALLED:
                self.report.stalls += 1
                continue
            self.report.slowest_ping = max(self.report.slowest_ping, took)
            if took > PING_WITHIN:
                self.report.model.violate(f"/ping took {took:.2f} s")

    async def _watch_self(self) -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.05)
            self._lag = max(self._lag, time.monotonic() - begun - 0.05)

    async def _check_end(self) -> None:
        """Asks for the counters on a connection of its own: they do not count the answer that carries them."""
        client = await self.server.client("metrics")
        answer = await client.ask("GET", "/metrics")
        await client.close()
        self.report.model.check_end(self.server.samples(answer.body.decode()), self.server.models)

    async def stop(self) -> None:
        """Stops the server while it has work: what it has accepted, it answers."""
        asks = [asyncio.create_task(self.clients.predict("slow", seconds=0.02)) for _ in range(16)]
        await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
        self.server.terminate()
        await asyncio.gather(*asks)
        for problem in self.server.stop():  # on this thread, which handles signals; nothing else goes on any more
            self.report.model.violate(problem)


async def run_chaos(
    server: ChaosServer,
    seed: int,
    steps: int,
    seconds: float,
    progress: Callable[[int], object] = lambda _: None,
    *,
    port: int | None = None,
    faults: bool = True,
) -> Report:
    """Breaks a server and stops it; see :class:`Chaos`."""
    chaos = Chaos(server, seed, port)
    await chaos.run(steps, seconds, progress, faults=faults)
    await chaos.stop()
    return chaos.report


def main() -> int:
    """The command; 1 if something did not hold."""
    options = _options()
    own_namespace(sys.argv)
    console = Console()
    console.print(f"seed {options.seed}", highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        server = ChaosServer(Path(place))
        try:
            with Progress(*columns, console=console, transient=True) as progress:
                task = progress.add_task("steps", total=options.steps)
                tell = lambda step: progress.update(task, completed=step)  # noqa: E731
                report = asyncio.run(run_chaos(server, options.seed, options.steps, options.seconds, tell))
        finally:
            if options.log:
                with suppress(OSError):
                    options.log.write_text(server.process.log.read_text(errors="replace"))
            server.kill()
    report.show(console)
    return 1 if report.violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Break a real server in random ways and check what must hold.")
    parser.add_argument("--seed", type=int, help="of an earlier run, to take the same steps")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"requests and faults (default {STEPS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"over which they go (default {SECONDS:g})")
    parser.add_argument("--log", type=Path, help="file for what the server printed")
    options = parser.parse_args()
    if options.seed is None:
        # Written into the arguments, because the program may start itself again.
        options.seed = random.SystemRandom().randrange(1_000_000)
        sys.argv += ["--seed", str(options.seed)]
    return options


if __name__ == "__main__":
    raise SystemExit(main())
