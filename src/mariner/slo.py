"""The batching policy ``slo``: batches as large as a latency target allows, sized by what batches have taken so far.

Pure, as :mod:`mariner.batching` is: the clock is passed in. :class:`Curve` learns how long a batch of each size takes;
:class:`SloQueue` decides with it.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from mariner.batching import JobQueue
from mariner.jobs import Job

__all__ = ["Curve", "Point", "SloQueue"]

log = logging.getLogger(__name__)

MEMORY = 512  # batches remembered; a model that has become slower or faster is known anew after as many
ARRIVALS = 128  # of the rate of arrivals: fewer are noise (9 % with so many), more follow a change too late
USUAL, SLOW = 0.5, 0.9  # quantiles: what throughput is reckoned with, and what a promise is
GROWTH = 2  # a size that has not been tried may be so many times the largest that has
ROUND_TRIP = 0.001  # seconds that a request spends outside the handler
PRESSURE = 1.1  # arrivals beyond what the batches achieve from which they are too many, and not just a cluster
LASTING = 4  # targets for which what is behind may stay so, before larger batches are tried that may make it worse
SURE = 8  # batches after which a size is known, and it may be said that the target cannot be met
TRIES = 2  # batches of a size after which it is not tried for its own sake: one may have been unlucky
DRAW = 6  # batches that the line through all sizes counts as, where slow ones take twice as long as usual ones


class Point(NamedTuple):
    """What is known of one size. Times in seconds.

    Attributes:
        size: jobs in a batch.
        usual: half of the batches take no longer.
        slow: nine of ten take no longer.
        batches: how many were measured.
    """

    size: int
    usual: float
    slow: float
    batches: int


def _class_of(size: int) -> int:
    """The size that stands for those near it: each up to 16, then four per doubling, so that each is measured often."""
    step = 1 if size < 16 else 1 << size.bit_length() >> 3
    return round(size / step) * step


class _Line(NamedTuple):
    """One quantile: its values at the sizes that were measured, and its slope beyond them, in seconds per job."""

    values: list[float]
    slope: float


def _quantile(measured: Sequence[float], quantile: float) -> float:
    return measured[math.ceil(quantile * len(measured)) - 1]


def _pooled(values: Iterable[tuple[float, float]]) -> list[float]:
    """The values, with their weights, made to rise: the pooling of adjacent violators."""
    blocks: list[tuple[float, float, int]] = []  # value, weight, length
    for value, weight in values:
        block = value, weight, 1
        while blocks and blocks[-1][0] > block[0]:
            before, heft, length = blocks.pop()
            total = heft + block[1]
            block = (before * heft + block[0] * block[1]) / total, total, length + block[2]
        blocks.append(block)
    return list(itertools.chain.from_iterable([value] * length for value, _, length in blocks))


class Curve:
    """How long a batch of each size takes: online quantiles per size, over the latest batches.

    Sizes correct each other: one that was measured rarely is drawn to the line through all, and as a larger batch never
    takes less time, neighbours of which the numbers say so are averaged.
    """

    def __init__(self) -> None:
        self._latest: deque[tuple[int, float]] = deque()
        self._seconds: dict[int, list[float]] = {}  # by size, sorted
        self._sizes: list[int] = []
        self._usual = self._slow = _Line([], 0.0)
        self.spread = 0.0  # by how much slow batches take longer than usual ones, as a share; at most 1

    def __len__(self) -> int:
        """Batches that it remembers."""
        return len(self._latest)

    @property
    def largest(self) -> int:
        """The largest size that was measured; 0 if none was."""
        return self._sizes[-1] if self._sizes else 0

    @property
    def points(self) -> list[Point]:
        """What is known, by size."""
        return [
            Point(size, usual, slow, len(self._seconds[size]))
            for size, usual, slow in zip(self._sizes, self._usual.values, self._slow.values, strict=True)
        ]

    def add(self, size: int, seconds: float) -> None:
        """A batch of ``size`` jobs took so long."""
        size = _class_of(size)
        self._latest.append((size, seconds))
        bisect.insort(self._seconds.setdefault(size, []), seconds)
        if len(self._latest) > MEMORY:
            old, forgotten = self._latest.popleft()
            measured = self._seconds[old]
            del measured[bisect.bisect_left(measured, forgotten)]
            if not measured:
                del self._seconds[old]
        self._sizes = sorted(self._seconds)
        self.spread = self._spread()
        draw = DRAW * self.spread
        self._usual = self._rising(USUAL, draw)
        self._slow = self._rising(SLOW, draw)

    def _spread(self) -> float:
        """How much longer than a usual batch a slow one of its size takes, as a share; at most 1."""
        spread, weight = 0.0, 0
        for measured in self._seconds.values():
            usual = _quantile(measured, USUAL)
            if usual > 0.0:
                spread += (_quantile(measured, SLOW) / usual - 1) * (len(measured) - 1)
                weight += len(measured) - 1
        return min(1.0, spread / weight) if weight else 0.0

    def _rising(self, quantile: float, draw: float) -> _Line:
        """A quantile of each size, drawn to the straight line through all, which counts as so many batches."""
        known = []
        for size in self._sizes:
            measured = self._seconds[size]
            known.append((size, _quantile(measured, quantile), len(measured)))
        weight = sum(count for *_, count in known)
        middle = sum(size * count for size, _, count in known) / weight
        level = sum(seconds * count for _, seconds, count in known) / weight
        across = sum((size - middle) ** 2 * count for size, _, count in known)
        along = sum((size - middle) * (seconds - level) * count for size, seconds, count in known)
        slope = max(0.0, along / across) if across else level / middle  # of one size: the most it should be
        drawn = (
            ((seconds * count + (level + slope * (size - middle)) * draw) / (count + draw), count + draw)
            for size, seconds, count in known
        )
        return _Line(_pooled(drawn), slope)

    def usual(self, size: int) -> float:
        """Seconds that half of the batches of that size stay below; 0 if nothing is known."""
        return self._at(self._usual, size)

    def slow(self, size: int) -> float:
        """Seconds that nine of ten stay below; 0 if nothing is known."""
        return self._at(self._slow, size)

    def _at(self, line: _Line, size: int) -> float:
        sizes, values = self._sizes, line.values
        if not sizes:
            return 0.0
        after = bisect.bisect_left(sizes, size)
        if after == 0:
            return values[0]
        if after < len(sizes):
            before = after - 1
            slope = (values[after] - values[before]) / (sizes[after] - sizes[before])
            return values[after] + slope * (size - sizes[after])
        return values[-1] + line.slope * (size - sizes[-1])

    def batches(self, size: int) -> int:
        """How many batches of about that size it remembers."""
        return len(self._seconds.get(_class_of(size), ()))

    def rate(self, size: int) -> float:
        """Jobs per second in batches of that size; infinity if nothing is known."""
        seconds = self.usual(size)
        return size / seconds if seconds else math.inf

    def within(self, seconds: float, limit: int) -> int:
        """The largest size up to ``limit`` that should take no longer, nine times of ten; 0 if none should."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.slow(middle) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def fastest(self, limit: int) -> int:
        """The size up to ``limit`` that does most jobs per second; of equal ones the largest, to learn of it."""
        # Between measured sizes the curve is a line, on which the rate has no maximum but at the ends.
        sizes = [size for size in self._sizes if size < limit]
        return max([*sizes, limit], key=lambda size: (self.rate(size), size))


