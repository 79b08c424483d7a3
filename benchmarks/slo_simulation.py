"""How the batching policy ``slo`` compares with the best fixed settings, on made-up models and a made-up clock.

    python benchmarks/slo_simulation.py

prints the table of docs/explanation/batching.md. Each run is one worker, Poisson arrivals and the real queues; the
settings it is compared with were chosen by trying them all on the very same arrivals.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mariner.batching import JobQueue, make_queue
from mariner.jobs import Job, Request
from mariner.slo import SloQueue

TARGET = 0.1  # seconds
MOST = 64  # jobs in a batch
REQUESTS = 5000
WARM_UP = 1000  # requests that do not count, for none of the policies
SEEDS = (1, 2, 3)
LOADS = (0.3, 0.7, 0.95)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
DELAYS = (0.0, 0.005, 0.02, 0.05)  # seconds


@dataclass(frozen=True)
class Model:
    """A made-up model: how many seconds a batch takes on average, and how much that varies."""

    name: str
    mean: Callable[[int], float]
    noise: float = 0.0

    def seconds(self, size: int, chance: random.Random) -> float:
        return self.mean(size) * (chance.lognormvariate(-(self.noise**2) / 2, self.noise) if self.noise else 1.0)

    def capacity(self) -> float:
        """Jobs per second of the best size of which two batches in a row fit into the target, slow ones too."""
        slow = math.exp(
            1.2816 * self.noise - self.noise**2 / 2
        )  # nine of ten take no longer than so many times the mean
        return max(size / self.mean(size) for size in range(1, MOST + 1) if 2 * slow * self.mean(size) <= TARGET)


MODELS = (
    Model("mostly constant", lambda size: 0.020 + 0.0002 * size),
    Model("linear", lambda size: 0.001 + 0.004 * size),
    Model("knee at 8", lambda size: 0.010 + 0.0005 * min(size, 8) + 0.004 * max(0, size - 8)),
    Model("steps of 8", lambda size: 0.004 + 0.006 * -(-size // 8)),
    Model("noisy", lambda size: 0.008 + 0.001 * size, noise=0.4),
)


def eager_or_fill(size: int, delay: float) -> Callable[[Callable[[], float]], JobQueue]:
    policy = "fill" if delay else "eager"
    return lambda clock: make_queue(policy, "m", batch_size=size, max_delay=delay, capacity=10**9, clock=clock)


def slo(clock: Callable[[], float]) -> JobQueue:
    return SloQueue("m", target=TARGET, batch_size=MOST, max_delay=0.1, capacity=10**9, clock=clock)


def goodput(model: Model, load: float, make: Callable[[Callable[[], float]], JobQueue]) -> float:
    """The share of requests that are answered within the target, in the mean of the seeds."""
    return sum(run(model, load, make, seed) for seed in SEEDS) / len(SEEDS)


def run(model: Model, load: float, make: Callable[[Callable[[], float]], JobQueue], seed: int) -> float:
    """One run: one worker, Poisson arrivals."""
    chance = random.Random(seed)
    rate, at = load * model.capacity(), 0.0
    arrivals = [at := at + chance.expovariate(rate) for _ in range(REQUESTS)]
    now = 0.0
    queue = make(lambda: now)
    coming: Iterator[float] = iter(arrivals)
    events = [(next(coming), 0)]  # time and what: 0 an arrival, 1 the end of a batch, 2 a timer
    running: list[Job] = []
    took, good, done = 0.0, 0, 0
    while done < REQUESTS:
        now, what = heapq.heappop(events)
        if what == 0:
            queue.put(Job(Request("", b"", []), lambda _: None, created=now))
            if (following := next(coming, None)) is not None:
                heapq.heappush(events, (following, 0))
        elif what == 1:
            counting = running[max(0, WARM_UP - done) :]
            good += sum(now - job.created <= TARGET for job in counting)
            done += len(running)
            queue.measured(len(running), took)
            running = []
        if running:
            continue
        running = queue.take()
        if running:
            took = model.seconds(len(running), chance)
            heapq.heappush(events, (now + took, 1))
        elif queue and (wake := queue.wake_at()) < float("inf"):
            heapq.heappush(events, (wake, 2))
    return good / (REQUESTS - WARM_UP)


def best_fixed(model: Model, load: float) -> tuple[float, int, float]:
    """Goodput, size and delay of the best of all fixed settings."""
    best = 0.0, 0, 0.0
    for delay in DELAYS:
        for size in SIZES:
            found = goodput(model, load, eager_or_fill(size, delay))
            if found > best[0]:
                best = found, size, delay
            if found == 1.0:  # there is no better
                return best
    return best


def table() -> list[str]:
    lines = [
        "| Model | Load | Best fixed setting | In time with it | In time with `slo` |",
        "|---|--:|---|--:|--:|",
    ]
    for model in MODELS:
        for load in LOADS:
            best, size, delay = best_fixed(model, load)
            found = goodput(model, load, slo)
            setting = f"{size}, {delay * 1e3:g} ms"
            lines.append(f"| {model.name} | {load:.0%} | {setting} | {best:.1%} | {found:.1%} |".replace("%", " %"))
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
