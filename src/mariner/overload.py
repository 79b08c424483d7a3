"""What happens to requests that come faster than they can be served: how long one would wait.

Pure: numbers in, numbers out. What refused ones are told is in :mod:`mariner.refusals`. An estimate only ever refuses a
request that would wait behind others: one that a worker could begin at once is always let through, and measures the
model anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

__all__ = ["LONGEST_RETRY", "MARGIN", "Lane", "expected_wait", "retry_after"]

MARGIN = 1.5
"""Batches that must fit into what is left: the estimate is an average, and half of them take longer."""

LONGEST_RETRY = 60.0  # seconds; no estimate of a queue is worth more


class Lane(Protocol):
    """What is to be known of a worker that is ready."""

    @property
    def idle(self) -> bool:
        """It has nothing to do."""

    @property
    def cost(self) -> float:
        """Seconds per batch; 0 until one has been measured."""

    @property
    def lanes(self) -> int:
        """Batches that it runs at a time."""

    def free_in(self, now: float) -> float:
        """Seconds until it has done what it runs."""


def expected_wait(waiting: int, batch_size: int, workers: Iterable[Lane], now: float) -> tuple[float, float]:
    """Seconds until a request that comes now is begun, and seconds that its batch takes then.

    Args:
        waiting: requests before it.
        batch_size: most requests in a batch.
        workers: those that are ready.
        now: the time on the clock of the workers.

    Returns:
        Zeros if it need not wait, or if a batch has yet to be measured.
    """
    rate, lanes, first = 0.0, 0, math.inf
    for worker in workers:
        if not worker.cost or (worker.idle and not waiting):
            return 0.0, 0.0
        rate += worker.lanes / worker.cost
        lanes += worker.lanes
        first = min(first, worker.free_in(now))
    if not rate:
        return 0.0, 0.0
    return first + waiting // batch_size / rate, lanes / rate


def retry_after(seconds: float) -> float:
    """What a refused client is told to wait: an estimate within bounds."""
    return min(max(seconds, 1.0), LONGEST_RETRY)