class SloQueue(JobQueue):
    """Sizes batches so that the oldest job is answered within the target, and no smaller than the load needs.

    A batch may take half of the target: a job that just misses one waits for it and then runs in the next. Less is
    taken if the oldest job has less left; all the same as much as the load needs, where saving the oldest would make
    those behind it late. A lone request goes at once.

    Args:
        model: see :class:`mariner.batching.JobQueue`, as the other arguments.
        target: seconds within which a request is to be answered.
        batch_size: most jobs in a batch.
        max_delay: has no effect, as nothing is held back.
        capacity: most jobs that may wait.
        clock: the time in seconds.

    Attributes:
        curve: what is known of the model.
        batch_size: most jobs in a batch at present.
        most: what ``batch_size`` may become.
    """

    def __init__(
        self,
        model: str,
        *,
        target: float,
        batch_size: int,
        max_delay: float,
        capacity: int,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(model, batch_size=1, max_delay=max_delay, capacity=capacity, clock=clock)
        self.target = target
        self.most = batch_size
        self.curve = Curve()
        self._arrivals: deque[float] = deque(maxlen=ARRIVALS)
        self._told = False  # that the target cannot be met

    def put(self, job: Job) -> None:
        """Lets a job wait, and counts it for the rate of arrivals."""
        super().put(job)
        self._arrivals.append(self._clock())

    def measured(self, size: int, seconds: float) -> None:
        """A batch has been run; all that is to be decided per batch is decided here."""
        self.curve.add(size, seconds)
        self.batch_size = self._largest_wise()
        if not self._told and len(self.curve) >= SURE and self.curve.usual(1) + ROUND_TRIP > self.target:
            self._told = True
            log.warning(
                "%s: a batch of one takes %.1f ms, so that latencySloMs, %g, cannot be met. Batches are made for "
                "throughput until it can.",
                *(self.model, self.curve.usual(1) * 1e3, self.target * 1e3),
            )

    @property
    def demand(self) -> float:
        """Jobs per second and worker that have come of late."""
        if len(self._arrivals) < 2:
            return 0.0
        return (len(self._arrivals) - 1) / max(self._clock() - self._arrivals[0], 1e-9) / max(1, len(self.crew()))

    def _needed(self, size: int) -> float:
        """Jobs per second and worker that have to be done: those that come, and within one target what is behind."""
        behind = max(0, len(self._jobs) - size) / max(1, len(self.crew()))
        return self.demand / PRESSURE + behind / self.target

    def _largest_wise(self) -> int:
        """The size that achieves most while two batches in a row take no longer than the target.

        If that is too little for the load, a batch may take the whole of it; if that is too little as well, however
        long it takes.
        """
        known = min(self.most, max(1, self.curve.largest))
        behind = max(0, len(self._jobs) - known) / max(1, len(self.crew()))
        enough = self.demand / PRESSURE + behind / (LASTING * self.target)
        exploring = self.curve.rate(self.curve.fastest(known)) < enough
        needed = self._needed(self.batch_size)
        limit = self._step(known, needed) if exploring else known
        for budget in ((self.target - ROUND_TRIP) / 2, self.target - ROUND_TRIP):
            if size := self.curve.within(budget, limit):
                size = self.curve.fastest(size)
                if self.curve.rate(size) >= needed:
                    return size
        fastest, largest = self.curve.fastest(limit), self.curve.within(self.target, limit)
        if largest and exploring and self.curve.batches(largest) < TRIES:
            hoped = self.curve.rate(largest) * (1 + self.curve.spread)
            if hoped > self.curve.rate(fastest):
                return largest  # it may have been unlucky
        neighbour = min(limit, fastest + max(1, fastest // 4 if fastest >= 16 else 0))
        return neighbour if self.curve.batches(neighbour) < TRIES else fastest  # there may be a peak in between

    def _step(self, known: int, needed: float) -> int:
        """A size beyond those that are known: the smallest that should be enough, if the curve goes on as it is."""
        limit = min(self.most, GROWTH * known)
        return next((size for size in range(known, limit) if self.curve.rate(size) >= needed), limit)

    def take(self, *, partial: bool = True, seconds: float = 0.0, worker: object = None) -> list[Job]:
        """The next batch; see :meth:`mariner.batching.JobQueue.take`."""
        if not self._jobs:
            return []
        wise = self.batch_size
        self.batch_size = self._fitting(wise)
        try:
            return super().take(partial=partial, seconds=seconds, worker=worker)
        finally:
            self.batch_size = wise

    def _fitting(self, wise: int) -> int:
        """At most ``wise`` jobs, fewer if that keeps the oldest in time and the queue from growing."""
        left = self._jobs[0].created + self.target - ROUND_TRIP - self._clock()
        waiting = min(len(self._jobs), wise)
        if self.curve.slow(waiting) <= left:
            return wise
        fitting = self.curve.within(left, waiting)
        return fitting if fitting and self.curve.rate(fitting) >= self._needed(wise) else wise

    def due(self, oldest: Job, now: float) -> bool:  # noqa: ARG002  (it never depends)
        """At once, as under ``eager``: what comes while a worker runs is its next batch."""
        return True

    def describe(self) -> dict[str, Any]:
        """For the describe call."""
        return {
            "latencySloMs": round(self.target * 1e3, 3),
            "batchSize": self.batch_size,
            "measured": [
                {"batchSize": size, "p50Ms": round(usual * 1e3, 3), "p90Ms": round(slow * 1e3, 3), "batches": batches}
                for size, usual, slow, batches in self.curve.points
            ],
        }
